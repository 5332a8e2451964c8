"""Runs the tutorials from top to bottom and writes what they print, and their figures, anew.

    python tutorials/run.py              # all of them
    python tutorials/run.py 02 05        # some
    python tutorials/run.py --check      # write nothing; fail where what is printed is not what the text says
    python tutorials/run.py --time       # run nothing; say how long each takes to read

A cell is a ``python`` block; the ``text`` block after it holds what it prints. Code that a reader may skip is folded, between
``<details><summary>...</summary>`` and ``</details>``, with empty lines around; what it prints stands after ``</details>``.

``--check`` compares what is printed with the text letter by letter. That would be wrong for what a clock says, and for what a
trained policy says: with the same seeds another processor rounds otherwise, and after some updates that is another policy. Such
a block is marked ``text measured``. Of it ``--check`` compares the words, and of the numbers what the mark holds them to (a
reader does not see the mark):

    measured of 1024        percentages are shares of 1024 draws
    measured ±0.5           numbers with a decimal point, and percentages unless ``of`` is there, may be 0.5 apart
    measured ±20%           or 20 % of the larger one
    measured of 1024 ±0.5   both
    measured                no number is held: those of a clock
    drawn                   counterexamples as hypothesis drew and shrank them: another version of it, or another number anywhere in
                            our sources, draws others. Of each line only the name that begins it is compared, such as a law's

Two shares of N draws may be four standard errors of their difference apart, 4 sqrt(2 p (1 - p) / N); the mean of N values from
0 to 1 is no noisier. What stands after ± is about four standard deviations over seeds, as seen when it was written. The last
digit may be one more apart, since both numbers were rounded. What the prose concludes is an ``assert`` in a cell.

A tutorial that needs more than the extra ``tutorials`` says so in its first line, ``<!-- needs: trl -->``: a module,
which is the name of its extra too. Where it is missing the tutorial is skipped, and a line says so.
"""

import argparse
import contextlib
import difflib
import importlib.util
import io
import linecache
import math
import os
import re
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
CELL = re.compile(
    r"^```python\n(?P<code>.*?)^```\n(?P<fold>\n</details>\n)?"
    r"(?:\n```text(?P<mark> (?:measured|drawn)[^\n]*)?\n(?P<printed>.*?)^```\n)?",
    re.M | re.S,
)
MEASURED = re.compile(r"^```text measured(?P<mark>[^\n]*)\n(?P<printed>.*?)^```\n", re.M | re.S)
DRAWN = re.compile(r"^```text drawn\n(?P<printed>.*?)^```\n", re.M | re.S)
OF_THE_EXAMPLE = ("prompt", "which", "order")  # begin a line of a counterexample, if it has more than one, or an order
MARK = re.compile(r"(?: of (?P<draws>\d+))?(?: ±(?P<apart>[\d.]+)(?P<relative>%?))?")
FOLDED = re.compile(r"^<details>.*?^</details>$", re.M | re.S)
BLOCK = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<lines>.*?)^```$", re.M | re.S)
NUMBER = re.compile(r"(?<![\w.])[+-]?\d[\d,]*(?:\.(?P<decimals>\d+))?(?P<percent>%?)")


def run(path):
    """The text of a tutorial with what its cells print now. An error says which line of the file it comes from."""
    text, names, parts, end = path.read_text(), {"__name__": "__main__"}, [], 0
    for cell in CELL.finditer(text):
        # Under a name of its own, where tracebacks and torch.compile find the code and not the prose around it.
        source, name = "\n" * text[: cell.start("code")].count("\n") + cell["code"], f"<{path.name}, {len(parts)}>"
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        code = compile(source, name, "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        parts += [text[end : cell.start()], f"```python\n{cell['code']}```\n{cell['fold'] or ''}"]
        if printed.getvalue():
            parts.append(f"\n```text{cell['mark'] or ''}\n{printed.getvalue().rstrip()}\n```\n")
        end = cell.end()
    return "".join([*parts, text[end:]])


def missing(path):
    """The module that a tutorial needs and that is not installed, or None."""
    needs = re.match(r"<!-- needs: (\w+) -->\n", path.read_text())
    return needs[1] if needs and importlib.util.find_spec(needs[1]) is None else None


def words(text):
    """The text without the numbers of its measured blocks, and without the spaces that line them up; of drawn blocks the names."""

    def names(block):
        return "\n".join(
            name for name in re.findall(r"^[a-z_]{3,}", block["printed"], re.M) if name not in OF_THE_EXAMPLE
        )

    text = DRAWN.sub(names, text)
    return MEASURED.sub(lambda block: re.sub(r" *#", "#", NUMBER.sub("#", block[0])), text)


def out_of_bounds(before, after):
    """The numbers of measured blocks that are further apart than the mark allows: a line about each. The words agree."""
    for then, now in zip(MEASURED.finditer(before), MEASURED.finditer(after)):
        mark = MARK.fullmatch(then["mark"])
        if not mark:
            yield f"text measured{then['mark']}: expected ' of N', ' ±x' or ' ±x%' after it, or both, or nothing"
            continue
        for was, got in zip(NUMBER.finditer(then["printed"]), NUMBER.finditer(now["printed"])):
            a, b = (float(number[0].rstrip("%").replace(",", "")) for number in (was, got))
            if was["percent"] and mark["draws"]:
                p = (a + b) / 200
                allowed = 400 * math.sqrt(2 * p * (1 - p) / int(mark["draws"]))
            elif mark["apart"] and (was["decimals"] or was["percent"]):
                allowed = float(mark["apart"]) * (max(abs(a), abs(b)) / 100 if mark["relative"] else 1)
            else:
                continue
            if not abs(a - b) <= allowed + 1.01 * 10 ** -len(was["decimals"] or ""):
                yield f"{got[0]} now, {was[0]} in the text: more than {allowed:.2g} apart (measured{then['mark']})"


def reading(text):
    """What there is to read: words of prose, lines of code, lines of output, and the minutes that they take.

    220 words, 10 lines of code or 20 lines of output a minute. What is folded is not read, and empty lines take no time.
    """
    text = FOLDED.sub("", text)
    lines = {True: 0, False: 0}
    for block in BLOCK.finditer(text):
        lines[block["language"] == "text"] += sum(map(bool, block["lines"].split("\n")))
    prose = len(BLOCK.sub("", text).split())
    return prose, lines[False], lines[True], prose / 220 + lines[False] / 10 + lines[True] / 20


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="beginnings of file names, such as 02 (default: all)")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--time", action="store_true", help="run nothing, and say how long each takes to read")
    options = parser.parse_args()
    sys.excepthook = traceback.print_exception  # shows the line of a cell, which the built-in one does not find
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the work is small: threads would wait for each other
    paths = sorted(
        path for path in HERE.glob("[0-9]*.md") if not options.names or path.name.startswith(tuple(options.names))
    )
    if not paths:
        parser.error(f"no tutorial begins with {' or '.join(options.names)}")
    if options.time:
        total = 0
        print("                     words   code  output  minutes")
        for path in paths:
            prose, code, printed, minutes = reading(path.read_text())
            total += minutes
            print(f"{path.stem:20}{prose:6,}{code:7}{printed:8}{minutes:9.1f}")
        print(f"{'all':20}{total:30.1f}")
        return 0
    differs = False
    with tempfile.TemporaryDirectory() as copy:
        # Cells save figures beside the text. With --check, beside a copy of it.
        os.chdir(shutil.copytree(HERE, Path(copy, "tutorials")) if options.check else HERE)
        for path in paths:
            if module := missing(path):
                print(f'{path.name} skipped: needs pip install -e ".[tutorials,{module}]"', file=sys.stderr, flush=True)
                continue
            print(f"{path.name} ...", file=sys.stderr, flush=True)
            before, after = path.read_text(), run(path)
            if not options.check:
                path.write_text(after)
            elif words(before) != words(after):
                differs = True
                lines = (words(text).splitlines() for text in (before, after))
                print(*difflib.unified_diff(*lines, path.name, "printed now", lineterm=""), sep="\n")
            elif lines := list(out_of_bounds(before, after)):
                differs = True
                print(f"{path.name}:", *lines, sep="\n    ")
        os.chdir(HERE)  # a folder that is in use cannot be removed everywhere
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
