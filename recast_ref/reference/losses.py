"""The policy loss that the advantages feed: clipped surrogate plus KL, unchanged by ReCast (the paper keeps the outer objective).

Per token, with ``ratio = exp(logp - old_logp)`` and advantage ``A``::

    policy = max(-A * ratio, -A * clip(ratio, 1 - clip_low, 1 + clip_high))
    policy = min(policy, -A * dual_clip)                      where A < 0
    kl     = exp(ref_logp - logp) - (ref_logp - logp) - 1     the k3 estimator, "low_var_kl"

Both log-ratios are clamped to ±20 before ``exp``, and kl to ±10 after. Token losses are then averaged over the unmasked
tokens, and ``loss = policy + kl_coef * kl``.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import AGGREGATES as AGGREGATES
from .._checks import HALF, flag, logit_tensors, logits_loss_tensors, loss_options, loss_tensors


class PolicyLoss(NamedTuple):
    """0-d tensors: float32, or float64 if an input is. ``loss``, ``policy`` and ``kl`` carry a gradient to ``logps``."""

    loss: Tensor  # policy + kl_coef * kl
    policy: Tensor  # the clipped surrogate
    kl: Tensor  # k3 estimate of KL(policy || reference), 0 without ref_logps
    clip_fraction: Tensor  # share of unmasked tokens whose clipped term is the larger (the dual clip not counted)


def token_logps(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of each token under the softmax of its logits.

    ``logits[..., t, :]`` is the distribution that ``tokens[..., t]`` was drawn from. A causal model's output at a position is
    about the next token, so shift first: ``token_logps(model(tokens)[:, :-1], tokens[:, 1:])``.

    Args:
        logits: floating ``(..., T, V)``. ``-inf`` marks a token that cannot occur.
        tokens: int64 ``(..., T)``, values in ``[0, V)``.

    Returns:
        ``(..., T)``: float32, or float64 for float64 logits. Half-precision logits are summed in float32, because a ratio
        of probabilities needs more digits than they have.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, or a token outside the vocabulary.

    Source: verl ``logprobs_from_logits``, TRL ``selective_log_softmax``.
    """
    logit_tensors(logits, tokens)
    return _widen(logits).log_softmax(dim=-1).gather(dim=-1, index=_constant(tokens)[..., None]).squeeze(-1)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in HALF else x


def _constant(x: Tensor) -> Tensor:
    """Without a gradient. What was made under ``inference_mode`` cannot be saved for backward, but a copy of it can."""
    return x.clone() if x.is_inference() else x.detach()


def policy_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    ref_logps: Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float = 3.0,
    kl_coef: float = 0.0,
    aggregate: str = "token-mean",
) -> PolicyLoss:
    """Clipped policy loss with dual clip and KL penalty, as verl computes it, clamps included.

    Half-precision inputs are widened to float32 first. A NaN that is not masked makes the loss NaN, for the trainer to see.

    Args:
        logps: floating ``(B, T)``, log-probs of the tokens under the policy being trained.
        old_logps: floating ``(B, T)``, under the policy that sampled them (for an anchor: one teacher-forced pass).
        advantages: floating ``(B,)``, or ``(B, T)`` to weigh tokens.
        mask: ``(B, T)``, bool or 0/1; what is masked has no influence, whatever its value, NaN included.
        ref_logps: floating ``(B, T)``, under the frozen reference policy; needed where ``kl_coef`` > 0.
        clip_low, clip_high: the ratio is clipped to ``[1 - clip_low, 1 + clip_high]``; both >= 0.
        dual_clip: > 1, bound on ``ratio`` where the advantage is negative.
        kl_coef: >= 0.
        aggregate: ``"token-mean"`` over all tokens; ``"seq-mean-token-mean"`` and ``"seq-mean-token-sum"`` reduce each
            row first, then average the rows that have an unmasked token.

    Returns:
        :class:`PolicyLoss` ``(loss, policy, kl, clip_fraction)``. A batch with nothing unmasked gives 0, with a gradient
        of 0.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape, device or value, naming the argument.

    Source: verl 0.9.1, ``core_algos.compute_policy_loss_vanilla``, ``kl_penalty("low_var_kl")`` and ``agg_loss``.
    """
    loss_tensors(logps, old_logps, advantages, mask, ref_logps)
    clip_low, clip_high, dual_clip, kl_coef, aggregate = loss_options(
        clip_low, clip_high, dual_clip, kl_coef, aggregate, has_ref=ref_logps is not None
    )
    mask = _constant(mask).bool()
    if advantages.dim() == 1:
        advantages = advantages[:, None].expand_as(logps)

    def unmasked(x: Tensor) -> Tensor:  # before any arithmetic: a gradient through exp(nan) * 0 would be nan
        return torch.where(mask, _widen(x), 0.0)

    logps, advantages = unmasked(logps), unmasked(_constant(advantages))
    ratio = (logps - unmasked(_constant(old_logps))).clamp(-20, 20).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    policy = torch.maximum(unclipped, clipped)
    policy = torch.where(advantages < 0, torch.minimum(policy, -advantages * dual_clip), policy)
    policy = _aggregate(policy, mask, aggregate)

    if ref_logps is None:
        kl = policy.new_zeros(())
    else:
        log_ratio = (unmasked(_constant(ref_logps)) - logps).clamp(-20, 20)
        kl = _aggregate((log_ratio.exp() - log_ratio - 1).clamp(-10, 10), mask, aggregate)

    clip_fraction = _aggregate((clipped > unclipped).to(policy.dtype), mask, "token-mean")
    loss = policy + kl_coef * kl if kl_coef else policy
    return PolicyLoss(loss, policy, kl, clip_fraction)


def logits_loss(
    logits: Tensor,
    tokens: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    ref_logps: Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float = 3.0,
    kl_coef: float = 0.0,
    aggregate: str = "token-mean",
    inplace_backward: bool = False,
) -> PolicyLoss:
    """:func:`policy_loss` of :func:`token_logps`.

    Args:
        logits: floating ``(B, T, V)``; carries the gradient. What is masked may be all ``-inf`` or NaN.
        tokens: int64 ``(B, T)``; ``tokens[:, t]`` was drawn from ``logits[:, t]``. What is masked may be -100.
        old_logps: floating ``(B, T)``. At the first update after a rollout: the log-probs of these logits, detached.
        inplace_backward: let backward write the gradient over the logits. The reference has no use for it and makes a new
            tensor; :func:`recast_ref.fast.logits_loss` saves that memory.
        the others: as for :func:`policy_loss`.

    Returns and errors are those of the two functions.

    Example:
        >>> logits = torch.zeros(2, 3, 10, requires_grad=True)
        >>> tokens = torch.tensor([[1, 2, 3], [1, 2, 4]])  # a pair: the positive, then the negative
        >>> old_logps = token_logps(logits, tokens).detach()
        >>> result = logits_loss(logits, tokens, old_logps, torch.tensor([1.0, -1.0]), torch.ones(2, 3))
        >>> result.loss.backward()
        >>> result.loss.item(), logits.grad[0, 2, 3].item() < 0 < logits.grad[1, 2, 4].item()
        (0.0, True)
    """
    logits_loss_tensors(logits, tokens, old_logps, advantages, mask, ref_logps)
    flag("inplace_backward", inplace_backward)
    mask = _constant(mask).bool()
    logps = token_logps(torch.where(mask[..., None], logits, 0.0), tokens.where(mask, 0))
    return policy_loss(
        logps, old_logps, advantages, mask, ref_logps, clip_low, clip_high, dual_clip, kl_coef, aggregate
    )


def _aggregate(values: Tensor, mask: Tensor, how: str) -> Tensor:
    """Reduce ``(B, T)`` values, 0 where masked, to one number; 0 if nothing is unmasked."""
    values = torch.where(mask, values, 0.0)
    tokens = mask.sum(dim=1)
    if how == "token-mean":
        return values.sum() / tokens.sum().clamp(min=1)
    rows = values.sum(dim=1)
    if how == "seq-mean-token-mean":
        rows = rows / tokens.clamp(min=1)
    return rows.sum() / (tokens > 0).sum().clamp(min=1)
