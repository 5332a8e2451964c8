"""Contrast: learn from two responses of the group, one on each side of the boundary (the ReCast paper, second stage).

``i+ = argmax_i r_i`` is the strongest positive. ``i- = argmax over {i : r_i <= 0} of u_i`` is the hardest negative: wrong,
yet closest to right. ``A_{i+} = +w``, ``A_{i-} = -w``, all else 0. So the update needs two responses, however wide the
search was; the trainer drops the others before any log-prob is computed.

At the first update every ratio is 1, so for equally long responses the pair's losses ``-w`` and ``+w`` cancel and the logged
loss is 0. The gradient is not.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import group_tensors, pair_weights
from .repairing import first_best


class Contrast(NamedTuple):
    """The pair of each group."""

    positive: Tensor  # int64 (Q,): i+, -1 where the group is skipped
    negative: Tensor  # int64 (Q,): i-, -1 where the group is skipped
    advantages: Tensor  # (Q, G): +weight at i+, -negative_weight at i-, else 0


def contrast(
    rewards: Tensor,
    scores: Tensor,
    weight: float = 1.0,
    negative_weight: float | None = None,
    tie_break: Tensor | None = None,
) -> Contrast:
    """Choose the strongest positive and the hardest negative, and their advantages.

    A positive is ``r > 0``, a negative is a miss, ``r <= 0``. Rewards may be graded, or penalties; among misses ``u`` alone
    ranks, however low the reward. A group without one of the two is skipped.
    Ties go to the largest tie key, else to the lowest index. Give random keys in training: beam rollouts come sorted by
    probability, so in every tie "lowest index" would punish the likeliest response. (Our choice; the paper is silent.)

    Args:
        rewards: floating ``(Q, G)``, finite.
        scores: floating ``(Q, G)``, structural scores ``u``, no NaN.
        weight: ``w`` > 0, the positive's advantage; the dtype of ``rewards`` must be able to hold it.
        negative_weight: ``w_neg`` >= 0, if the negative is to count differently. Default: ``weight``, as published.
        tie_break: floating ``(Q, G)``, no NaN.

    Returns:
        :class:`Contrast` ``(positive, negative, advantages)``; advantages have the dtype of ``rewards``.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or value, naming the argument.

    Example:
        >>> contrast(torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[0.1, 1.0, 0.01]]))
        Contrast(positive=tensor([1]), negative=tensor([0]), advantages=tensor([[-1.,  1.,  0.]]))

    Source: the ReCast paper, boundary-focused contrast.
    """
    group_tensors(rewards, scores, tie_break=tie_break)
    weight, negative_weight = pair_weights(weight, negative_weight, rewards.dtype)
    rewards, scores = rewards.detach(), scores.detach()

    positive = first_best(rewards, rewards > 0, tie_break)
    negative = first_best(scores, rewards <= 0, tie_break)
    skipped = (positive < 0) | (negative < 0)
    positive, negative = positive.masked_fill(skipped, -1), negative.masked_fill(skipped, -1)

    index = torch.arange(rewards.shape[1], device=rewards.device)
    advantages = torch.zeros_like(rewards)
    advantages = advantages.masked_fill(index == positive[:, None], weight)
    advantages = advantages.masked_fill(index == negative[:, None], -negative_weight)
    return Contrast(positive, negative, advantages)
