"""What becomes of a run's files: damage, a full disk, kills, two runs at once; and that it goes on to the same results."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_lab import TINY, tiny_world, without_timings

from recast_ref.lab import checkpoints, experiment, locks, training
from recast_ref.lab.worlds import World


@pytest.fixture(scope="module")
def world():
    return tiny_world()


# ---- checkpoints


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    checkpoints.save_json(path, {"a": 1})

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoints.replace(path, fail)
    assert checkpoints.load_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


OF = {"job": "sft", "seed": 0, "run": "0123"}


@given(st.data())
def test_a_damaged_checkpoint_is_named_and_refused(data):
    """A byte changed anywhere, or the end cut off, or something added: never other numbers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sft-0.pt"
        state = {"weights": torch.arange(9.0), "curve": [{"step": 0, "kl": None}]}
        checkpoints.save(path, state, OF)
        found = checkpoints.load(path, OF)
        assert torch.equal(found["weights"], state["weights"]) and found["curve"] == state["curve"]
        good = path.read_bytes()
        at = data.draw(st.integers(0, len(good) - 1))
        change = data.draw(st.sampled_from(["flip", "cut", "add"]))
        bad = {
            "flip": good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :],
            "cut": good[:at],
            "add": good + good[at:],
        }[change]
        path.write_bytes(bad)
        with pytest.raises(
            checkpoints.CheckpointError, match=r"sft-0.pt is damaged .*: delete it, and --resume"
        ) as caught:
            checkpoints.load(path, OF)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name, other", [("job", "recast"), ("seed", 1), ("run", "4567")])
def test_a_checkpoint_of_another_is_named_and_refused(tmp_path, name, other):
    checkpoints.save(tmp_path / "sft-0.pt", {}, {**OF, name: other})
    with pytest.raises(
        checkpoints.CheckpointError, match=f"sft-0.pt is of another run .{name} = {other}, not {OF[name]}"
    ):
        checkpoints.load(tmp_path / "sft-0.pt", OF)


def test_a_checkpoint_of_an_older_version_is_refused(tmp_path):
    torch.save({"policy": {}}, tmp_path / "base-0.pt")
    with pytest.raises(checkpoints.CheckpointError, match="base-0.pt is damaged or of another version"):
        checkpoints.load(tmp_path / "base-0.pt", OF)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"\xff\xfe{}", b"[" * 50_000, b'{"a": ' + b"9" * 5000 + b"}"]
)
def test_a_damaged_json_file_is_named_and_refused(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(checkpoints.CheckpointError, match="run.json is damaged"):
        checkpoints.load_json(tmp_path / "run.json")


@pytest.mark.parametrize("change", [lambda r: r.pop("settings"), lambda r: r.update(world=3)])
def test_a_run_file_with_a_part_missing_is_named_and_refused(world, tmp_path, change):
    settings = experiment.Settings(**TINY)
    identity = training.identity(world, settings)
    change(identity)
    checkpoints.save_json(tmp_path / "run.json", identity)
    with pytest.raises(checkpoints.CheckpointError, match="run.json is damaged, it has no"):
        experiment.compare(world, settings, tmp_path, resume=True)


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path):
    """Under a limit on the size of a file, which is an error of the same kind as a disk without room."""
    checkpoints.save(tmp_path / "sft-0.pt", {"step": 1}, OF)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large: .*sft-0.pt'"):
            checkpoints.save(tmp_path / "sft-0.pt", {"weights": torch.zeros(1_000_000)}, OF)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoints.load(tmp_path / "sft-0.pt", OF) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["sft-0.pt"]


def test_resume_refuses_a_damaged_or_swapped_checkpoint(world, tmp_path):
    """Through the worker processes; and once the file is deleted, to the results that there were."""
    settings = experiment.Settings(**TINY, seeds=1, arms=("recast", "sft"))
    results = experiment.compare(world, settings, tmp_path)
    folder = tmp_path / "checkpoints"
    base = folder / "base-0.pt"
    kept = base.read_bytes()
    base.write_bytes(kept[:-3000] + bytes([kept[-3000] ^ 1]) + kept[-2999:])
    with pytest.raises(checkpoints.CheckpointError, match="base-0.pt is damaged"):
        experiment.compare(world, settings, tmp_path, resume=True)
    base.unlink()
    (folder / "sft-0.pt").write_bytes((folder / "recast-0.pt").read_bytes())
    with pytest.raises(checkpoints.CheckpointError, match="sft-0.pt is of another run .job = recast, not sft"):
        experiment.compare(world, settings, tmp_path, resume=True)
    (folder / "sft-0.pt").unlink()
    assert without_timings(experiment.compare(world, settings, tmp_path, resume=True)) == without_timings(results)


# ---- one run at a time


def test_a_folder_is_held_once_and_says_by_whom(tmp_path):
    with locks.hold(tmp_path / "out"):
        words = f"out is in use by process {os.getpid()} on {socket.gethostname()} since 2"
        with pytest.raises(locks.Held, match=words), locks.hold(tmp_path / "out"):
            pass
        with pytest.raises(locks.Held, match=words):  # it is still held
            locks.hold(tmp_path / "out").__enter__()
    with locks.hold(tmp_path / "out"):
        pass


def test_a_killed_holder_lets_go_and_what_it_left_is_no_run(world, tmp_path):
    code = f"""
import os, signal
from recast_ref.lab import checkpoints, locks

def write(file):
    file.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

with locks.hold({str(tmp_path)!r}):
    checkpoints.replace({str(tmp_path / "run.json")!r}, write)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2  # the lock and half a run.json
    experiment.check_folder(tmp_path, resume=False)
    with locks.hold(tmp_path):
        assert [p.name for p in tmp_path.iterdir()] == [locks.NAME]


def test_simultaneous_runs_in_one_folder(tmp_path):
    """One does the work. The others are told who does, or come when it is done."""
    assert run_script(tmp_path / "out").wait(timeout=1800) == 0
    before = json.loads((tmp_path / "out" / "results.json").read_text())
    started = [run_script(tmp_path / "out", resume=True, stderr=subprocess.PIPE) for _ in range(4)]
    errors = [(process.communicate(timeout=1800)[1].decode(), process.returncode) for process in started]
    assert any(code == 0 for _, code in errors)
    for text, code in errors:
        assert code == 0 or re.search("Held: --out .* is in use by process [0-9]+ on ", text), text
    assert without_timings(json.loads((tmp_path / "out" / "results.json").read_text())) == without_timings(before)
    assert not list(tmp_path.rglob("*.half"))


SCRIPT = """
import os, signal, sys; sys.path.insert(0, {tests!r})
from test_lab import TINY, tiny_world
from recast_ref.lab.experiment import Settings, compare

def on_progress(done, total, line):
    if done > {most}:
        os.kill(os.getpid(), signal.SIGKILL)  # by its own hand: another's might come when it has finished

settings = Settings(**{{**TINY, "prompts": 160}}, seeds=2, arms=("grpo", "recast", "sft"))
compare(tiny_world(), settings, {out!r}, resume={resume}, on_progress=on_progress)
"""


def run_script(out, resume=False, most=8, **options):  # two bases and six arms
    script = SCRIPT.format(tests=os.path.dirname(__file__), out=str(out), resume=resume, most=most)
    return subprocess.Popen([sys.executable, "-c", script], **options)


def test_a_killed_experiment_resumes_to_the_same_results(tmp_path):
    whole, killed = run_script(tmp_path / "whole"), run_script(tmp_path / "killed", most=2.2)  # training is under way
    assert killed.wait(timeout=1800) == -signal.SIGKILL and whole.wait(timeout=1800) == 0
    assert not (tmp_path / "killed" / "results.json").exists()
    assert run_script(tmp_path / "killed", resume=True).wait(timeout=1800) == 0
    one, other = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "killed"))
    assert without_timings(one) == without_timings(other)
    assert set(one["arms"]["recast"]["0"]["final"]) >= {
        *("pass@1", "recall@10", "recall@32", "sampled_p@1", "regimes", "entropy", "kl", "grad_norm"),
        *("rollouts", "actor_update_seconds", "peak_update_bytes"),
    }


def test_resume_refuses_what_it_cannot_continue(world, tmp_path):
    with pytest.raises(experiment.ExperimentError, match="holds no run to resume"):
        experiment.compare(world, experiment.Settings(**TINY), tmp_path, resume=True)
    first = tmp_path / "first"
    experiment.compare(world, experiment.Settings(**TINY, seeds=1, arms=("sft",)), first)
    with pytest.raises(experiment.ExperimentError, match="already holds a run"):
        experiment.compare(world, experiment.Settings(**TINY), first)
    with pytest.raises(experiment.ExperimentError, match=r"started with seeds = 1, not 3"):
        experiment.compare(world, experiment.Settings(**TINY, arms=("sft",)), first, resume=True)
    other = World("tiny", world.sids, world.train[:-1], world.valid, world.test, world.base_pairs)
    with pytest.raises(experiment.ExperimentError, match=r"started with fingerprint = "):
        experiment.compare(other, experiment.Settings(**TINY, seeds=1, arms=("sft",)), first, resume=True)
