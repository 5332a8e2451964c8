"""The tutorials run from top to bottom and print what they say they print; their exercises can be solved, and not by accident."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="the tutorials need pip install -e '.[tutorials]'")

FOLDER = Path(__file__).parents[1] / "tutorials"
TUTORIALS = sorted(FOLDER.glob("[0-9]*.md"))
TERMS = set(re.findall(r'<a id="([^"]+)">', (FOLDER / "glossary.md").read_text()))


def python(*arguments):
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=FOLDER.parent, timeout=1800, check=False)


def run_module():
    spec = importlib.util.spec_from_file_location("run", FOLDER / "run.py")
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    return run


def dead_links(text):
    """The links of a page, outside of its blocks, to a file that is not there or to a word that the glossary does not have."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    links = [link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", prose) if "://" not in link]
    own = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^##+ (.+)$", prose, re.M)
    }
    unknown = [link for link in links if link[0] in ("", "glossary.md") and link[2] not in {"", *TERMS, *own}]
    return ["".join(link) for link in links if not (FOLDER / link[0]).exists() or link in unknown]


def everything():
    """What the folder holds, and when it was written."""
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in FOLDER.rglob("*")}


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_prints_what_it_says_and_a_check_writes_nothing(path):
    before = everything()
    result = python("tutorials/run.py", "--check", path.name)
    assert result.returncode == 0, result.stdout + result.stderr
    after = everything()
    assert sorted(path for path in {*before, *after} if before.get(path) != after.get(path)) == []
    if skipped := re.search(f"^{path.name} skipped: (.*)", result.stderr, re.M):
        pytest.skip(skipped[1])


@pytest.mark.parametrize(
    "mark, then, now, apart",
    [
        (" of 1024", "G = 8: 97.7%", "G = 8: 97.1%", []),
        (" of 1024", "G = 8: 97.7%", "G = 8: 93.9%", ["93.9%"]),  # their difference has a standard error of 0.9 points
        (" of 64", "97.7%, 1,024 prompts, 0.3", "94.2%, 2 prompts, 0.9", []),
        (" of 64", "0%", "29%", ["29%"]),
        (" ±0.5", "-6.5, 98.2%, 8", "-6.9, 97.7%, 9", []),
        (" ±0.5", "-6.5, 98.2%", "6.5, 97.5%", ["6.5", "97.5%"]),
        (" of 64 ±0.05", "50%, 0.11, 0.70", "40%, 0.17, 0.62", ["0.62"]),  # the last digit may be one more apart
        (" ±20%", "0.100, 10.0%", "0.120, 13.0%", ["13.0%"]),
        (" ±1.0", "1.0", "nan", None),
        (" ±1.0", "a 1.0", "b 1.0", None),
        (" of many", "1%", "1%", ["text measured of many"]),
        ("", "418 ms, 1.5x", "8 ms, 100.5x", []),
    ],
)
def test_what_a_mark_allows(mark, then, now, apart):
    run = run_module()
    before, after = (f"prose of 3\n\n```text measured{mark}\n{printed}\n```\n" for printed in (then, now))
    assert (run.words(before) == run.words(after)) == (apart is not None)
    if apart is not None:
        lines = list(run.out_of_bounds(before, after))
        assert len(lines) == len(apart) and all(map(str.startswith, lines, apart))


def test_of_what_is_drawn_the_names_are_held():
    run = run_module()
    text = "```text drawn\n{}  BROKEN: sums to {}\n    i  r\n    0  {}\n{}```\n"
    same = [run.words(text.format("zero_sum", *each)) for each in (("1", "0", ""), ("2", "7", "prompt 0\n"))]
    assert same[0] == same[1] != run.words(text.format("signs", "1", "0", ""))


FOLDED = """\
Four words of prose.

<details><summary>The code</summary>

```python
x = 1

print(x)
```

</details>

```text
{}
```

![a picture](x.svg)

```console
pytest
```
"""


def test_folded_code_is_a_cell_whose_output_is_seen_and_not_read(tmp_path):
    run = run_module()
    path = tmp_path / "folded.md"
    for before in (FOLDED.format("stale"), FOLDED.replace("```text\n{}\n```\n\n", "")):
        path.write_text(before)
        assert run.run(path) == FOLDED.format(1)
    assert [cell.source for cell in jupytext.read(path).cells if cell.cell_type == "code"] == ["x = 1\n\nprint(x)"]
    prose, code, printed, minutes = run.reading(FOLDED.format(1))
    assert (prose, code, printed) == (6, 1, 1) and minutes == pytest.approx(6 / 220 + 1 / 10 + 1 / 20)
    unfolded = FOLDED.format(1).replace("<details><summary>The code</summary>\n", "").replace("</details>\n", "")
    assert run.reading(unfolded)[:3] == (6, 3, 1)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_is_a_notebook_and_its_links_lead_somewhere(path):
    text = path.read_text()
    cells = [cell.source for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    assert cells == [code.rstrip("\n") for code in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)] and cells
    assert dead_links(text) == []


def test_all_are_read_in_three_hours_and_none_takes_more_than_25_minutes():
    run = run_module()
    minutes = {path.stem: run.reading(path.read_text())[3] for path in TUTORIALS}
    assert max(minutes.values()) <= 25 and sum(minutes.values()) <= 180, minutes


@pytest.mark.parametrize("name", ["glossary.md", "cuda.md", "README.md"])
def test_the_links_of_the_other_pages_lead_somewhere(name):
    assert dead_links((FOLDER / name).read_text()) == []


def test_excerpts_from_the_sources_say_what_these_say():
    sources = [path.read_text() for path in (FOLDER.parent / "csrc").rglob("*") if path.is_file()]
    sources = ["".join(text.split()) for text in sources]
    pages = "\n".join(path.read_text() for path in FOLDER.glob("*.md"))
    excerpts = re.findall(r"^```cpp\n(.*?)^```$", pages, re.M | re.S)
    assert excerpts
    assert [excerpt for excerpt in excerpts if not any("".join(excerpt.split()) in text for text in sources)] == []


def test_every_exercise_has_a_solution_and_is_not_yet_done():
    solved = python("-m", "pytest", "-q", "tutorials/exercises", "--solutions")
    assert solved.returncode == 0, solved.stdout
    open_ = python("-m", "pytest", "-q", "tutorials/exercises")
    assert re.search(r"\d+ failed", open_.stdout) and "passed" not in open_.stdout, open_.stdout


@pytest.mark.parametrize("line, module", [("<!-- needs: no_such -->", "no_such"), ("<!-- needs: torch -->", None)])
def test_a_tutorial_says_in_its_first_line_what_it_needs(tmp_path, line, module):
    spec = importlib.util.spec_from_file_location("run", FOLDER / "run.py")
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    path = tmp_path / "some.md"
    path.write_text(f"{line}\n# A tutorial\n")
    assert run.missing(path) == module
