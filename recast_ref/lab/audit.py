"""Whom repair falls on: the share of repaired groups by user activity and by item popularity.

A repaired group learns from the ground truth, any other from what the policy found. If repair falls on some customers
or items only, then so does that difference.
"""

import numpy as np

QUARTILES = 4


def segments(values):
    """Quartile of each value, and a label per quartile. Equal values are never split, so quartiles can be unequal in
    size and, where one value is very common, fewer than four.

    Args:
        values: int64 ``(N,)``.

    Returns:
        int64 ``(N,)`` numbered from 0, and a list of labels such as ``"3-5"``.
    """
    edges = np.unique(np.quantile(values, np.arange(1, QUARTILES) / QUARTILES, method="lower"))
    _, quartile = np.unique(np.searchsorted(edges, values, side="left"), return_inverse=True)
    labels = []
    for q in range(quartile.max() + 1):
        low, high = values[quartile == q].min(), values[quartile == q].max()
        labels.append(f"{low}" if low == high else f"{low}-{high}")
    return quartile, labels


def audit(world, rows, repaired):
    """Share of repaired groups in each segment. The segments are quartiles of the world's training pairs.

    Args:
        world: the world the prompts come from.
        rows: int64 ``(N,)``, which of its training pairs were prompts.
        repaired: bool ``(N,)``, whether each prompt's group was repaired.

    Returns:
        ``{"user_activity": [...], "item_popularity": [...]}``, each a list of ``{"segment", "groups", "repaired"}``: the
        range of training pairs per user or per target item, how many groups lie in it, and the share repaired (``None``
        where there are none).
    """
    result = {}
    for name, keys in (("user_activity", world.train.user), ("item_popularity", world.train.target)):
        quartile, labels = segments(np.bincount(keys)[keys])
        inside = [quartile[rows] == q for q in range(len(labels))]
        result[name] = [
            {
                "segment": label,
                "groups": int(group.sum()),
                "repaired": float(repaired[group].mean()) if group.any() else None,
            }
            for label, group in zip(labels, inside)
        ]
    return result
