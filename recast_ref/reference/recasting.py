"""ReCast: repair, then contrast (arXiv 2604.22169)."""

from typing import NamedTuple

from torch import Tensor

from .._checks import group_tensors, sid_tensors
from .contrasting import contrast
from .repairing import repair
from .scoring import hit_rewards, structural_scores


class ReCast(NamedTuple):
    """Which response the anchor replaces, and the pair each group is updated on."""

    slot: Tensor  # int64 (Q,): where the anchor goes, -1 where the group is untouched
    positive: Tensor  # int64 (Q,): i+, -1 where the group is skipped
    negative: Tensor  # int64 (Q,): i-, -1 where the group is skipped
    advantages: Tensor  # (Q, G): +weight at i+, -negative_weight at i-, else 0


def recast(
    rewards: Tensor,
    scores: Tensor,
    repairable: Tensor | None = None,
    weight: float = 1.0,
    negative_weight: float | None = None,
    tie_break: Tensor | None = None,
) -> ReCast:
    """Turn groups of any regime into pairs: :func:`~.repair` where there is no hit, then :func:`~.contrast`.

    A group is skipped (``positive = negative = -1``) where no pair exists: it has no hit and cannot be repaired, or every
    response hits. An all-zero group of one is skipped too, although ``slot`` is 0: its anchor has no negative.

    Args:
        rewards: floating ``(Q, G)``, finite.
        scores: floating ``(Q, G)``, structural scores ``u``, no NaN.
        repairable: bool ``(Q,)``, False where the prompt has no usable target. Default: all True.
        weight: ``w`` > 0, the positive's advantage.
        negative_weight: ``w_neg`` >= 0; default ``weight``, as published.
        tie_break: floating ``(Q, G)``, no NaN; ties go to the largest key, else to the lowest index.

    Returns:
        :class:`ReCast` ``(slot, positive, negative, advantages)``.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or value, naming the argument.

    Example:
        >>> recast(torch.zeros(1, 3), torch.tensor([[0.1, 0.0, 0.01]]))
        ReCast(slot=tensor([1]), positive=tensor([1]), negative=tensor([0]), advantages=tensor([[-1.,  1.,  0.]]))

    Source: arXiv 2604.22169, the repair-then-contrast framework.
    """
    group_tensors(rewards, scores, repairable, tie_break)
    slot, rewards, scores = repair(rewards, scores, repairable, tie_break)
    return ReCast(slot, *contrast(rewards, scores, weight, negative_weight, tie_break))


def recast_from_sids(
    predictions: Tensor,
    targets: Tensor,
    weight: float = 1.0,
    negative_weight: float | None = None,
    tie_break: Tensor | None = None,
) -> ReCast:
    """From SIDs to the pair: :func:`~.hit_rewards` and :func:`~.structural_scores`, then :func:`recast`.

    A prompt can be repaired if it has a target: a SID that is not padding.

    Args:
        predictions: int64 ``(Q, G, M, L)``, as for :func:`~.structural_scores`.
        targets: int64 ``(Q, K, L)``.
        weight, negative_weight, tie_break: as for :func:`recast`.

    Returns:
        :class:`ReCast` ``(slot, positive, negative, advantages)``; advantages are float32.

    Raises:
        TypeError, ValueError: as the functions it composes.
    """
    sid_tensors(predictions, targets, tie_break)
    rewards, scores = hit_rewards(predictions, targets), structural_scores(predictions, targets)
    repairable = (targets >= 0).all(dim=-1).any(dim=-1)
    return recast(rewards, scores, repairable, weight, negative_weight, tie_break)
