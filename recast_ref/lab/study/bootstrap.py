"""Intervals of means over seeds and test prompts, and of differences on the same seeds and prompts.

Both are resampled: a seed is another base policy, order and rollouts, a prompt another user. Two arms are drawn the same seeds and the
same prompts, so that what both find hard does not blur their difference.
"""

from functools import lru_cache

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
    of_seeds, of_prompts = _weights(seeds, prompts)
    means = ((of_prompts @ values.T.astype(np.float64)) * of_seeds).sum(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@lru_cache(maxsize=2)
def _weights(seeds, prompts):
    """How often each seed and each prompt is drawn, as shares: ``(1000, seeds)``, ``(1000, prompts)``. The same for every arm."""
    rng = np.random.default_rng(0)
    return tuple(rng.multinomial(n, [1 / n] * n, size=DRAWS) / n for n in (seeds, prompts))
