"""The functions of :mod:`recast_ref.reference`, with the same names and arguments, as compiled ops.

Importing this loads the compiled library, and builds it first where there is none (``recast_ref/_library.py``); it raises
``ImportError`` with the reason and the remedy if that cannot be. ``csrc/`` holds the kernels.

What the values mean is said in the reference; here each function says what makes it fast. A bad argument is refused in the
same words.

The losses have a gradient and no other derivative: forward mode and second derivatives are refused (``NotImplementedError``), and
the reference has them. ``torch.func.grad``, ``jacrev`` and ``vmap`` work; ``vmap`` makes a call for each of the batch. Under
``torch.compile``, transform what is compiled, ``grad(compile(f))`` and not the other way round, and clone what was made under
``inference_mode`` before it is given to a compiled function.

On a CUDA device nothing waits for the device, so that calls can be captured in a CUDA graph. Types, shapes and devices are
checked as on the CPU; a bad *value* (a NaN reward, a token outside the vocabulary) stops the kernel with a message on stderr,
as PyTorch's own indexing does, and the next CUDA call raises. Sums go in a fixed order: the same input gives the same bits.
"""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from .. import _checks as checks
from .. import reference
from .._library import load
from ..reference import Contrast, Hybrid, PolicyLoss, ReCast, Repair

_library = load()

from . import ops as differentiable  # noqa: E402  (the ops exist once the library is loaded)
from .ops import LossInPlace, loss_in_place, ops  # noqa: E402

__all__ = ["build_info"]
__all__ += reference.__all__

# What the kernels raise for bad input. The checks then find it, and the words for it. No other exception may be caught here:
# activation checkpointing ends its second forward pass with one.
REFUSED = (TypeError, ValueError)


def build_info() -> dict[str, str]:
    """Compiler, flags, CUDA architectures and torch version of the loaded library: a dict of strings."""
    return _library.build_info()


def _name_it(check: Callable[..., object], *arguments: object, **options: object) -> None:
    """Raises the error in the words of the checks. What they cannot look at, under ``vmap``, is left to the op's own."""
    with contextlib.suppress(RuntimeError):
        check(*arguments, **options)


def structural_scores(predictions: Tensor, targets: Tensor) -> Tensor:
    """:func:`recast_ref.reference.structural_scores` as one loop over the responses, which stops at the first code that
    differs and makes no ``(Q, G, M, K, L)`` intermediate; parallel over responses."""
    checks.dense(predictions=predictions, targets=targets)
    try:
        return ops.structural_scores(predictions, targets)
    except REFUSED:
        _name_it(checks.sid_tensors, predictions, targets)
        raise


def hit_rewards(predictions: Tensor, targets: Tensor) -> Tensor:
    """:func:`recast_ref.reference.hit_rewards`, by the loop of :func:`structural_scores`."""
    checks.dense(predictions=predictions, targets=targets)
    try:
        return ops.hit_rewards(predictions, targets)
    except REFUSED:
        _name_it(checks.sid_tensors, predictions, targets)
        raise


def group_regimes(rewards: Tensor) -> Tensor:
    """:func:`recast_ref.reference.group_regimes`, each group read once."""
    checks.dense(rewards=rewards)
    try:
        return ops.group_regimes(rewards)
    except REFUSED:
        _name_it(checks.reward_tensor, rewards)
        raise


def group_advantages(rewards: Tensor, normalize: bool = True, eps: float = 1e-6) -> Tensor:
    """:func:`recast_ref.reference.group_advantages`, each group read once, with sums in double."""
    checks.dense(rewards=rewards)
    checks.flag("normalize", normalize)
    eps = checks.number("eps", eps, low=0, include_low=False)
    try:
        return ops.group_advantages(rewards, normalize, eps)
    except REFUSED:
        reference.group_advantages(rewards, normalize, eps)  # what is refused can be the answer
        raise


def repair(
    rewards: Tensor, scores: Tensor, repairable: Tensor | None = None, tie_break: Tensor | None = None
) -> Repair:
    """:func:`recast_ref.reference.repair`: one pass over each group picks the slot, ties and all, where the reference takes
    several over the whole batch."""
    checks.dense(rewards=rewards, scores=scores, repairable=repairable, tie_break=tie_break)
    try:
        return Repair(*ops.repair(rewards, scores, repairable, tie_break))
    except REFUSED:
        _name_it(checks.group_tensors, rewards, scores, repairable, tie_break)
        raise


def contrast(
    rewards: Tensor,
    scores: Tensor,
    weight: float = 1.0,
    negative_weight: float | None = None,
    tie_break: Tensor | None = None,
) -> Contrast:
    """:func:`recast_ref.reference.contrast`: one pass over each group finds both members of the pair."""
    checks.dense(rewards=rewards, scores=scores, tie_break=tie_break)
    weights = checks.pair_weights(weight, negative_weight, rewards.dtype)
    try:
        return Contrast(*ops.contrast(rewards, scores, *weights, tie_break))
    except REFUSED:
        _name_it(checks.group_tensors, rewards, scores, tie_break=tie_break)
        raise


def recast(
    rewards: Tensor,
    scores: Tensor,
    repairable: Tensor | None = None,
    weight: float = 1.0,
    negative_weight: float | None = None,
    tie_break: Tensor | None = None,
) -> ReCast:
    """:func:`recast_ref.reference.recast`: a group is read once into a small buffer, repaired there and contrasted there;
    parallel over prompts."""
    checks.dense(rewards=rewards, scores=scores, repairable=repairable, tie_break=tie_break)
    weights = checks.pair_weights(weight, negative_weight, rewards.dtype)
    try:
        return ReCast(*ops.recast(rewards, scores, repairable, *weights, tie_break))
    except REFUSED:
        _name_it(checks.group_tensors, rewards, scores, repairable, tie_break)
        raise


def recast_from_sids(
    predictions: Tensor,
    targets: Tensor,
    weight: float = 1.0,
    negative_weight: float | None = None,
    tie_break: Tensor | None = None,
) -> ReCast:
    """:func:`recast_ref.reference.recast_from_sids` in one op: rewards and scores live in a buffer of one group and are
    never written to memory."""
    checks.dense(predictions=predictions, targets=targets, tie_break=tie_break)
    weights = checks.pair_weights(weight, negative_weight, torch.float32)
    try:
        return ReCast(*ops.recast_from_sids(predictions, targets, *weights, tie_break))
    except REFUSED:
        _name_it(checks.sid_tensors, predictions, targets, tie_break)
        raise


def branch_mask(positive_tokens: Tensor, negative_tokens: Tensor) -> Tensor:
    """:func:`recast_ref.reference.branch_mask`, one pass a row."""
    checks.dense(positive_tokens=positive_tokens, negative_tokens=negative_tokens)
    try:
        return ops.branch_mask(positive_tokens, negative_tokens)
    except REFUSED:
        _name_it(checks.branch_tensors, positive_tokens, negative_tokens)
        raise


def token_logps(logits: Tensor, tokens: Tensor) -> Tensor:
    """:func:`recast_ref.reference.token_logps` without a log-softmax: forward reads each row once from memory and keeps two
    numbers for it, its log-sum-exp in two parts; backward is one pass that writes the gradient. Logits of any of the four
    dtypes are read as they are, sixteen at a time, with sums in float32 or wider; parallel over rows, whose results do not
    depend on the number of threads."""
    checks.dense(logits=logits, tokens=tokens)
    try:
        return differentiable.token_logps(logits, tokens, None, False)[0]
    except REFUSED:
        _name_it(checks.logit_tensors, logits, tokens)
        raise


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
    """:func:`recast_ref.reference.policy_loss` in one pass forward and one backward, with nothing kept between them and sums
    in double."""
    checks.dense(logps=logps, old_logps=old_logps, advantages=advantages, mask=mask, ref_logps=ref_logps)
    options = checks.loss_options(clip_low, clip_high, dual_clip, kl_coef, aggregate, has_ref=ref_logps is not None)
    tensors = (logps, old_logps, advantages, mask, ref_logps)
    try:
        return PolicyLoss(*differentiable.policy_loss(*tensors, *options))
    except REFUSED:
        _name_it(checks.loss_tensors, *tensors)
        raise


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
    """:func:`recast_ref.reference.logits_loss` by :func:`token_logps` and :func:`policy_loss`. A masked row of logits is not
    even read.

    With ``inplace_backward=True`` the gradient is written over the logits and nothing of their size is allocated. They
    must then not be used again: not by another loss, not by a second backward (autograd refuses that), not by you.
    ``torch.compile`` ignores it and makes a new tensor.

    On a CUDA device it is written already in forward (float16 excepted). Where there are enough rows to keep the device busy, that
    is while a row is still in the caches, so that it is read from memory once and written once. Then only ``.loss`` has a
    gradient. Backward multiplies by what comes in, unless that is 1.
    """
    checks.dense(
        logits=logits, tokens=tokens, old_logps=old_logps, advantages=advantages, mask=mask, ref_logps=ref_logps
    )
    checks.flag("inplace_backward", inplace_backward)
    options = checks.loss_options(clip_low, clip_high, dual_clip, kl_coef, aggregate, has_ref=ref_logps is not None)
    rest = (old_logps, advantages, mask, ref_logps)
    try:
        if inplace_backward and loss_in_place(logits):
            constants = (x if x is None else x.detach() for x in rest)
            return PolicyLoss(*LossInPlace.apply(logits, tokens, *constants, *options))
        kept = mask.detach().bool()
        logps = differentiable.token_logps(logits, tokens, kept, inplace_backward)[0]
        # The mask as it came, so that one of anything but 0 and 1 is refused.
        return PolicyLoss(*differentiable.policy_loss(logps, *rest, *options))
    except REFUSED:
        _name_it(checks.logits_loss_tensors, logits, tokens, *rest)
        raise


def choose_anchor(targets: Tensor, values: Tensor, tie_break: Tensor | None = None) -> Tensor:
    """:func:`recast_ref.reference.choose_anchor`: one pass over the targets of each prompt, parallel over prompts."""
    checks.dense(targets=targets, values=values, tie_break=tie_break)
    try:
        return ops.choose_anchor(targets, values, tie_break)
    except REFUSED:
        _name_it(checks.anchor_tensors, targets, values, tie_break)
        raise


def nearness(predictions: Tensor, targets: Tensor) -> Tensor:
    """:func:`recast_ref.reference.nearness`, by the loop of :func:`structural_scores`: over the targets, each against all that
    the group named."""
    checks.sid_tensors(predictions, targets)  # first: turned round, they would be refused under each other's name
    return ops.structural_scores(targets[:, :, None], predictions.flatten(1, 2))


def anchor_weights(logps: Tensor, alpha: float = 0.5, largest: float = 4.0) -> Tensor:
    """:func:`recast_ref.reference.anchor_weights` as one op: three passes over the anchors of the batch, in double."""
    checks.dense(logps=logps)
    options = checks.anchor_options(alpha, largest, logps.dtype)
    try:
        return ops.anchor_weights(logps, *options)
    except REFUSED:
        _name_it(checks.anchor_logps, logps)
        raise


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
    """:func:`recast_ref.reference.hybrid`: the same few lines, over :func:`recast` and :func:`group_advantages` of this
    module, which do nearly all of the work."""
    picked = recast(rewards, scores, repairable, weight, negative_weight, tie_break)
    whole = group_advantages(rewards, normalize, eps)
    hit = (rewards > 0).any(dim=1)
    return Hybrid(
        picked.slot,
        picked.positive.masked_fill(hit, -1),
        picked.negative.masked_fill(hit, -1),
        torch.where(hit[:, None], whole, picked.advantages),
    )
