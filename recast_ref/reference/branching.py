"""Branch point: where the negative leaves the positive (ours, not in the paper; RAD-DPO, arXiv 2602.23964, for DPO).

With one target and one SID per response, the hardest negative is the one that shares the most leading codes with the
positive. On those shared tokens ``+w`` and ``-w`` cancel, so the published pair teaches only the codes after the split. If
the negative counts only from its branch point on, the shared codes keep the positive's signal::

    positive     12   7  201      advantage  +w  +w  +w
    negative     12   7   40      advantage   0   0  -w
"""

from torch import Tensor

from .._checks import branch_tensors


def branch_mask(positive_tokens: Tensor, negative_tokens: Tensor) -> Tensor:
    """True from the first token where the negative leaves the positive; all False if it never does.

    Multiply the negative's advantage by it to get per-token advantages ``(B, T)`` for
    :func:`~recast_ref.reference.policy_loss`.

    Args:
        positive_tokens: int64 ``(..., T)``.
        negative_tokens: int64, same shape and device.

    Returns:
        bool, same shape.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, naming the argument.

    Example:
        >>> branch_mask(torch.tensor([12, 7, 201]), torch.tensor([12, 7, 40]))
        tensor([False, False,  True])
    """
    branch_tensors(positive_tokens, negative_tokens)
    return (positive_tokens != negative_tokens).cumsum(dim=-1) > 0
