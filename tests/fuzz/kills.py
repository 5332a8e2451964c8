"""Law: a ``compare --quick`` that is killed at any moment, it or one of its workers, goes on with ``--resume`` to the same results."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

WORLD = "\n".join(
    [
        "user_id:token\titem_id:token\ttimestamp:float",
        *(f"u{u}\ti{(u * 7 + t * t) % 40}\t{t}" for u in range(60) for t in range(7)),
        "",
    ]
)
CLOCK = ("actor_update_seconds", "cost", "versions")  # what must not be the same again


def kill(folder, count, seed=0, tell=print):
    """Kill runs ``count`` times, each a few times until it has ended, and compare each with a run that was not killed.

    Returns:
        how many kills there were, and what was wrong, a line each.
    """
    folder, draw, faults = Path(folder), random.Random(seed), []
    (folder / "toy.inter").write_text(WORLD)
    start = time.monotonic()
    code, told = _end(_start(folder, "whole"))
    lasts, expected = time.monotonic() - start, _results(folder / "whole")
    if code != 0:
        return 0, [f"the run that was not killed ended with {code}: {told}"]
    kills = run = 0
    while kills < count:
        out, ended = f"killed-{run}", False
        while not ended:
            process = _start(folder, out)
            moment = draw.uniform(0, lasts) if kills < count else None
            if moment is not None:
                kills += 1
                _kill_after(process, moment, draw.random() < 0.5)
            code, told = _end(process)
            ended = code == 0
            died = code == -signal.SIGKILL or (code == 1 and "A worker process died" in told)
            if not ended and not (died and moment is not None):
                faults.append(f"{out}: ended with {code}: {told[-300:]}")
                break
        if ended and _results(folder / out) != expected:
            faults.append(f"{out}: other results after --resume")
        if ended and (left := list((folder / out).rglob("*.half"))):
            faults.append(f"{out}: left behind {left}")
        tell(f"kills: {kills} of {count}, {run + 1} runs, {len(faults)} faults")
        run += 1
    return kills, faults


def _start(folder, out):
    command = [
        "compare",
        "--world",
        "toy.inter",
        "--quick",
        "--group-size",
        "4",
        "--arms",
        "recast",
        "sft",
        "--out",
        out,
    ]
    if (folder / out / "run.json").exists():
        command.append("--resume")
    return subprocess.Popen(
        [sys.executable, "-m", "recast_ref", *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _end(process):
    told = process.communicate()[0]
    return process.returncode, told


def _kill_after(process, seconds, worker):
    """Kill it, or one of its workers if there are some by then."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        workers = _workers(process.pid) if worker else []
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(random.choice(workers or [process.pid]), signal.SIGKILL)


def _workers(parent):
    listed = Path(f"/proc/{parent}/task/{parent}/children")
    children = listed.read_text().split() if listed.exists() else []
    return [int(pid) for pid in children if b"spawn_main" in _command_line(pid)]


def _command_line(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _results(folder):
    path = folder / "results.json"
    return _without_clock(json.loads(path.read_text())) if path.exists() else None


def _without_clock(record):
    if isinstance(record, dict):
        return {name: _without_clock(value) for name, value in record.items() if name not in CLOCK}
    return [_without_clock(value) for value in record] if isinstance(record, list) else record
