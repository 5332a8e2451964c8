"""The study's figures, from rows of ``study.csv``. The same rows draw the same file, byte by byte."""

import itertools
import math

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from . import matching, table

METRICS = ("pass@1", "sampled_p@1")
TOP = 150  # of the axis of matched budgets, in %
COLOURS = {
    "grpo": "#555555", "dapo": "#999999", "drgrpo": "#BBBBBB", "recast": "#D55E00", "recast-branch": "#0072B2",
    "repair": "#009E73", "contrast": "#CC79A7", "sft": "#E69F00", "sft-sqrt": "#000000", "hybrid": "#56B4E9",
    "hybrid-sqrt": "#882255", "grpo+sft": "#117733", "expected": "#AA4499", "base": "#DDDDDD", "popular": "#CCCCCC",
}  # fmt: skip


def save(figure, file):
    """As SVG, without a date and with names of its own that do not change."""
    with rc_context({"svg.hashsalt": "recast-ref"}):
        figure.savefig(file, format="svg", metadata={"Date": None})


def _panels(name, titles, height=3.4, **options):
    columns = min(len(titles), 3)
    lines = -(-len(titles) // columns)
    figure = Figure(figsize=(11, height * lines), layout="constrained")
    figure.set_label(name)
    axes = np.atleast_1d(figure.subplots(lines, columns, **options)).flatten()
    for axis, title in zip(axes, titles):
        axis.set_title(title, fontsize=10, parse_math=False)  # a $ in the name of a file is a $
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(titles) :]:
        axis.set_axis_off()
    return figure, axes


def _legend(figure, axes):
    found = {}
    for axis in axes:
        found |= dict(zip(*reversed(axis.get_legend_handles_labels())))
    if found:
        legend = figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=6, fontsize=8)
        for text in legend.get_texts():
            text.set_parse_math(False)


def _line(axis, x, rows, metric, name, **style):
    """Means with their intervals, in %."""
    y = np.array([100 * row[metric] for row in rows])
    low = np.array([100 * row.get(f"{metric} low", row[metric]) for row in rows])
    high = np.array([100 * row.get(f"{metric} high", row[metric]) for row in rows])
    error = np.maximum([y - low, high - y], 0)
    axis.errorbar(
        x,
        y,
        error,
        label=name,
        marker="o",
        markersize=3,
        linewidth=1.2,
        elinewidth=0.7,
        color=COLOURS.get(name),
        **style,
    )


def _order(rows, name):
    return list(dict.fromkeys(row[name] for row in rows if name in row))


def _points(rows, row):
    return [r for r in rows if r["kind"] == "point" and all(r[n] == row[n] for n in table.SETTINGS)]


def against_share(rows, name):
    """Each arm minus GRPO against the share of all-zero groups that the base policy starts with, a line in each world."""
    figure, axes = _panels(name, [f"{metric}, minus grpo" for metric in METRICS])
    start = {}
    for row in rows:
        if row["kind"] == "mean" and row["arm"] == "base" and "all_zero" in row:
            start[row["world"], row["regime"]] = 100 * row["all_zero"]
    for axis, metric in zip(axes, METRICS):
        axis.axhline(0, color=COLOURS["grpo"], linewidth=0.8)
        for arm, world in itertools.product(_order(rows, "arm"), _order(rows, "world")):
            mine = [r for r in rows if (r["kind"], r["arm"], r["world"]) == ("difference", arm, world) and metric in r]
            mine = [r for r in mine if r["reference"] == "grpo" and (world, r["regime"]) in start]
            mine.sort(key=lambda r: start[r["world"], r["regime"]])
            if mine and arm != "base":
                _line(axis, [start[world, r["regime"]] for r in mine], mine, metric, arm)
        axis.set(xlabel="% all-zero groups at the start", ylabel="points")
    _legend(figure, axes)
    return figure


def over_training(rows, name):
    """All-zero groups during training."""
    places = list(dict.fromkeys((r["world"], r["regime"]) for r in rows))
    figure, axes = _panels(name, [f"{w}, {r}" for w, r in places])
    for axis, (world, regime) in zip(axes, places):
        for row in rows:
            if (
                row["kind"] == "mean"
                and (row["world"], row["regime"]) == (world, regime)
                and row["arm"] not in ("base", "popular")
            ):
                points = [p for p in _points(rows, row) if "all_zero" in p]
                axis.plot(
                    [p["step"] for p in points],
                    [100 * p["all_zero"] for p in points],
                    label=row["arm"],
                    color=COLOURS.get(row["arm"]),
                    linewidth=1.2,
                )
        axis.set(xlabel="step", ylabel="% all-zero")
    _legend(figure, axes)
    return figure


def alphas(rows, arms):
    """Quality against alpha, a line for each place, minus the quality at alpha 0."""
    figure, axes = _panels("alpha", [f"{metric}, minus alpha 0" for metric in (*METRICS, "recall@10")])
    for axis, metric in zip(axes, (*METRICS, "recall@10")):
        for world, regime in dict.fromkeys((r["world"], r["regime"]) for r in rows):
            mine = {r["arm"]: r for r in rows if r["kind"] == "mean" and (r["world"], r["regime"]) == (world, regime)}
            found = [(i / 4, mine[arm]) for i, arm in enumerate(arms) if metric in mine.get(arm, {})]
            if found and arms[0] in mine:
                y = [100 * (row[metric] - mine[arms[0]][metric]) for _, row in found]
                axis.plot([x for x, _ in found], y, marker="o", markersize=3, label=f"{world}, {regime}")
        axis.set(xlabel="alpha", ylabel="points")
    _legend(figure, axes)
    return figure


def wrong_labels(rows):
    """Quality against the share of wrong labels."""
    figure, axes = _panels("wrong", METRICS)
    for axis, metric in zip(axes, METRICS):
        for arm in _order(rows, "arm"):
            mine = [
                (int(r["world"].partition("-")[2] or 0), r)
                for r in rows
                if r["kind"] == "mean" and r["arm"] == arm and metric in r
            ]
            mine.sort(key=lambda pair: pair[0])
            if mine:
                _line(axis, [x for x, _ in mine], [r for _, r in mine], metric, arm)
        axis.set(xlabel="% wrong labels", ylabel="%")
    _legend(figure, axes)
    return figure


def matched(rows, by, name):
    """Matched budgets with their intervals, log scale; what is never reached is left out."""
    metrics = ("pass@1", "recall@10", "sampled_p@1")
    figure, axes = _panels(name, metrics, sharey=True)
    values = sorted(_order(rows, by))
    for axis, metric in zip(axes, metrics):
        for arm in ("recast", "recast-branch"):
            found = [(value, matching.match(rows, arm, metric, **{by: value})) for value in values]
            found = [(value, *m) for value, m in found if m and m[1] is not None and 0 < m[0] < math.inf]
            x, share, low, high = (np.array(column) for column in zip(*found)) if found else ([],) * 4
            if found:
                error = 100 * np.stack([share - low, high.clip(max=TOP / 100) - share]).clip(min=0)
                axis.errorbar(
                    x, 100 * share, error, marker="o", markersize=4, elinewidth=0.7, label=arm, color=COLOURS[arm]
                )
        axis.axhline(4.1, color="#555555", linestyle=":", linewidth=0.8, label="the paper's 4.1 %")
        axis.set(
            xscale="log",
            yscale="log",
            xlabel={"group_size": "G"}.get(by, by),
            ylabel="% of GRPO's rollouts",
            ylim=(0.5, TOP),
        )
        axis.set_xticks(values, [str(value) for value in values])
        axis.set_yticks((1, 4.1, 10, 100), ("1", "4.1", "10", "100"))
        axis.minorticks_off()
    _legend(figure, axes)
    return figure


def reached_by(points, cost, limit):
    """The last of the points that cost no more than ``limit`` did."""
    return next((p for p in reversed(points) if p[cost] <= limit[cost]), points[0])


def curves(rows):
    """Quality on validation against seconds, a panel for each place."""
    curved = [r for r in rows if r["kind"] == "mean" and r["curve"] and r["arm"] not in ("base", "popular")]
    places = list(dict.fromkeys((r["world"], r["regime"]) for r in curved))
    figure, axes = _panels("pays", [f"{w}, {r}" for w, r in places] or ["no curves"])
    for axis, (world, regime) in zip(axes, places):
        for row in curved:
            longest = row["arm"] != "sft-sqrt" or row["passes"] > 1
            points = [p for p in _points(rows, row) if "pass@1" in p]
            if (row["world"], row["regime"]) == (world, regime) and points and longest:
                axis.plot(
                    [p["seconds"] for p in points],
                    [100 * p["pass@1"] for p in points],
                    label=row["arm"],
                    color=COLOURS.get(row["arm"]),
                    linewidth=1.2,
                )
        axis.set(xlabel="seconds", ylabel="pass@1, %")
    _legend(figure, axes)
    return figure


def whom(rows):
    """The share of groups without a hit by segment, for arms that put anchors there."""
    mine = [r for r in rows if r["kind"] == "segment" and "repaired" in r]
    places = list(dict.fromkeys((r["world"], r["segment"].rpartition(" ")[0]) for r in mine))
    figure, axes = _panels("whom", [f"{w}: {s}" for w, s in places] or ["no segments"])
    for axis, (world, name) in zip(axes, places):
        here = [r for r in mine if r["world"] == world and r["segment"].rpartition(" ")[0] == name]
        names = _order(here, "segment")
        for arm in _order(here, "arm"):
            shares = [
                next((100 * r["repaired"] for r in here if r["arm"] == arm and r["segment"] == s), np.nan)
                for s in names
            ]
            axis.plot(
                range(len(names)), shares, marker="o", markersize=3, label=arm, color=COLOURS.get(arm), linewidth=1.2
            )
        axis.set_xticks(range(len(names)), [n.rpartition(" ")[2] for n in names])
        axis.set(ylabel="% of groups without a hit", ylim=(0, 105))
    _legend(figure, axes)
    return figure
