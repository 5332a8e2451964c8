"""Runs the tutorials from top to bottom and writes what they print, and their figures, anew.

    python tutorials/run.py              # all of them
    python tutorials/run.py 02 05        # some
    python tutorials/run.py --check      # write nothing; fail where what is printed is not what the text says

A cell is a ``python`` block; the ``text`` block after it holds what it prints. Where that is marked ``text measured`` its
numbers are of one machine, and only the words are compared.
"""

import argparse
import contextlib
import difflib
import io
import linecache
import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CELL = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text(?P<measured> measured)?\n(?P<printed>.*?)^```\n)?", re.M | re.S)


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
        parts += [text[end : cell.start()], f"```python\n{cell['code']}```\n"]
        if printed.getvalue():
            parts.append(f"\n```text{cell['measured'] or ''}\n{printed.getvalue().rstrip()}\n```\n")
        end = cell.end()
    return "".join([*parts, text[end:]])


def comparable(text):
    """The text with the numbers of measured blocks taken out."""

    def without_numbers(block):
        return re.sub(r"[ \d.]*\d[ \d.]*", "#", block[0])

    return re.sub(r"^```text measured\n.*?^```\n", without_numbers, text, flags=re.M | re.S)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="beginnings of file names, such as 02 (default: all)")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    options = parser.parse_args()
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the work is small: threads would wait for each other
    os.chdir(HERE)  # figures are saved beside the text
    paths = sorted(path for path in HERE.glob("[0-9]*.md") if not options.names or path.name.startswith(tuple(options.names)))
    if not paths:
        parser.error(f"no tutorial begins with {' or '.join(options.names)}")
    differs = False
    for path in paths:
        print(f"{path.name} ...", file=sys.stderr, flush=True)
        before, after = path.read_text(), run(path)
        if not options.check:
            path.write_text(after)
        elif comparable(before) != comparable(after):
            differs = True
            print(*difflib.unified_diff(before.splitlines(), after.splitlines(), path.name, "printed now", lineterm=""), sep="\n")
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
