"""What a response is worth: the task reward ``r`` and the structural score ``u`` (the ReCast paper, rewards and structural score).

A response names items by semantic IDs (SIDs), tuples of ``L`` codes from coarse to fine. ``P_i`` is the set of SIDs in
response ``i``, ``T`` the set of target SIDs. The reward asks for a full match and is all the policy is paid for. The
structural score also sees near misses, and is used only to rank responses inside a group.

With the target ``(12, 7, 201)``::

    (12, 7, 201)   r = 1   u = 1      all three codes
    (12, 7,  40)   r = 0   u = 0.1    the first two
    (12, 9, 201)   r = 0   u = 0.01   the first only: a code counts only while all before it agree
    (30, 7, 201)   r = 0   u = 0
"""

import torch
from torch import Tensor

from .._checks import sid_tensors


def structural_scores(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean over the predicted SIDs of their best prefix agreement with any target::

        u_i = 1/|P_i| * sum over p in P_i of max over t in T of phi(p, t)

    where ``phi`` is ``10 ** -(L - m)`` for SIDs that agree on exactly their first ``m >= 1`` codes, and 0 for ``m = 0``.
    Both sides are sets: duplicates count once, an empty set gives ``u = 0``.

    Args:
        predictions: int64 ``(Q, G, M, L)``, up to ``M`` SIDs in each response. A SID with any code below 0 is padding.
        targets: int64 ``(Q, K, L)``, up to ``K`` target SIDs of each prompt, padded alike.

    Returns:
        ``u``: float32 ``(Q, G)`` in [0, 1]. It does not depend on the order of the SIDs, to the last bit.

    Raises:
        TypeError: an argument is not an int64 tensor.
        ValueError: shapes or devices disagree, ``L`` is not in 1..15, or ``M * 10 ** (L - 1)`` is no int64.

    Source: the ReCast paper, structural score; OpenOneRec's ``partial_hit_reward`` is 100 times this, without the sets.
    """
    sid_tensors(predictions, targets)
    levels = predictions.shape[-1]
    matched = _matched_codes(predictions, targets)  # (Q, G, M, K)
    if matched.shape[-1] == 0:
        return predictions.new_zeros(predictions.shape[:2], dtype=torch.float32)
    best = matched.amax(dim=-1)  # phi grows with the number of matched codes
    # phi * 10 ** (L - 1) is the integer 10 ** (m - 1): a sum of integers does not depend on their order.
    phi = torch.tensor([0] + [10**m for m in range(levels)], device=predictions.device)[best]
    members = _distinct(predictions)  # (Q, G, M)
    total = (phi * members).sum(dim=-1)
    size = members.sum(dim=-1).clamp(min=1)  # an empty set has total 0
    return (total.double() / (size * 10 ** (levels - 1)).double()).float()


def hit_rewards(predictions: Tensor, targets: Tensor) -> Tensor:
    """1 where any SID of the response is a target, else 0.

    Args, padding and errors are those of :func:`structural_scores`.

    Returns:
        ``r``: float32 ``(Q, G)``.

    Source: the ReCast paper, task reward; OpenOneRec's ``hit_reward``.
    """
    sid_tensors(predictions, targets)
    hits = _matched_codes(predictions, targets) == predictions.shape[-1]
    return hits.flatten(start_dim=2).any(dim=-1).float()


def _matched_codes(predictions: Tensor, targets: Tensor) -> Tensor:
    """How many leading codes agree, int64 ``(Q, G, M, K)``; 0 where either side is padding."""
    real = _is_real(predictions)[..., None] & _is_real(targets)[:, None, None]
    agree = predictions[:, :, :, None] == targets[:, None, None]  # (Q, G, M, K, L)
    return agree.long().cumprod(dim=-1).sum(dim=-1) * real


def _is_real(sids: Tensor) -> Tensor:
    return (sids >= 0).all(dim=-1)


def _distinct(sids: Tensor) -> Tensor:
    """Which SIDs of each response are members of its set: real, and not a copy of an earlier one. Bool ``(Q, G, M)``."""
    same = (sids[:, :, :, None] == sids[:, :, None]).all(dim=-1)  # (Q, G, M, M)
    copy_of_earlier = same.tril(diagonal=-1).any(dim=-1)
    return _is_real(sids) & ~copy_of_earlier
