"""The tutorials run from top to bottom and print what they say they print; their exercises can be solved, and not by accident."""

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="the tutorials need pip install -e '.[tutorials]'")

FOLDER = Path(__file__).parents[1] / "tutorials"
TUTORIALS = sorted(FOLDER.glob("[0-9]*.md"))


def python(*arguments):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=FOLDER.parent, timeout=600)


@pytest.fixture(scope="module")
def runs():
    """Every tutorial that is to be tested, run in a process of its own, one on each core: what came out, and the seconds."""

    def run(path):
        start = time.perf_counter()
        return python("tutorials/run.py", "--check", path.name), time.perf_counter() - start

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {path: pool.submit(run, path) for path in TUTORIALS}


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_prints_what_it_says(runs, path):
    result, seconds = runs[path].result()
    assert result.returncode == 0, result.stdout + result.stderr
    assert seconds < 150, "it is to take a minute on an idle machine"


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_is_a_notebook_and_its_links_lead_somewhere(path):
    text = path.read_text()
    cells = [cell.source for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    assert cells == [code.rstrip("\n") for code in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)] and cells
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", prose) if "://" not in link]
    assert [link for link in links if not (FOLDER / link).exists()] == []


def test_every_exercise_has_a_solution_and_is_not_yet_done():
    solved = python("-m", "pytest", "-q", "tutorials/exercises", "--solutions")
    assert solved.returncode == 0, solved.stdout
    open_ = python("-m", "pytest", "-q", "tutorials/exercises")
    assert re.search(r"\d+ failed", open_.stdout) and "passed" not in open_.stdout, open_.stdout
