"""A world made from a seed: no download, small enough to train on in seconds, and structured as SIDs assume.

3,072 items are the codes 48 x 8 x 8. A user has a main and a second taste cluster (first code) and a preferred
sub-cluster (second code) in each; inside a cell, items follow a Zipf law. Some steps follow a rule that connects an
item to the next, some are noise.
"""

import numpy as np

from .worlds import World, split_last

SHAPE = (48, 8, 8)
USERS = 3200
LENGTHS = (6, 7, 8)  # items per user, the validation and test items among them
MAIN_TASTE, PREFERRED, ZIPF = 0.75, 0.8, 1.6
RULE, NOISE = 0.10, 0.05  # share of steps that follow the rule, and that are noise


def make(seed=0):
    """The world of this seed."""
    rng = np.random.default_rng(seed)
    clusters, subs, cells = SHAPE
    sids = np.stack(np.unravel_index(np.arange(np.prod(SHAPE)), SHAPE), axis=1).astype(np.int64)

    zipf = 1.0 / np.arange(1, cells + 1) ** ZIPF
    popularity = np.stack([rng.permutation(zipf / zipf.sum()) for _ in range(clusters * subs)]).reshape(SHAPE)
    preferred = rng.integers(subs, size=(USERS, clusters))
    timelines = []
    for user in range(USERS):
        tastes = rng.choice(clusters, size=2, replace=False)
        items = []
        for _ in range(rng.choice(LENGTHS)):
            kind = rng.random()
            if kind < NOISE:
                a, b, c = (rng.integers(size) for size in SHAPE)
            elif kind < NOISE + RULE and items:
                a, b, c = sids[items[-1]]
                b, c = (b + 1) % subs, (c + 3) % cells
            else:
                a = tastes[0] if rng.random() < MAIN_TASTE else tastes[1]
                b = preferred[user, a] if rng.random() < PREFERRED else rng.integers(subs)
                c = rng.choice(cells, p=popularity[a, b])
            items.append(int(np.ravel_multi_index((a, b, c), SHAPE)))
        timelines.append(items)

    train, valid, test, dropped = split_last(timelines)
    return World(
        name="synthetic",
        sids=sids,
        train=train,
        valid=valid,
        test=test,
        base_pairs=500,
        notes=[f"made from seed {seed}; {dropped:,} pairs dropped because they hold a test target of the same user"],
    )
