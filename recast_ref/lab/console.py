"""What ``recast-ref compare`` shows in the terminal: a progress bar, then one table."""

import shlex
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from . import checkpoints, experiment, report, summary
from .reading import printable


def compare(world, settings, options, command):
    """Run the experiment with a progress bar; print the table; write ``results.json`` and ``report.html``.

    Args:
        options: has ``out`` (or ``None``: a new folder in ``runs/``), ``resume`` and ``quick``.
        command: that starts such a run, to be told to who interrupts it.

    Returns:
        exit code: 0; 1 if a worker died or training diverged; 130 if interrupted.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a log file or a pipe has no width of its own: do not fold the table
    out = Path(options.out) if options.out else fresh_folder(world, settings, options.quick)

    def say(line):
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)

    say(world.describe())
    for note in world.notes:
        say(f"  {note}")
    groups = f"G = {settings.group_size} by {'beam search' if settings.rollout == 'beam' else 'sampling'}"
    say(f"{groups}, {summary.seeds_text(settings.seeds)}, arms: {' '.join(settings.arms)}. Results go to {out}")

    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    go_on = f"To continue: {command} --resume --out {shlex.quote(str(out))}"
    try:
        with bar:
            task = bar.add_task("", total=1.0)

            def on_progress(done, total, line):
                bar.update(task, completed=done, total=total)
                if line:
                    say(line)

            def finish(results):
                checkpoints.save_text(out / "report.html", report.render(results))

            results = experiment.compare(world, settings, out, options.resume, on_progress, finish)
    except KeyboardInterrupt:
        say(f"Interrupted. {go_on}")
        return 130
    except BrokenProcessPool:
        say(f"A worker process died; was memory short? {go_on}")
        return 1
    except FloatingPointError as error:
        say(f"Training diverged: {error}")
        return 1
    console.print(table(results, console))
    for line in summary.legend(results):
        say(line)
    say(f"Wrote {out / 'results.json'} and {out / 'report.html'}")
    return 0


def fresh_folder(world, settings, quick):
    """A new folder for a run of ``compare``."""
    return fresh(f"{world.name}-g{settings.group_size}{'-quick' if quick else ''}")


def fresh(name):
    """Make ``runs/NAME``, or the same with the next free number."""
    folder, number = Path("runs") / name, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = Path("runs") / f"{name}-{number}"


def table(results, console):
    """The comparison as a table; on a narrow terminal without its least important columns."""
    headers, rows = summary.table(results)
    droppable = [name for name in summary.LEAST_IMPORTANT if name in headers]
    while True:
        shown = Table(title=Text(summary.title(results)), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for i, header in enumerate(headers):
            header = header.replace(" ", "\n").replace("@", "\n@") if i else header
            shown.add_column(header, justify="right" if i else "left", no_wrap=True, vertical="bottom")
        for row in rows:
            shown.add_row(*map(Text, row))
        needed = console.measure(shown, options=console.options.update(width=1000)).maximum
        if needed <= console.width or not droppable:
            return shown
        drop = headers.index(droppable.pop(0))
        headers, *rows = ([*row[:drop], *row[drop + 1 :]] for row in (headers, *rows))
