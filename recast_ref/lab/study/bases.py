"""The base policy that every arm of a cell starts from: how strong it is, is a choice.

A regime is a share of all-zero groups in percent, ``"94"``: supervised training stops at the first probe of groups that has no more
of them. ``"94@8"`` probes groups of 8 whatever the group size of the cell, so that cells of several sizes share a base.
``"converged"`` trains for a given number of updates, at most four times over the data, the last third with a learning rate that
falls to 0.
"""

import torch

from .. import training
from ..regimes import SHARES, falling, train_until
from .outcomes import probe
from .worlds import HISTORY

BATCH = 64
LEARNING_RATE = 1e-3
MOST_EPOCHS = 4  # of a converged base


def probe_size(regime, group_size):
    """The group size that a regime is told by: of a converged base 8, since it is the same whatever the groups."""
    return int(regime.partition("@")[2] or (8 if regime == "converged" else group_size))


def train_base(world, regime, size, width, seed, converged):
    """Train a base policy to its regime, told by groups of ``size``, or for ``converged`` updates.

    Returns:
        the policy, and ``{"updates", "all_zero", "single_hit", "multi_hit"}``: how long it took, and the shares of its groups.

    Raises:
        RegimeNotReached: too many groups are still all-zero after 4,000 updates.
    """
    policy = world.answers.policy(world.trie, HISTORY, width, seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(world.base), generator=generator)
    optimizer, schedule = training.new_optimizer(policy, LEARNING_RATE)
    updates = min(converged, MOST_EPOCHS * len(world.base) // BATCH)
    if regime == "converged":
        schedule = falling(optimizer, updates, training.WARMUP)

    def update(n):
        rows = order[torch.arange((n - 1) * BATCH, n * BATCH) % len(order)]
        answers = world.answers.of_targets(world.base.shown[rows], generator)[:, :1]
        loss = -policy.logps(world.base.history[rows], answers).mean()
        training.optimizer_step(policy, optimizer, schedule, loss)

    def shares():
        return probe(policy, world, world.valid, size)

    if regime != "converged":
        return policy, train_until(update, shares, float(regime) / 100)
    for n in range(1, updates + 1):
        update(n)
    return policy, {"updates": updates, **dict(zip(SHARES, shares()))}
