"""Whom repair falls on: the share of repaired groups by user activity and by item popularity.

A repaired group learns from the ground truth, any other from what the policy found. If repair falls on some customers
or items only, then so does that difference.
"""

import numpy as np

QUARTILES = 4


def segments(values):
    """Quartile of each value, and a label per quartile. Equal values are never split, so quartiles can be unequal in
    size and, where one value is very common, fewer than four.

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


def audit(world, pairs, repaired):
    """Share of repaired groups in each segment of the prompts that were trained on.

    Args:
        world: the world the prompts come from.
        pairs: the prompts, :class:`~recast_ref.lab.worlds.Pairs`.
        repaired: bool ``(N,)``, whether each prompt's group was repaired.

    Returns:
        ``{"user_activity": [...], "item_popularity": [...]}``, each a list of ``{"segment", "groups", "repaired"}``: the
        range of training pairs per user or per target item, how many groups lie in it, and the share repaired.
    """
    users = 1 + max(world.train.user.max(), pairs.user.max())
    activity = np.bincount(world.train.user, minlength=users)[pairs.user]
    popularity = np.bincount(world.train.target, minlength=len(world.sids))[pairs.target]
    result = {}
    for name, values in (("user_activity", activity), ("item_popularity", popularity)):
        quartile, labels = segments(values)
        result[name] = [
            {"segment": label, "groups": int((quartile == q).sum()), "repaired": float(repaired[quartile == q].mean())}
            for q, label in enumerate(labels)
        ]
    return result
