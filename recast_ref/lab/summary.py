"""What the results come to: the table, what its columns mean, and the matched budget."""

import numpy as np

from .regimes import SHARES

QUALITY = ("pass@1", "recall@10", "recall@32", "ndcg@10", "sampled_p@1")
RELATIVE = ("pass@1", "recall@10")
MATCHED = ("pass@1", "recall@10")

HEADERS = (
    *("arm", "pass@1", "pass@1 vs grpo", "recall@10", "recall@10 vs grpo", "recall@32", "ndcg@10", "sampled p@1"),
    *("groups at first", "groups at last", "update ms", "peak MB", "skipped", "to match"),
)
# On a narrow terminal the first is dropped first.
LEAST_IMPORTANT = (
    *(
        "recall@10 vs grpo",
        "skipped",
        "peak MB",
        "recall@32",
        "groups at first",
        "to match",
        "ndcg@10",
        "groups at last",
    ),
)


def matched_budget(arms):
    """Rollouts each arm needs to reach GRPO's best validation score, as a share of all of GRPO's rollouts.

    Scores are means over seeds. An arm has reached GRPO's at the first of its evaluations that is as good, so the
    resolution is their spacing: what was reached at the first evaluation after the start may have been reached sooner.

    Returns:
        ``{metric: {arm: {"target", "rollouts", "share", "at_most"}}}``. ``rollouts`` and ``share`` are ``None`` where it is
        never reached; ``at_most`` is set where it was reached by the first evaluation. Empty without a ``grpo`` arm, a metric
        is empty where GRPO never beat the base policy, and an arm without rollouts is left out.
    """
    if "grpo" not in arms:
        return {}
    result = {}
    for metric in MATCHED:
        rollouts, scores = mean_curve(arms["grpo"], metric)
        target, budget = scores.max(), rollouts[-1]
        result[metric] = {}
        if scores.argmax() == 0:
            continue  # GRPO never beat the base policy: there is nothing to match
        for arm, seeds in arms.items():
            rollouts, values = mean_curve(seeds, metric)
            if not rollouts[-1]:
                continue
            first = next((i for i, value in enumerate(values) if value >= target), None)
            result[metric][arm] = {
                "target": float(target),
                "rollouts": None if first is None else int(rollouts[first]),
                "share": None if first is None else float(rollouts[first] / budget),
                "at_most": first == 1,
            }
    return result


def mean_curve(seeds, metric):
    """Rollouts and the mean over seeds of a metric at each evaluation: two arrays. NaN where no seed has a value."""
    curves = [record["curve"] for record in seeds.values()]
    values = np.array([[point[metric] for point in curve] for curve in curves], dtype=float)
    known = np.isfinite(values)
    mean = np.where(known, values, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
    return np.array([point["rollouts"] for point in curves[0]]), mean


def mean_and_spread(records, metric):
    """Mean and sample standard deviation over seeds of a final metric; the spread of one seed is ``None``."""
    values = [record["final"][metric] for record in records.values()]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def table(results):
    """The comparison as text: headers, and a row per arm, the base policy first. Columns without a value are left out."""
    every = rows(results)
    used = [i for i in range(len(HEADERS)) if any(row[i] for row in every)]
    return [HEADERS[i] for i in used], [[row[i] for i in used] for row in every]


def rows(results):
    """A row per arm under ``HEADERS``; what is not trained comes first."""
    grpo, prompts = results["arms"].get("grpo"), results["world"]["rl_prompts"]
    untrained = {name: results[name] for name in ("popular", "base") if name in results}
    table = []
    for arm, records in {**untrained, **results["arms"]}.items():
        row = [arm]
        for metric in QUALITY:
            if any(metric not in record["final"] for record in records.values()):
                row.append("")  # of a version that did not measure it
                continue
            mean, spread = mean_and_spread(records, metric)
            row.append(f"{mean * 100:.2f}" + ("" if spread is None else f" ±{spread * 100:.2f}"))
            if metric in RELATIVE:
                baseline = mean_and_spread(grpo, metric)[0] if grpo else 0
                row.append(f"{mean / baseline - 1:+.0%}" if baseline and arm != "grpo" else "")
        row += _compositions(records)
        row.append(_mean_of(records, "actor_update_seconds", lambda seconds: f"{seconds * 1e3:.0f}"))
        row.append(_mean_of(records, "peak_update_bytes", lambda count: f"{count / 1e6:.1f}"))
        row.append(_mean_of(records, "skipped_groups", lambda groups: f"{groups / prompts:.0%}"))
        row.append(_share(results["matched_budget"].get("recall@10", {}).get(arm)))
        table.append(row)
    return table


def _compositions(records):
    """All-zero / single-hit / multi-hit groups in %, of the first and of the last stretch between two evaluations."""
    curves = [
        [point["regimes"] for point in record.get("curve", []) if point["regimes"]] for record in records.values()
    ]
    if not all(curves):
        regimes = [record["regime"] for record in records.values() if "regime" in record]
        return [_shares(regimes), ""] if regimes else ["", ""]
    return [_shares([curve[place] for curve in curves]) for place in (0, -1)]


def _shares(regimes):
    return "/".join(f"{100 * np.mean([one[name] for one in regimes]):.0f}" for name in SHARES)


def _mean_of(records, name, shown):
    values = [value for record in records.values() if (value := record["final"].get(name)) is not None]
    return shown(sum(values) / len(values)) if values else ""


def _share(budget):
    if budget is None:
        return ""
    if budget["share"] is None:
        return "never"
    return "at once" if not budget["rollouts"] else f"{'≤' if budget['at_most'] else ''}{budget['share']:.1%}"


def title(results):
    settings = results["settings"]
    return f"{results['world']['name']}, G = {settings['group_size']}, {seeds_text(settings['seeds'])}"


def seeds_text(count):
    return f"{count} seed{'s' if count > 1 else ''}"


def legend(results):
    """What the table's columns mean, a line each."""
    seeds = results["settings"]["seeds"]
    has_grpo = "grpo" in results["arms"]
    lines = [
        f"Quality in %, over the test pairs: mean{' ± standard deviation' if seeds > 1 else ''} over {seeds_text(seeds)}"
        + (", and the change relative to grpo." if has_grpo else "."),
        f"Update: mean over the steps of {results['settings']['batch']} prompts, of the old, reference and actor passes (sft: the "
        "actor's alone) on one thread, all cores busy, so compare within a run only; each prompt is read once for its group. "
        "Peak: the largest of those counted.",
        "Groups: all-zero/single-hit/multi-hit in %, as sampled, over the steps up to the first evaluation and since the last but one.",
        "Skipped: share of the groups that have no pair and are dropped before the update.",
    ]
    for metric, budgets in results["matched_budget"].items():
        what = f"To match {metric}: share of grpo's rollouts after which an arm first reaches grpo's best on validation"
        shares = ", ".join(f"{arm} {_share(budget)}" for arm, budget in budgets.items())
        lines.append(f"{what}: {shares or 'none, since grpo never beat the base policy there'}.")
    if seeds < 3 or results["settings"]["test_prompts"]:
        lines.insert(0, "A small run: too small to quote.")
    return lines + cost_lines(results)


def cost_lines(results):
    """The measured cost of an update, a line per layout."""
    cells = {(cell["layout"], cell["update"]): cell for cell in results["cost"]}
    lines = []
    for layout in dict.fromkeys(cell["layout"] for cell in results["cost"]):
        group, pair = cells[layout, "group"], cells[layout, "pair"]
        if pair["peak_bytes"]:  # none if every group was skipped
            lines.append(
                f"Cost of one update of 64 prompts, no arm training beside it, {layout}: the pair is {group['seconds'] / pair['seconds']:.1f}x faster than the group of "
                f"{group['responses']} and needs {group['peak_bytes'] / pair['peak_bytes']:.1f}x less memory."
            )
    return lines
