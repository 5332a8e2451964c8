"""Anchors: which target an all-zero group is shown, and how far it is trusted (ours, not in the paper).

A prompt may have several targets, and its anchor is one of them. One that the policy can nearly say pulls less hard than one
drawn at random. And a logged target may be wrong: an anchor with a probability of 1e-6 under the policy is either a lesson or a
slip of the log, and its gradient is as long as any other's.
"""

import torch
from torch import Tensor

from .._checks import anchor_logps, anchor_options, anchor_tensors, sid_tensors
from .repairing import first_best
from .scoring import structural_scores


def choose_anchor(targets: Tensor, values: Tensor, tie_break: Tensor | None = None) -> Tensor:
    """Which of its targets becomes the anchor of each prompt: the real one of the largest value.

    What the values are is the choice: log-probs under the old policy take the likeliest target, :func:`nearness` the one that the
    group came nearest to, random keys any. Ties go to the largest tie key, else to the lowest index.

    Args:
        targets: int64 ``(Q, K, L)``, up to ``K`` target SIDs of each prompt. A SID with any code below 0 is padding.
        values: floating ``(Q, K)``, no NaN. What stands at padding has no influence, NaN included.
        tie_break: floating ``(Q, K)``, as ``values``.

    Returns:
        int64 ``(Q,)``: the index of the target, -1 where there is none.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or value, naming the argument.

    Example:
        >>> choose_anchor(torch.tensor([[[12, 7], [30, 2], [-1, -1]]]), torch.tensor([[-9.0, -4.0, 0.0]]))
        tensor([1])
    """
    anchor_tensors(targets, values, tie_break)
    real = (targets >= 0).all(dim=-1)
    values = values.detach().masked_fill(~real, -torch.inf)
    if tie_break is not None:
        tie_break = tie_break.detach().masked_fill(~real, -torch.inf)
    return first_best(values, real, tie_break)


def nearness(predictions: Tensor, targets: Tensor) -> Tensor:
    """How near the group came to each target: the best prefix agreement ``phi`` of any SID that a response names.

    This is :func:`~.structural_scores` the other way round: each target is scored against all that the group named.

    Args:
        predictions: int64 ``(Q, G, M, L)``, padded as for :func:`~.structural_scores`.
        targets: int64 ``(Q, K, L)``, padded alike.

    Returns:
        float32 ``(Q, K)`` in [0, 1], 0 at padding.

    Raises:
        TypeError, ValueError: as :func:`~.structural_scores`.

    Example:
        >>> nearness(torch.tensor([[[[12, 9]], [[44, 0]]]]), torch.tensor([[[12, 7], [30, 2]]]))
        tensor([[0.1000, 0.0000]])
    """
    sid_tensors(predictions, targets)
    return structural_scores(targets[:, :, None], predictions.flatten(1, 2))


def anchor_weights(logps: Tensor, alpha: float = 0.5, largest: float = 4.0) -> Tensor:
    """How much each anchor counts: its probability to the power ``alpha``, relative to the mean over the batch.

    Let ``p`` be the policy's probability of the one target that hits.

    1. The expected reward of a rollout is ``p``, so its policy gradient is ``grad p = p grad log p``: exact, and without a rollout.
    2. Supervised learning follows ``grad log p``: the same direction for each prompt, with another weight, 1 for ``p``.
    3. Between them lies ``p^alpha grad log p``, the gradient of ``(p^alpha - 1) / alpha``: ``log p`` as ``alpha`` goes to 0, and
       ``p - 1`` at 1. (As a loss against wrong labels: Zhang and Sabuncu, arXiv 1805.07836.)
    4. ``alpha = 1/2`` is half-way: an anchor is trusted as far as the policy can imagine it.
    5. Divided by their mean, the weights change which prompts count, and not how long a step is.

    The mean is made 1 first, and what is above ``largest`` is then cut off: after that the mean is 1 at most. The rest is not
    raised to make up for it, so that one likely anchor does not decide what the others weigh.

    Args:
        logps: floating ``(Q,)``, finite: log-prob of each whole anchor under the policy that sampled.
        alpha: in [0, 1].
        largest: >= 1.

    Returns:
        ``(Q,)``, dtype of ``logps``, in [0, largest]. No gradient.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or value, naming the argument.

    Example:
        >>> anchor_weights(torch.tensor([0.01, 0.09]).log())
        tensor([0.5000, 1.5000])
    """
    anchor_logps(logps)
    alpha, largest = anchor_options(alpha, largest, logps.dtype)
    share = (alpha * logps.detach().double()).softmax(dim=0)  # of the sum: no p is ever made, so that none vanishes
    return (share * len(logps)).clamp(max=largest).to(logps.dtype)
