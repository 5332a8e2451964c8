"""The base policy that every arm of a cell starts from: how strong it is, is a choice.

A regime is a share of all-zero groups in percent, ``"94"``: supervised training stops at the first probe of groups that has no more
of them. ``"94@8"`` probes groups of 8 whatever the group size of the cell, so that cells of several sizes share a base.
``"converged"`` trains for a given number of updates, at most four times over the data, the last third with a learning rate that
falls to 0.
"""

import torch

from .. import training
from .outcomes import PROBED, probe
from .worlds import HISTORY

BATCH = 64
LEARNING_RATE = 1e-3
MOST_UPDATES = 4000
MOST_EPOCHS = 4  # of a converged base
PROBE_EARLY, PROBE_EVERY, EARLY = 5, 25, 300  # updates between probes up to the 300th, and after it


class RegimeNotReached(ValueError):
    """The base policy of a world does not get so good."""


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
    converge, converged = regime == "converged", min(converged, MOST_EPOCHS * len(world.base) // BATCH)
    if converge:
        fall, warm_up = converged / 3, training.WARMUP
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda n: min(1.0, (n + 1) / warm_up, (converged - n) / fall)
        )
        wanted = None
    else:
        wanted = float(regime) / 100
    for update in range(1, (converged if converge else MOST_UPDATES) + 1):
        rows = order[torch.arange((update - 1) * BATCH, update * BATCH) % len(order)]
        answers = world.answers.of_targets(world.base.shown[rows], generator)[:, :1]
        loss = -policy.logps(world.base.history[rows], answers).mean()
        training.optimizer_step(policy, optimizer, schedule, loss)
        if not converge and update % (PROBE_EARLY if update <= EARLY else PROBE_EVERY) == 0:
            shares = probe(policy, world, world.valid, size)
            if shares[0] <= wanted:
                break
    else:
        shares = probe(policy, world, world.valid, size)
        if not converge:
            raise RegimeNotReached(
                f"{world.name}: after {MOST_UPDATES} updates {shares[0]:.0%} of {min(PROBED, len(world.valid))} groups of "
                f"{size} are all-zero, not {wanted:.0%}; choose a denser world or another regime"
            )
    return policy, {"updates": update, **dict(zip(("all_zero", "single_hit", "multi_hit"), shares))}
