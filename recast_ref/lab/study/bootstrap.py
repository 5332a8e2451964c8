"""Intervals of means over seeds and test prompts, and of differences on the same seeds and prompts.

Both are resampled: a seed is another base policy, order and rollouts, a prompt another user. Two arms are drawn the same seeds and the
same prompts, so that what both find hard does not blur their difference.
"""

import numpy as np

DRAWS = 1000
LEVEL = 0.95


def interval(values):
    """The central 95 % of 1,000 means of resampled rows and columns.

    Args:
        values: floating ``(seeds, prompts)``.

    Returns:
        ``(low, high)``; ``(None, None)`` for a single seed, which says nothing of other seeds.
    """
    seeds, prompts = values.shape
    if seeds < 2:
        return None, None
    rng = np.random.default_rng(0)  # the same draws for every arm
    of_seeds = rng.multinomial(seeds, [1 / seeds] * seeds, size=DRAWS) / seeds
    of_prompts = rng.multinomial(prompts, [1 / prompts] * prompts, size=DRAWS) / prompts
    means = ((of_seeds @ values.astype(np.float64)) * of_prompts).sum(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
