"""The command line as a user meets it: a subprocess, its output and exit code. And the README, as printed."""

import doctest
import importlib
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import recast_ref
from recast_ref.explain import explain

README = Path(__file__).parents[1] / "README.md"


def run(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "recast_ref", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=1800,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "{compare,study,explain,check,bench,info}"),
        (["compar"], "invalid choice: 'compar'"),
        (["compare", "--seed", "3"], "unknown argument --seed (did you mean --seeds?)"),
        (["compare", "--seeds", "0"], "--seeds: expected a whole number from 1 to 1,000, got '0'"),
        (["compare", "--group-size", "1"], "--group-size: expected a whole number from 2 to 1,024, got '1'"),
        (
            ["compare", "--group-size", "100000000"],
            "--group-size: expected a whole number from 2 to 1,024, got '100000000'",
        ),
        (["compare", "--group-size", "9" * 5000], "--group-size: expected a whole number from 2 to 1,024, got '999"),
        (["compare", "--world", "no\nplace"], r"no world at 'no\nplace'"),
        (["compare", "--out", "/proc/no/such"], "recast-ref: /proc/no: No such file or directory\n"),
        (["compare", "--arms", "grop"], "no arm grop (did you mean grpo?)"),
        (["compare", "--arms", "grpo,sftt", "recast"], "no arm sftt (did you mean sft?)"),
        (["compare", "--arms", ","], "--arms: expected some of grpo recast"),
        (["compare", "--world", "no/such/place"], "no world at 'no/such/place'"),
        (["compare", "--world", "sythetic"], "(did you mean synthetic?)"),
        (["compare", "--world", ""], "no world at"),
        (["compare", "--resume"], "--resume needs --out DIR"),
        (["compare", "--out", "here", "--resume"], "here holds no run to resume"),
        (["compare", "--out", __file__], "test_cli.py: not a folder"),
        (["compare", "--out", str(Path(__file__).parent)], "tests holds other files"),
        (["compare", "--all-zero", "0"], "--all-zero: expected a percentage such as 94, or converged, got '0'"),
        (["study", "--only", "mapp"], "no part mapp (did you mean map?)"),
        (["study", "--world", "no/such/place"], "no world at 'no/such/place'"),
        (["study", "--resume"], "--resume needs --out DIR"),
        (["study", "--out", "here", "--resume"], "here holds no study to resume"),
        (["study", "--report", "no/such/place"], "study.csv: No such file or directory"),
        (["bench", "--out", "/dev/fd/1"], "--out /dev/fd/1: expected the name of a file"),
        (["bench", "--out", "."], "--out .: expected the name of a file"),
        (["explain", "more"], "unknown argument more"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(arguments, words, tmp_path):
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert words in result.stderr and result.stderr.count("\n") == 1


def test_a_folder_with_several_worlds_is_one_line_that_says_what_to_type(tmp_path):
    (tmp_path / "My data").mkdir()
    for name in ("Office", "Toys"):
        (tmp_path / "My data" / f"{name}.index.json").touch()
    result = run("compare", "--world", "My data", cwd=tmp_path)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "--world 'My data/Office.index.json' or --world 'My data/Toys.index.json'" in result.stderr


def test_info():
    result = run("info")
    assert result.returncode == 0
    for fact in (recast_ref.__version__, torch.__version__, np.__version__, "cpu", "reference", "fast"):
        assert fact in result.stdout


def test_explain_is_the_readme_example():
    result = run("explain")
    assert result.returncode == 0 and result.stdout == explain() + "\n"
    shown = re.search(r"^```text\n(.*?)```", README.read_text(encoding="utf-8"), re.M | re.S)[1]
    assert len(shown) > 1000 and explain().startswith(shown)


def test_compare_from_files_to_report(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    lines += [f"u{u}\ti{i}\t{t}" for u in range(80) for t, i in enumerate(rng.integers(120, size=8))]
    (tmp_path / "toy[bold red]x.inter").write_text("\n".join(lines) + "\n")
    command = [
        "compare",
        "--world",
        "toy[bold red]x.inter",
        "--quick",
        "--group-size",
        "4",
        "--seeds",
        "2",
        "--arms",
        "grpo,recast",
        "sft,",
    ]
    result = run(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "toy[bold red]x: " in result.stdout and "toy[bold red]x, G = 4" in result.stdout
    out = tmp_path / "runs" / "toy[bold red]x-g4-quick"
    results = json.loads((out / "results.json").read_text())
    assert list(results["arms"]) == ["grpo", "recast", "sft"]
    for name in ("popular", "base", *results["arms"]):
        assert re.search(rf"^ {name} +\d", result.stdout, re.MULTILINE)
    html = (out / "report.html").read_text()
    assert html.count('<img src="data:image/svg+xml;base64,') == 5
    assert not re.search(r"(src|href)=\"(?!data:)", html)  # nothing to fetch
    again = run(*command, "--out", str(out), cwd=tmp_path)
    assert again.returncode == 2 and "already holds a run" in again.stderr
    finished = run(*command, "--out", str(out), "--resume", cwd=tmp_path)
    assert finished.returncode == 0
    assert json.loads((out / "results.json").read_text())["arms"] == results["arms"]


def test_study_from_the_command_line_to_the_report_and_back(tmp_path):
    command = ["study", "--quick", "--only", "map,wrong", "--out", "out"]
    result = run(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"About \d+\.\d hours on \d+ idle cores?\n", result.stdout)
    assert "sparse_99_sft-sqrt_g8_w64_x1_likeliest_lr0.001_seed0: validation pass@1" in result.stdout
    made = (tmp_path / "out" / "study.md").read_bytes()
    assert b"Which arm at which share" in made and b"What do wrong labels do?" in made
    again = run(*command, cwd=tmp_path)
    assert again.returncode == 2 and "already holds a study: add --resume" in again.stderr
    finished = run(*command, "--resume", cwd=tmp_path)
    assert finished.returncode == 0 and "validation pass@1" not in finished.stdout  # nothing was left to do
    (tmp_path / "out" / "study.md").unlink()
    assert run("study", "--report", "out", cwd=tmp_path).returncode == 0
    assert (tmp_path / "out" / "study.md").read_bytes() == made
    listed = run("study", "--list")
    assert listed.returncode == 0 and re.search(r"^map +\d+ cells  Which arm", listed.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "name", [m.name for m in pkgutil.walk_packages(recast_ref.__path__, "recast_ref.") if "__main__" not in m.name]
)
def test_examples_in_docstrings(name):
    if name.startswith("recast_ref.trainers.trl"):
        pytest.importorskip("trl", reason="TRL's trainer needs pip install -e '.[trl]'")
    if name.startswith("recast_ref.trainers.verl"):
        pytest.importorskip("verl", reason="verl's trainer needs pip install -e '.[verl]'")
    if name == "recast_ref.trainers.onerec":
        pytest.importorskip("recipe.onerec", reason="needs OpenOneRec's checkout, see tests/onerec_seam.py")
    result = doctest.testmod(importlib.import_module(name), extraglobs={"torch": torch})
    assert result.failed == 0
    assert result.attempted or name.rpartition(".")[2] not in (
        "repairing",
        "contrasting",
        "recasting",
        "branching",
        "anchoring",
        "hybrid",
        "losses",
        "memory",
        "sids",
        "pairs",
    )


def test_the_core_needs_torch_and_numpy_only():
    """Importing the package, the reference and the command line must not import an extra."""
    code = (
        "import sys, recast_ref, recast_ref.reference, recast_ref.cli, recast_ref.explain;"
        "print([m for m in ('rich', 'matplotlib', 'jinja2', 'sklearn', 'scipy', 'hypothesis') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
