"""Repair: an all-zero group gets one response that hits (the ReCast paper, first stage).

Only where no response hits (``r > 0``), an anchor built from the ground truth takes the place of the response that was
furthest from any target, ``j = argmin_i u_i``. A group with a hit is left as it is: its own hits are on-policy and
better to learn from. These functions pick the slot and the new ``r`` and ``u``; putting the anchor's tokens into that
slot, with old log-probs from one teacher-forced pass of the old policy, is the trainer's part.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import group_tensors


class Repair(NamedTuple):
    """Groups after repair."""

    slot: Tensor  # int64 (Q,): the response the anchor replaces, -1 where the group is untouched
    rewards: Tensor  # (Q, G): r, with r_slot = 1
    scores: Tensor  # (Q, G): u, with u_slot = 1


def repair(
    rewards: Tensor, scores: Tensor, repairable: Tensor | None = None, tie_break: Tensor | None = None
) -> Repair:
    """Choose where the anchor goes, and give that response ``r = 1`` and ``u = 1``.

    Ties for the lowest score go to the largest tie key, else to the lowest index. Give random keys in training: where
    rollouts come sorted by probability, a fixed order would replace the likeliest of the tied responses every time.
    (The paper is silent; this is our choice.)

    Args:
        rewards: floating ``(Q, G)``, finite.
        scores: floating ``(Q, G)``, structural scores ``u``, no NaN.
        repairable: bool ``(Q,)``, False where the prompt has no usable target. Default: all True.
        tie_break: floating ``(Q, G)``, no NaN.

    Returns:
        :class:`Repair` ``(slot, rewards, scores)``; rewards and scores are new tensors of the input dtypes.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or value, naming the argument.

    Example:
        >>> repair(torch.zeros(1, 3), torch.tensor([[0.1, 0.0, 0.01]]))
        Repair(slot=tensor([1]), rewards=tensor([[0., 1., 0.]]), scores=tensor([[0.1000, 1.0000, 0.0100]]))

    Source: the ReCast paper, repair. MiniOneRec's ``add_gt`` is the nearest precedent: it overwrites the last response of
    every group.
    """
    group_tensors(rewards, scores, repairable, tie_break)
    rewards, scores = rewards.detach(), scores.detach()
    all_zero = (rewards <= 0).all(dim=1)
    if repairable is not None:
        all_zero = all_zero & repairable
    slot = first_best(-scores, all_zero[:, None].expand_as(scores), tie_break)

    is_slot = torch.arange(scores.shape[1], device=scores.device) == slot[:, None]
    return Repair(slot, rewards.masked_fill(is_slot, 1.0), scores.masked_fill(is_slot, 1.0))


def first_best(values: Tensor, allowed: Tensor, tie_break: Tensor | None = None) -> Tensor:
    """Index of the largest of the allowed values in each row, int64 ``(Q,)``; -1 where none is allowed.

    Ties go to the largest tie key, then to the lowest index.
    """
    if values.shape[1] == 0:
        return torch.full((values.shape[0],), -1, dtype=torch.int64, device=values.device)
    for keys in (values, tie_break):
        if keys is not None:
            lowest = keys.amin(dim=1, keepdim=True)
            best = torch.where(allowed, keys, lowest).amax(dim=1, keepdim=True)
            allowed = allowed & (keys == best)
    first = allowed.long().argmax(dim=1)  # argmax gives the first of equal values
    return torch.where(allowed.any(dim=1), first, -1)
