"""What a group teaches under GRPO, and when it teaches nothing (the ReCast paper, its baseline and its diagnosis).

GRPO compares each response with its own group: ``A_i = (r_i - mean) / (std + eps)``. With rewards of 0 and 1, and ``K``
hits among ``G = 8``::

    K = 0   all-zero    every A_i is 0: the rollouts were paid for and nothing is learned
    K = 1   single-hit  the hit gets A = 2.47, the others -0.35 each
    K >= 2  multi-hit   K = 2: the hits get 1.62 each, the others -0.54; K = 8: every A_i is 0 again

With sparse hits most groups are all-zero: 85 % in the paper's setting.

Any finite reward will do: -1 and +1, a grade, a penalty for a broken format. A hit is ``r > 0``, and ``K`` counts hits; all
other responses are misses, whatever they got.
"""

import torch
from torch import Tensor

from .._checks import flag, number, refuse, reward_tensor


def group_regimes(rewards: Tensor) -> Tensor:
    """The regime of each group.

    Args:
        rewards: floating ``(Q, G)``, finite. A hit is a reward above 0.

    Returns:
        int64 ``(Q,)``: 0 all-zero (no hit), 1 single-hit, 2 multi-hit.

    Raises:
        TypeError, ValueError: ``rewards`` has another type, dtype, shape, or a NaN or infinite value.

    Source: the ReCast paper, all-zero, single-hit and multi-hit groups.
    """
    reward_tensor(rewards)
    return (rewards > 0).sum(dim=1).clamp(max=2)


def group_advantages(rewards: Tensor, normalize: bool = True, eps: float = 1e-6) -> Tensor:
    """GRPO advantages, the baseline (OpenOneRec-RL) that ReCast starts from.

    ``A_i = (r_i - mean) / (std + eps)`` with the unbiased standard deviation of the group; ``normalize=False`` leaves
    the division out (Dr. GRPO). A group of one has no spread: its mean counts as 0 and its deviation as 1.

    Equal rewards give A = 0 exactly. Here this departs from verl: the mean of seven rewards of 0.7 is a rounding error off
    in float32, the deviation is hardly more, and verl answers 0.056 for each of the seven. A group without information
    would push all of its responses one way (the fault that NeMo-RL#4158, OpenRLHF#1272 and twinkle#288 fixed). All other
    numbers are verl's, computed in float64.

    Args:
        rewards: floating ``(Q, G)``, finite.
        normalize: divide by the group's standard deviation.
        eps: added to the deviation, > 0.

    Returns:
        ``A``: ``(Q, G)``, dtype of ``rewards``.

    Raises:
        TypeError, ValueError: as :func:`group_regimes`; ``normalize`` is no bool; ``eps`` is no number or not > 0; rewards
            so far apart that float64 cannot hold their differences (with ``normalize=False``: that their dtype cannot).

    Source: verl 0.9.1, ``core_algos.compute_grpo_outcome_advantage``.
    """
    reward_tensor(rewards)
    flag("normalize", normalize)
    eps = number("eps", eps, low=0, include_low=False)
    r = rewards.detach().double()
    unit = torch.ones_like(r[:, :1])
    if r.shape[1] > 1 and len(r) > 0:
        # Seen from the lowest reward, in units of the range, equal ones are 0 and no square overflows or vanishes.
        low, high = r.amin(dim=1, keepdim=True), r.amax(dim=1, keepdim=True)
        unit = torch.where(high > low, high - low, 1.0)
        r = (r - low) / unit
        mean, std = r.mean(dim=1, keepdim=True), r.std(dim=1, keepdim=True)
    else:
        mean, std = torch.zeros_like(unit), unit
    advantages = (r - mean) / (std + torch.full_like(unit, eps) / unit) if normalize else (r - mean) * unit
    advantages = advantages.to(rewards.dtype)
    wanted = f"values whose differences {torch.float64 if normalize else rewards.dtype} can hold"
    refuse("rewards", ~advantages.isfinite(), rewards, wanted)
    return advantages
