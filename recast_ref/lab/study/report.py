"""The study's tables and figures, from the rows of ``study.csv`` and from nothing else: the same file makes the same report."""

from collections import namedtuple
from pathlib import Path

from .. import checkpoints
from . import figures, matching, table
from .cells import ALPHAS, parts

HEADLINES = ("pass@1", "sampled_p@1", "recall@10", "ndcg@10")
Table = namedtuple("Table", "title headers rows note")


def write(rows, out):
    """Write ``study.md`` and the figures it shows to the folder ``out``."""
    out = Path(out)
    lines = ["# The study", "", LEGEND, ""]
    questions = {name: question for name, (question, _) in parts().items()}
    for name, make in PARTS.items():
        mine = [row for row in rows if name in row["parts"].split()]
        if not mine:
            continue
        lines += [f"## {questions[name]}", ""]
        tables, drawn = make(mine, rows)
        for figure, text in drawn:
            path = f"{figure.get_label()}.svg"
            checkpoints.replace(out / path, lambda file, figure=figure: figures.save(figure, file))
            lines += [f"![{text}]({path})", "", text, ""]
        for made in tables:
            if made.rows:
                lines += [f"**{made.title}**", "", *markdown(made), "", *([made.note, ""] if made.note else [])]
    lines += ["## Learning rates", "", *markdown(learning_rates(rows)), ""]
    checkpoints.save_text(out / "study.md", "\n".join(lines))


LEGEND = (
    "Shares in %, over the test prompts. In brackets the 95 % bootstrap interval over seeds and prompts. In tables of differences, "
    "those whose interval excludes 0 are bold: only of these it is said that one arm beats another. The seeds that a learning rate was "
    "tuned with, on validation prompts, are among those reported."
)


def markdown(made, align="---:"):
    """The lines of a table; ``align`` is of all columns but the first."""
    rule = ["---"] + [align] * (len(made.headers) - 1)
    return ["| " + " | ".join(map(str, row)) + " |" for row in (made.headers, rule, *made.rows)]


# ---- choosing rows


def only(rows, **settings):
    """The rows with these settings; a tuple stands for one of several."""
    wanted = {name: value if isinstance(value, tuple) else (value,) for name, value in settings.items()}
    return [row for row in rows if all(row.get(name) in values for name, values in wanted.items())]


def one(rows, **settings):
    """The first of them, or an empty row."""
    return next(iter(only(rows, **settings)), {})


def order_of(rows, name):
    """The values of a setting, in the order in which they come."""
    return list(dict.fromkeys(row[name] for row in rows if name in row))


def place(row):
    """Where a cell is, for people."""
    return f"{row['world']}, {row['regime'].partition('@')[0]}{'' if row['regime'] == 'converged' else ' % all-zero'}"


def percent(value, digits=1):
    return "" if value is None else f"{100 * value:.{digits}f}"


def cell(row, metric, bold=False):
    """A mean and its interval; ``bold`` where the interval excludes 0."""
    if metric not in row:
        return ""
    text = percent(row[metric])
    low, high = row.get(f"{metric} low"), row.get(f"{metric} high")
    if low is None:
        return text
    text = f"{text} [{percent(low)}, {percent(high)}]"
    return f"**{text}**" if bold and (low > 0 or high < 0) else text


# ---- tables that several parts have


def by_arm(rows, kind, metric, title, note="", places=place, **settings):
    """A row for each arm, a column for each place."""
    mine = only(rows, kind=kind, **settings)
    columns = list(dict.fromkeys(places(row) for row in mine))
    made = []
    for arm in dict.fromkeys(label(row) for row in mine):
        found = [next((r for r in mine if label(r) == arm and places(r) == where), {}) for where in columns]
        made.append([f"`{arm}`", *(cell(row, metric, bold=kind == "difference") for row in found)])
    return Table(title, ["arm", *columns], made, note)


def label(row):
    """An arm and what sets its cell apart."""
    extra = [row["anchor"]] * (row["anchor"] != "likeliest") + [f"{row['passes']} passes"] * (row["passes"] > 1)
    return ", ".join([row["arm"], *extra])


def quality(rows, places=place):
    """Means and differences, for every headline metric."""
    made = [by_arm(rows, "mean", metric, f"{metric}", places=places) for metric in HEADLINES]
    for reference in ("grpo", "sft-sqrt"):
        for metric in ("pass@1", "sampled_p@1", "recall@10"):
            title = f"{metric}, minus {reference}"
            made.append(by_arm(rows, "difference", metric, title, places=places, reference=reference))
    return made


def compositions(rows, places=place):
    """Groups at the start and at the end of training: all-zero / single-hit / multi-hit."""
    made = []
    for row in only(rows, kind="mean"):
        points = only(rows, kind="point", **{name: row[name] for name in table.SETTINGS})
        points = [p for p in points if "all_zero" in p]
        if points:
            made.append([places(row), f"`{label(row)}`", *(_shares(p) for p in (points[0], points[-1]))])
    note = "A probe of 512 groups of validation prompts."
    return Table("Groups, all-zero / single-hit / multi-hit", ["place", "arm", "start", "end"], made, note)


def _shares(row):
    return " / ".join(percent(row[name], 0) for name in table.COMPOSITION)


def learning_rates(rows):
    """What was chosen for each cell, and what each rate gave on validation."""
    made = []
    for row in only(rows, kind="mean"):
        tuned = only(rows, kind="tuned", **{name: row[name] for name in table.SETTINGS})
        rates = sorted({r["learning_rate"] for r in tuned})
        if rates:
            tried = []
            for rate in rates:
                values = [r["pass@1"] for r in only(tuned, learning_rate=rate)]
                tried.append(f"{rate:g}: {percent(sum(values) / len(values))}")
            made.append(
                [
                    place(row),
                    f"`{label(row)}`",
                    row["group_size"],
                    row["width"],
                    f"{row['learning_rate']:g}",
                    ", ".join(tried),
                ]
            )
    headers = ["place", "arm", "G", "width", "chosen", "mean pass@1 on validation by rate"]
    return Table("Learning rates", headers, made, "")


# ---- the parts


def map_(rows, every):
    drawn = [
        (
            figures.against_share(rows, "map"),
            "Each arm minus GRPO, by the share of all-zero groups at the start; bars are 95 % intervals.",
        ),
        (figures.over_training(rows, "composition"), "All-zero groups during training, by arm, one panel a regime."),
    ]
    return [*quality(rows), compositions(rows)], drawn


def alpha(rows, every):
    text = (
        "The weight of an anchor, p to the power alpha: 0 is SFT, 1 the policy gradient of a hit on the known target."
    )
    return quality(rows), [(figures.alphas(rows, ALPHAS), text)]


def wrong(rows, every):
    def share(row):
        return f"{row['world'].partition('-')[2] or 0} % wrong"

    return quality(rows, share), [(figures.wrong_labels(rows), "By the share of wrong labels; the reward is right.")]


def matched(rows, by, name):
    """The share of GRPO's rollouts at which an arm first is as good on validation as GRPO ever gets."""
    headers = ["metric", "arm", *(f"{name} {value}" for value in sorted(order_of(rows, by)))]
    made = []
    for metric in ("pass@1", "recall@10", "sampled_p@1"):
        for arm in order_of(rows, "arm"):
            if arm not in ("grpo", "sft-sqrt"):
                made.append([metric, f"`{arm}`", *(matching.text(matching.match(rows, arm, metric, **{by: v})) for v in sorted(order_of(rows, by)))])  # fmt: skip
    note = "Of the mean curves over seeds, with intervals over seeds. The paper: 4.1 %, less with larger groups and models."
    return Table("Share of GRPO's rollouts until GRPO's best is reached", headers, made, note)


def budget(rows, every):
    drawn = [(figures.matched(rows, "group_size", "budget"), "Figure (a) of the paper: the share, by group size.")]
    return [
        claims(rows, every),
        matched(rows, "group_size", "G ="),
        *quality(rows, lambda row: f"G = {row['group_size']}"),
    ], drawn


def claims(rows, every):
    """What the paper reports, and the same quantity here: of ReCast as published, relative to GRPO."""
    made = []
    for row in only(every, kind="difference", arm="recast", reference="grpo"):
        grpo = one(every, **{**{n: row[n] for n in table.SETTINGS}, "arm": "grpo", "kind": "mean"})
        if not row["curve"] and grpo.get("pass@1"):
            low, high = row.get("pass@1 low"), row.get("pass@1 high")
            ends = "" if low is None else f" [{low / grpo['pass@1']:+.0%}, {high / grpo['pass@1']:+.0%}]"
            made.append([f"{place(row)}, G = {row['group_size']}", f"{row['pass@1'] / grpo['pass@1']:+.0%}{ends}"])
    note = (
        "The paper reports +9.1 % to +36.6 % on five tasks. The interval is that of the difference, over GRPO's mean."
    )
    return Table("Pass@1 of ReCast, relative to GRPO", ["place", "ours"], made, note)


def size(rows, every):
    drawn = [(figures.matched(rows, "width", "size"), "Figure (b) of the paper: the share, by width of the policy.")]
    return [matched(rows, "width", "width"), *quality(rows, lambda row: f"width {row['width']}")], drawn


def pays(rows, every):
    """What an arm with rollouts ends at, and what sft-sqrt had reached with as many actor tokens, and in as much time."""
    made = []
    for row in only(rows, kind="mean", arm=("grpo", "hybrid-sqrt"), anchor="likeliest", curve="coarse"):
        mine = [p for p in only(rows, kind="point", **{n: row[n] for n in table.SETTINGS}) if "pass@1" in p]
        rival = [p for p in only(rows, kind="point", world=row["world"], arm="sft-sqrt", passes=2) if "pass@1" in p]
        for metric in ("pass@1", "sampled_p@1"):
            if mine and rival:
                same = (
                    figures.reached_by(rival, "actor_tokens", mine[-1]),
                    figures.reached_by(rival, "seconds", mine[-1]),
                )
                made.append(
                    [place(row), metric, f"`{row['arm']}`", *(percent(p.get(metric)) for p in (mine[-1], *same))]
                )
    headers = ["place", "metric", "arm", "at its end", "sft-sqrt, as many actor tokens", "sft-sqrt, as much time"]
    note = "Over validation prompts, means over the seeds; sft-sqrt goes over its prompts up to twice."
    drawn = [(figures.curves(rows), "Quality on validation against processor time.")]
    return [Table("What rollouts are worth", headers, made, note), *quality(rows)], drawn


def whom(rows, every):
    made = []
    mine = only(rows, kind="segment")
    for where in dict.fromkeys(place(r) for r in mine):
        here = [r for r in mine if place(r) == where]
        for segment in order_of(here, "segment"):
            for r in only(here, segment=segment):
                made.append(
                    [where, segment, f"`{label(r)}`", percent(r.get("repaired")), *(cell(r, m) for m in HEADLINES[:3])]
                )
    headers = ["place", "segment", "arm", "groups without a hit", *HEADLINES[:3]]
    note = "Quartiles of the training prompts; repair falls on the groups without a hit."
    return [Table("By segment", headers, made, note)], [(figures.whom(rows), "Groups without a hit, by segment.")]


# Recall and NDCG@10 on the test pairs of Amazon Industrial, from MiniOneRec's paper.
INDUSTRIAL = (
    ("SASRec", 0.1088, 0.0806),
    ("TIGER", 0.1321, 0.0908),
    ("S-DPO", 0.1524, 0.1082),
    ("MiniOneRec", 0.1586, 0.1167),
)


def elsewhere(rows, every):
    made = [*quality(rows), compositions(rows)]
    if any("industrial" in row["world"].lower() for row in rows):
        published = [[name, percent(recall), percent(ndcg)] for name, recall, ndcg in INDUSTRIAL]
        note = "From MiniOneRec's paper: larger models, and all training data; ours are tiny, the base sees half of the training pairs, and an arm up to 8,192 of the others."
        made.append(
            Table(
                "Published for Amazon Industrial, on the same test pairs",
                ["model", "recall@10", "ndcg@10"],
                published,
                note,
            )
        )
    return made, []


def map32(rows, every):
    text = "Groups of 32: each arm minus GRPO, by the share of all-zero groups at the start."
    return [*quality(rows), compositions(rows)], [(figures.against_share(rows, "map32"), text)]


PARTS = {"map": map_, "alpha": alpha, "wrong": wrong, "budget": budget, "size": size, "pays": pays, "whom": whom,
         "map32": map32, "elsewhere": elsewhere}  # fmt: skip
