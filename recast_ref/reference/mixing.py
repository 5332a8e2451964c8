"""Hybrid: GRPO where the group has a hit, an anchor where it has none (ours, not in the paper).

A group with a hit has a signal of its own, the policy's, and it ranks the whole group. Only an all-zero group needs the ground
truth: it gets its anchor with ``+w`` and, against it, the hardest negative with a smaller ``-w_neg``::

    r  0  0  1  0        GRPO       -0.50  -0.50   1.50  -0.50
    r  0  0  0  0        anchor      0      1.00   0     -0.30     in the slot of the lowest u; the hardest negative last
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import group_tensors
from .grpo import group_advantages
from .recasting import recast


class Hybrid(NamedTuple):
    """What each response counts for, and where the anchors go."""

    slot: Tensor  # int64 (Q,): where the anchor goes, -1 where the group is untouched
    positive: Tensor  # int64 (Q,): the anchor, -1 where the group has a hit or is skipped
    negative: Tensor  # int64 (Q,): the hardest negative, -1 likewise
    advantages: Tensor  # (Q, G): GRPO's where there is a hit; else +weight, -negative_weight, and 0


def hybrid(
    rewards: Tensor,
    scores: Tensor,
    repairable: Tensor | None = None,
    weight: float = 1.0,
    negative_weight: float = 0.3,
    tie_break: Tensor | None = None,
    normalize: bool = True,
    eps: float = 1e-6,
) -> Hybrid:
    """:func:`~.group_advantages` for groups with a hit, :func:`~.recast` for the others.

    ``positive`` and ``negative`` are -1 where the group has a hit. A group without one is skipped, all of its advantages 0, where
    it cannot be repaired, and where it is a group of one: its anchor has no negative. Penalties among misses only do not count.

    The negative shares its first codes with the anchor. Where that matters, let it count from the branch point on:
    :func:`~.branch_mask`, per token, is the caller's. So are weights for the anchors: :func:`~.anchor_weights`.

    Args:
        rewards: floating ``(Q, G)``, finite.
        scores: floating ``(Q, G)``, structural scores ``u``, no NaN.
        repairable: bool ``(Q,)``, False where the prompt has no usable target. Default: all True.
        weight: > 0, the anchor's advantage.
        negative_weight: >= 0.
        tie_break: floating ``(Q, G)``, no NaN; ties go to the largest key, else to the lowest index.
        normalize, eps: as for :func:`~.group_advantages`.

    Returns:
        :class:`Hybrid` ``(slot, positive, negative, advantages)``; advantages have the dtype of ``rewards``.

    Raises:
        TypeError, ValueError: as the two functions.

    Example:
        >>> hybrid(torch.zeros(1, 3), torch.tensor([[0.1, 0.0, 0.01]]))
        Hybrid(slot=tensor([1]), positive=tensor([1]), negative=tensor([0]), advantages=tensor([[-0.3000,  1.0000,  0.0000]]))
    """
    group_tensors(rewards, scores, repairable, tie_break)
    picked = recast(rewards, scores, repairable, weight, negative_weight, tie_break)
    whole = group_advantages(rewards, normalize, eps)
    hit = (rewards > 0).any(dim=1)
    return Hybrid(
        picked.slot,
        picked.positive.masked_fill(hit, -1),
        picked.negative.masked_fill(hit, -1),
        torch.where(hit[:, None], whole, picked.advantages),
    )
