"""What a group teaches under GRPO, and when it teaches nothing (the ReCast paper, its baseline and its diagnosis).

GRPO compares each response with its own group: ``A_i = (r_i - mean) / (std + eps)``. With ``K`` hits among ``G = 8``::

    K = 0   all-zero    every A_i is 0: the rollouts were paid for and nothing is learned
    K = 1   single-hit  the hit gets A = 2.47, the others -0.35 each
    K >= 2  multi-hit   K = 2: the hits get 1.62 each, the others -0.54; K = 8: every A_i is 0 again

With sparse hits most groups are all-zero: 85 % in the paper's setting.
"""

from .._checks import flag, number, reward_tensor


def group_regimes(rewards):
    """The regime of each group.

    Args:
        rewards: floating ``(Q, G)``, finite and >= 0. A hit is a reward above 0.

    Returns:
        int64 ``(Q,)``: 0 all-zero, 1 single-hit, 2 multi-hit.

    Raises:
        TypeError, ValueError: ``rewards`` has another type, dtype, shape, or a NaN, infinite or negative value.

    Source: the ReCast paper, all-zero, single-hit and multi-hit groups.
    """
    reward_tensor(rewards)
    return (rewards > 0).sum(dim=1).clamp(max=2)


def group_advantages(rewards, normalize=True, eps=1e-6):
    """GRPO advantages, the baseline (OpenOneRec-RL) that ReCast starts from.

    ``A_i = (r_i - mean) / (std + eps)`` with the unbiased standard deviation of the group; ``normalize=False`` leaves
    the division out (Dr. GRPO). A group of one has no spread: its mean counts as 0 and its deviation as 1. Equal graded
    rewards can leave a mean that is a rounding error off, which the small deviation makes visible (0.056 each for seven
    rewards of 0.7 in float32); verl does the same.

    Args:
        rewards: floating ``(Q, G)``, finite and >= 0.
        normalize: divide by the group's standard deviation.
        eps: added to the deviation, > 0.

    Returns:
        ``A``: ``(Q, G)``, dtype of ``rewards``.

    Raises:
        TypeError, ValueError: as :func:`group_regimes`; ``normalize`` is no bool; ``eps`` is no number or not > 0.

    Source: verl 0.9.1, ``core_algos.compute_grpo_outcome_advantage``.
    """
    reward_tensor(rewards)
    flag("normalize", normalize)
    eps = number("eps", eps, low=0, include_low=False)
    rewards = rewards.detach()
    if rewards.shape[1] <= 1 or len(rewards) == 0:
        mean, std = rewards.new_zeros(()), rewards.new_ones(())
    else:
        mean, std = rewards.mean(dim=1, keepdim=True), rewards.std(dim=1, keepdim=True)
    return (rewards - mean) / (std + eps) if normalize else rewards - mean
