"""What ``recast-ref study`` shows in the terminal: a line for each run, a progress bar with an estimate, and where the report is."""

import shlex
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..console import fresh
from ..reading import printable
from ..workers import cores
from . import report, table
from .running import run_cells


def study(parts, chosen, scale, options, command):
    """Run the chosen parts; write ``study.csv`` and the report of all that is finished, also if it is interrupted.

    Args:
        parts: ``{name: (question, cells)}``.
        chosen: names of those that are run now.
        options: has ``out`` (or ``None``: a new folder in ``runs/``), ``world`` (a list of paths), ``resume`` and ``quick``.
        command: that starts such a study, to be told to who interrupts it.

    Returns:
        exit code: 0; 1 if a worker died; 130 if interrupted.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    out = Path(options.out) if options.out else fresh(f"study{'-quick' if options.quick else ''}")

    def say(line):
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)

    cells = [cell for name in chosen for cell in parts[name][1]]
    say(f"{len(set(cells))} cells of {', '.join(chosen)}; results go to {out}")
    bar = Progress(TextColumn("running"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
                   console=console, speed_estimate_period=900)  # fmt: skip
    start, told = time.monotonic(), False
    try:
        with bar:
            task = bar.add_task("", total=None)

            def on_progress(done, total, line):
                nonlocal told
                if not told:
                    say(f"About {total / 3600 / cores():.1f} hours on {cores()} idle core{'s' * (cores() > 1)}")
                    told = True
                bar.update(task, completed=done, total=total)
                if line:
                    say(line)

            run_cells(
                cells,
                scale,
                out,
                options.resume,
                on_progress,
                lambda results: write(parts, results, out),
                options.world,
            )
    except KeyboardInterrupt:
        say(
            f"Interrupted; {out / 'study.csv'} holds what is finished. To continue: {command} --resume --out {shlex.quote(str(out))}"
        )
        return 130
    except BrokenProcessPool:
        say(f"A worker process died; was memory short? To continue: {command} --resume --out {shlex.quote(str(out))}")
        return 1
    say(f"{time.monotonic() - start:.0f} seconds. Wrote {out / 'study.csv'} and {out / 'study.md'}")
    return 0


def write(parts, results, out):
    """``study.csv`` of every finished cell, and the report of that file."""
    table.save(out / "study.csv", table.rows(parts, results))
    report.write(table.read(out / "study.csv"), out)
