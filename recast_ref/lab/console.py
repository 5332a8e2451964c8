"""What ``recast-ref compare`` shows in the terminal: a progress bar, then one table."""

from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from . import checkpoints, experiment, report, summary


def compare(world, settings, options):
    """Run the experiment with a progress bar; print the table; write ``results.json`` and ``report.html``.

    Args:
        options: has ``out`` (or ``None``: a new folder in ``runs/``), ``resume`` and ``quick``.

    Returns:
        exit code: 0; 1 if a worker died or training diverged; 130 if interrupted.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a log file or a pipe has no width of its own: do not fold the table
    out = Path(options.out) if options.out else fresh_folder(world, settings, options.quick)

    def say(line):
        console.print(line, highlight=False, markup=False, soft_wrap=True)

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
    go_on = f"To continue, give the same command with: --resume --out {out}"
    try:
        with bar:
            task = bar.add_task("", total=1.0)

            def on_progress(done, total, line):
                bar.update(task, completed=done, total=total)
                if line:
                    say(line)

            results = experiment.compare(world, settings, out, options.resume, on_progress)
        checkpoints.save_text(out / "report.html", report.render(results))
    except KeyboardInterrupt:
        say(f"Interrupted. {go_on}")
        return 130
    except BrokenProcessPool:
        say(f"A worker process died; was memory short? {go_on}")
        return 1
    except FloatingPointError as error:
        say(f"Training diverged: {error}")
        return 1
    console.print(table(results))
    for line in summary.legend(results):
        say(line)
    say(f"Wrote {out / 'results.json'} and {out / 'report.html'}")
    return 0


def fresh_folder(world, settings, quick):
    """Make ``runs/NAME``, or the same with the next free number."""
    name = f"{world.name}-g{settings.group_size}{'-quick' if quick else ''}"
    folder, number = Path("runs") / name, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = Path("runs") / f"{name}-{number}"


def table(results):
    """The comparison as a table for the terminal."""
    shown = Table(title=summary.title(results), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, header in enumerate(summary.HEADERS):
        header = header.replace(" ", "\n").replace("l@", "l\n@")
        shown.add_column(header, justify="right" if i else "left", no_wrap=not i, vertical="bottom")
    for row in summary.rows(results):
        shown.add_row(*row)
    return shown
