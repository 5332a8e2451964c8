"""``report.html``: the results as plots and a table, in one file that needs nothing else."""

import base64
import io

import jinja2
import numpy as np
from matplotlib.figure import Figure

from . import summary
from .arms import ARMS
from .summary import mean_curve

COLOURS = dict(zip(ARMS, ("#555555", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00")))  # Okabe-Ito
REGIMES = (
    ("all_zero", "all-zero", "#D9D9D9"),
    ("single_hit", "single-hit", "#9ECAE1"),
    ("multi_hit", "multi-hit", "#3182BD"),
)


def render(results):
    """The report of what :func:`~recast_ref.lab.experiment.compare` returned, as HTML text."""
    headers, rows = summary.table(results)
    plots = [
        {"heading": heading, "text": text, "image": _image(draw(results)), "alt": heading}
        for heading, text, draw in (
            (
                "How many groups teach anything",
                "Share of the sampled groups, before any repair, with no hit, one hit and more, during training. In the grey part "
                "every GRPO advantage is 0.",
                regimes,
            ),
            (
                "Quality against rollouts",
                "Validation pairs, mean over seeds; the band spans the seeds. The dotted line is the best that grpo reaches: an "
                "arm has matched it where it first crosses that line. An arm without rollouts is a dashed line where it ends.",
                quality,
            ),
            (
                "What an update costs",
                "Old, reference and actor passes and the optimizer, 64 prompts, one thread, medians, measured with nothing else "
                "running. With one sequence per response, as general-purpose trainers do, the prompt is repeated for each "
                "response; shared, it is read once for all of them.",
                cost,
            ),
            (
                "Whom repair falls on",
                "Share of the groups that were repaired, by quartile of user activity (training pairs of the user) and of item "
                "popularity (training pairs with the target); equal values are never split. A repaired group learns from the ground truth, any other from "
                "what the policy found: uneven bars mean that the two are not learned from alike.",
                repair_audit,
            ),
            (
                "How far the policy moved",
                "Entropy of the next code, KL from the base policy per token, and gradient norm before clipping.",
                drift,
            ),
        )
    ]
    return (
        jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        .from_string(TEMPLATE)
        .render(
            title=summary.title(results),
            world=results["world"],
            headers=headers,
            rows=rows,
            arms=[ARMS[name] for name in results["arms"]],
            legend=summary.legend(results),
            plots=plots,
            settings=results["settings"],
            training=results["training"],
            versions=results["versions"],
        )
    )


def regimes(results):
    arms = {arm: seeds for arm, seeds in results["arms"].items() if ARMS[arm].signal}
    figure, axes = _panels(len(arms), sharey=True)
    for axis, (arm, seeds) in zip(axes, arms.items()):
        curves = [record["curve"][1:] for record in seeds.values()]
        steps = [point["step"] for point in curves[0]]
        shares = [
            np.mean([[100 * point["regimes"][name] for point in curve] for curve in curves], axis=0)
            for name, _, _ in REGIMES
        ]
        # Hits are sparse: the axis is cut so that they can be seen.
        axis.stackplot(steps, *shares, labels=[label for _, label, _ in REGIMES], colors=[c for *_, c in REGIMES])
        axis.set(title=arm, xlabel="step")
        axis.margins(x=0)
    lowest = min(
        (100 * point["regimes"]["all_zero"] for s in arms.values() for r in s.values() for point in r["curve"][1:]),
        default=0,
    )
    for axis in axes:
        axis.set_ylim(np.floor(max(lowest - 5, 0) / 10) * 10, 100)
    if arms:
        axes[0].set_ylabel("% of groups (axis cut)")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(REGIMES), fontsize=8)
    return figure


def quality(results):
    metrics = ("pass@1", "recall@10", "sampled_p@1")
    figure, axes = _panels(len(metrics), height=3.6)
    for axis, metric in zip(axes, metrics):
        for arm, seeds in results["arms"].items():
            rollouts, mean = mean_curve(seeds, metric)
            if not rollouts[-1]:
                axis.axhline(100 * mean[-1], color=COLOURS[arm], linestyle="--", label=f"{arm} (no rollouts)")
                continue
            values = 100 * np.array([[point[metric] for point in record["curve"]] for record in seeds.values()])
            axis.plot(rollouts, 100 * mean, color=COLOURS[arm], label=arm)
            axis.fill_between(
                rollouts, values.min(axis=0), values.max(axis=0), color=COLOURS[arm], alpha=0.12, linewidth=0
            )
            if arm == "grpo":
                axis.axhline(100 * mean.max(), color=COLOURS[arm], linestyle=":")
        axis.set(title=metric, xlabel="rollouts", ylabel="%", ylim=(0, None))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(results["arms"]), fontsize=8
    )
    return figure


def cost(results):
    layouts = list(dict.fromkeys(cell["layout"] for cell in results["cost"]))
    figure, axes = _panels(2)
    for axis, (name, scale, label) in zip(axes, (("seconds", 1e3, "ms"), ("peak_bytes", 1e-6, "MB at the peak"))):
        for update, shift, colour in (("group", -0.2, COLOURS["grpo"]), ("pair", 0.2, COLOURS["recast"])):
            cells = [c for c in results["cost"] if c["update"] == update]
            bars = axis.bar(
                np.arange(len(layouts)) + shift,
                [cell[name] * scale for cell in cells],
                width=0.38,
                color=colour,
                label=f"{update}, {cells[0]['responses']} responses",
            )
            axis.bar_label(bars, fmt="%.0f", fontsize=8)
        axis.set(ylabel=label, xticks=range(len(layouts)), xticklabels=layouts)
        axis.legend(fontsize=8)
    return figure


def repair_audit(results):
    arms = [arm for arm, seeds in results["arms"].items() if all(record["audit"] for record in seeds.values())]
    figure, axes = _panels(2, sharey=True)
    for axis, (name, label) in zip(axes, (("user_activity", "user activity"), ("item_popularity", "item popularity"))):
        for i, arm in enumerate(arms):
            audits = [record["audit"][name] for record in results["arms"][arm].values()]
            quartiles = len(audits[0])
            shares = [
                100 * np.mean([audit[q]["repaired"] for audit in audits if audit[q]["groups"]] or [0])
                for q in range(quartiles)
            ]
            width = 0.8 / len(arms)
            place = np.arange(quartiles) + (i - (len(arms) - 1) / 2) * width
            axis.bar(place, shares, width=width * 0.95, color=COLOURS[arm], label=arm)
            axis.set_xticks(range(quartiles), [audits[0][q]["segment"] for q in range(quartiles)])
        axis.set(xlabel=f"{label} (training pairs)", ylim=(0, 105))
    axes[0].set_ylabel("% of groups repaired")
    if arms:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(arms), fontsize=8)
    return figure


def drift(results):
    figure, axes = _panels(3)
    for axis, metric in zip(axes, ("entropy", "kl", "grad_norm")):
        for arm, seeds in results["arms"].items():
            steps = [point["step"] for point in next(iter(seeds.values()))["curve"]]
            axis.plot(steps, mean_curve(seeds, metric)[1], color=COLOURS[arm], label=arm)
        axis.set(title=metric, xlabel="step")
    axes[0].set_ylabel("nats")
    if any((line.get_ydata() > 0).any() for line in axes[2].lines):  # NaN before the first step
        axes[2].set_yscale("log")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(results["arms"]), fontsize=8
    )
    return figure


def _panels(count, height=3.0, **options):
    figure = Figure(figsize=(11, height), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, max(count, 1), **options))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _image(figure):
    """The figure as a ``data:`` address, so that the report is one file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>recast-ref: {{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-size: 14px; }
.scroll { overflow-x: auto; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; }
.small { color: #555; font-size: 14px; }
h2 { margin-top: 2.5rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ world.description }}.</p>
<ul class="small">{% for note in world.notes %}<li>{{ note }}</li>{% endfor %}
<li>base policy trained on {{ world.base_pairs }} pairs; every arm then sees the same {{ world.rl_prompts }} prompts in the same order</li></ul>
<div class="scroll"><table>
<tr>{% for header in headers %}<th>{{ header }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<ul class="small">{% for arm in arms %}<li><b>{{ arm.name }}</b>: {{ arm.title }}</li>{% endfor %}</ul>
<ul class="small">{% for line in legend %}<li>{{ line }}</li>{% endfor %}</ul>
{% for plot in plots %}<h2>{{ plot.heading }}</h2>
<p>{{ plot.text }}</p>
<img src="{{ plot.image }}" alt="{{ plot.alt }}">
{% endfor %}
<h2>How it was made</h2>
{% for part in (settings, training) %}<p class="small">{% for name, value in part.items() if value is not none %}{{ name }}:
{% if value is mapping %}{% for key, one in value.items() %}{{ key }} {{ one }}{{ ", " if not loop.last }}{% endfor %}
{%- elif value is sequence and value is not string %}{{ value | join(" ") }}{% else %}{{ value }}{% endif %}{{ "; " if not loop.last }}{% endfor %}</p>
{% endfor %}<p class="small">{% for name, value in versions.items() %}{{ name }} {{ value }}{{ ", " if not loop.last }}{% endfor %}</p>
<p class="small">Method: ReCast, arXiv 2604.22169. All numbers are in results.json beside this file.</p>
</body>
</html>
"""
