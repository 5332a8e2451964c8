"""What ``recast-ref compare`` shows in the terminal: a progress bar, then one table."""

from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from . import checkpoints, experiment, report

QUALITY = ("pass@1", "recall@10", "recall@32", "sampled_p@1")


def compare(world, settings, options):
    """Run the experiment with a progress bar; print the table; write ``results.json`` and ``report.html``.

    Returns:
        exit code: 0, or 130 if interrupted.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a log file or a pipe has no width of its own: do not fold the table
    out = Path(options.out) if options.out else fresh_folder(world, settings, options.quick)
    console.print(world.describe(), highlight=False)
    for note in world.notes:
        console.print(f"  {note}", highlight=False)
    groups = f"G = {settings.group_size} by {'beam search' if settings.rollout == 'beam' else 'sampling'}"
    console.print(f"{groups}, {_seeds(settings.seeds)}, arms: {' '.join(settings.arms)}. Results go to {out}", highlight=False)

    bar = Progress(
        TextColumn("training"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn(), console=console
    )
    try:
        with bar:
            task = bar.add_task("", total=1.0)

            def on_progress(done, total, line):
                bar.update(task, completed=done, total=total)
                if line:
                    bar.console.print(line, highlight=False)

            results = experiment.compare(world, settings, out, options.resume, on_progress)
    except KeyboardInterrupt:
        console.print(f"Interrupted. To continue, give the same command with: --resume --out {out}", highlight=False)
        return 130
    checkpoints.save_text(out / "report.html", report.render(results))
    console.print(table(results))
    for line in legend(results):
        console.print(line, highlight=False)
    console.print(f"Wrote {out / 'results.json'} and {out / 'report.html'}", highlight=False)
    return 0


def fresh_folder(world, settings, quick):
    """``runs/NAME``, or with the next free number."""
    name = f"{world.name}-g{settings.group_size}{'-quick' if quick else ''}"
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


HEADERS = (
    *("arm", "pass@1", "vs grpo", "recall@10", "vs grpo", "recall@32", "sampled p@1"),
    *("update ms", "peak MB", "to match"),
)
RELATIVE = ("pass@1", "recall@10")


def rows(results):
    """The comparison as text, a row per arm under ``HEADERS``, the base policy first."""
    grpo = results["arms"].get("grpo")
    table = []
    for arm, records in {"base": results["base"], **results["arms"]}.items():
        row = [arm]
        for metric in QUALITY:
            mean, spread = experiment.mean_and_spread(records, metric)
            row.append(f"{mean * 100:.2f}" + ("" if spread is None else f" ±{spread * 100:.2f}"))
            if metric in RELATIVE:
                baseline = experiment.mean_and_spread(grpo, metric)[0] if grpo else 0
                row.append(f"{mean / baseline - 1:+.0%}" if baseline and arm != "grpo" else "")
        for name, scale, digits in (("actor_update_seconds", 1e3, 0), ("peak_update_bytes", 1e-6, 1)):
            values = [value for r in records.values() if (value := r["final"].get(name)) is not None]
            row.append(f"{sum(values) / len(values) * scale:.{digits}f}" if values else "")
        budget = results["matched_budget"].get("recall@10", {}).get(arm)
        row.append("" if budget is None else "never" if budget["share"] is None else f"{budget['share']:.1%}")
        table.append(row)
    return table


def table(results):
    """The comparison as a table for the terminal."""
    shown = Table(title=title(results), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, header in enumerate(HEADERS):
        shown.add_column(header.replace(" ", "\n").replace("l@", "l\n@"), justify="right" if i else "left", no_wrap=not i, vertical="bottom")
    for row in rows(results):
        shown.add_row(*row)
    return shown


def title(results):
    settings = results["settings"]
    return f"{results['world']['name']}, G = {settings['group_size']}, {_seeds(settings['seeds'])}"


def _seeds(count):
    return f"{count} seed{'s' if count > 1 else ''}"


def legend(results):
    """What the table's columns mean, a line each."""
    seeds = results["settings"]["seeds"]
    lines = [
        f"Quality in %, over the test pairs: mean{' ± standard deviation' if seeds > 1 else ''} over {_seeds(seeds)}"
        + (", and the change relative to grpo." if "grpo" in results["arms"] else "."),
        "Update, peak: old, reference and actor passes of one step, each prompt read once for its group, one thread.",
    ]
    if results["matched_budget"]:
        lines.append("To match: rollouts to reach grpo's final recall@10 on validation, as a share of grpo's rollouts.")
    cells = {(cell["layout"], cell["update"]): cell for cell in results["cost"]}
    for layout in dict.fromkeys(cell["layout"] for cell in results["cost"]):
        group, pair = cells[layout, "group"], cells[layout, "pair"]
        lines.append(
            f"Cost of one update, {layout}: the pair is {group['seconds'] / pair['seconds']:.1f}x faster than the group of "
            f"{group['responses']} and needs {group['peak_bytes'] / pair['peak_bytes']:.1f}x less memory."
        )
    return lines
