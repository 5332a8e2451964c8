"""Matched budget: the share of GRPO's rollouts after which an arm first is as good on validation as GRPO ever gets."""

import math

import numpy as np

from .bootstrap import DRAWS, LEVEL


def curves(rows, arm, metric, **settings):
    """A metric on the fine curves of an arm: rollouts ``(points,)`` and values ``(seeds, points)``; ``None`` without any."""
    mine = [r for r in rows if r["kind"] == "seed point" and r["arm"] == arm and metric in r]
    mine = [r for r in mine if all(r[name] == value for name, value in settings.items())]
    seeds = sorted({r["seed"] for r in mine})
    if not seeds:
        return None
    of_seed = [sorted((r for r in mine if r["seed"] == seed), key=lambda r: r["step"]) for seed in seeds]
    return np.array([r["rollouts"] for r in of_seed[0]]), np.array([[r[metric] for r in one] for one in of_seed])


def share(budget, theirs, mine):
    """The share of ``budget`` rollouts at which the mean of ``mine`` first is as good as the best of ``theirs``.

    Args:
        theirs: ``(seeds, points)`` of GRPO, the base policy first.
        mine: rollouts and ``(seeds, points)`` of the arm.

    Returns:
        the share, ``inf`` if it is never as good; NaN if GRPO is never better than the base policy, so that there is nothing to match.
    """
    theirs = theirs.mean(axis=0)
    if theirs.argmax() == 0:
        return math.nan
    rollouts, values = mine
    reached = np.flatnonzero(values.mean(axis=0) >= theirs.max())
    return rollouts[reached[0]] / budget if len(reached) else math.inf


def match(rows, arm, metric, **settings):
    """The share and its 95 % interval over seeds, drawn alike for both arms: ``(share, low, high)``, or ``None`` without curves.

    Draws in which GRPO never beats the base policy are left out of the interval.
    """
    grpo, other = (curves(rows, name, metric, **settings) for name in ("grpo", arm))
    if grpo is None or other is None:
        return None
    theirs, budget = grpo[1], grpo[0][-1]
    found = share(budget, theirs, other)
    rng = np.random.default_rng(0)
    seeds = min(len(theirs), len(other[1]))
    picks = rng.integers(seeds, size=(DRAWS, seeds))
    drawn = np.array([share(budget, theirs[pick], (other[0], other[1][pick])) for pick in picks])
    drawn = np.sort(drawn[~np.isnan(drawn)])
    if seeds < 2 or not len(drawn):
        return found, None, None
    low, high = (drawn[round(q * (len(drawn) - 1))] for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return found, float(low), float(high)


def text(found):
    """A result of :func:`match` in words."""
    if found is None:
        return ""
    value, low, high = found
    if math.isnan(value):
        return "grpo never beats the base"
    return _percent(value) + ("" if low is None else f" [{_percent(low)}, {_percent(high)}]")


def _percent(value):
    return "never" if math.isinf(value) else f"{value:.1%}"
