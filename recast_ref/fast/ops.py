"""What torch needs to know of each op beside its kernels: fake kernels, for ``torch.compile``, and autograd.

The schemas are in ``csrc/ops.cpp``. Selection has no gradient; ``token_logps`` and ``policy_loss`` have one each, which is
an op of its own.
"""

import torch

from .._library import why_no_cuda

ops = torch.ops.recast

_SELECTION = (
    *("structural_scores", "hit_rewards", "group_regimes", "group_advantages", "repair", "contrast", "recast"),
    *("recast_from_sids", "branch_mask"),
)
_library = torch.library.Library("recast", "IMPL")


def _fake(name):
    return torch.library.register_fake(f"recast::{name}", lib=_library)


def _wide(*tensors):
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def _one_device(*tensors):
    """A tensor on ``meta`` beside one that is not would bring the call here."""
    devices = {tensor.device for tensor in tensors if tensor is not None}
    if len(devices) > 1:
        raise ValueError(f"expected one device, got {', '.join(sorted(map(str, devices)))}")


# Autograd passes straight through selection: nothing it returns requires a gradient.
for _name in _SELECTION:
    _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")


@_fake("structural_scores")
@_fake("hit_rewards")
def _(predictions, targets):
    _one_device(predictions, targets)
    return predictions.new_empty(predictions.shape[:2], dtype=torch.float32)


@_fake("group_regimes")
def _(rewards):
    return rewards.new_empty(rewards.shape[0], dtype=torch.int64)


@_fake("group_advantages")
def _(rewards, normalize, eps):
    return rewards.new_empty(rewards.shape)


@_fake("repair")
def _(rewards, scores, repairable, tie_break):
    _one_device(rewards, scores, repairable, tie_break)
    slot = rewards.new_empty(rewards.shape[0], dtype=torch.int64)
    return slot, rewards.new_empty(rewards.shape), scores.new_empty(scores.shape)


@_fake("contrast")
def _(rewards, scores, weight, negative_weight, tie_break):
    _one_device(rewards, scores, tie_break)
    return *(rewards.new_empty(rewards.shape[0], dtype=torch.int64) for _ in range(2)), rewards.new_empty(rewards.shape)


@_fake("recast")
def _(rewards, scores, repairable, weight, negative_weight, tie_break):
    _one_device(rewards, scores, repairable, tie_break)
    return *(rewards.new_empty(rewards.shape[0], dtype=torch.int64) for _ in range(3)), rewards.new_empty(rewards.shape)


@_fake("recast_from_sids")
def _(predictions, targets, weight, negative_weight, tie_break):
    _one_device(predictions, targets, tie_break)
    indices = (predictions.new_empty(predictions.shape[0]) for _ in range(3))
    return *indices, predictions.new_empty(predictions.shape[:2], dtype=torch.float32)


@_fake("branch_mask")
def _(positive_tokens, negative_tokens):
    _one_device(positive_tokens, negative_tokens)
    return positive_tokens.new_empty(positive_tokens.shape, dtype=torch.bool)


@_fake("token_logps")
def _(logits, tokens, mask, inplace_backward):
    _one_device(logits, tokens, mask)
    logps = logits.new_empty(tokens.shape, dtype=_wide(logits))
    return logps, logits.new_empty(tokens.shape, dtype=torch.float64)


@_fake("token_logps_backward")
def _(grad, logits, tokens, lse, mask):
    return logits.new_empty(logits.shape)


@_fake("token_logps_backward_")
def _(grad, logits, tokens, lse, mask):
    return None


@_fake("policy_loss")
def _(logps, old_logps, advantages, mask, ref_logps, clip_low, clip_high, dual_clip, kl_coef, aggregate):
    _one_device(logps, old_logps, advantages, mask, ref_logps)
    return tuple(logps.new_empty((), dtype=_wide(logps, old_logps, advantages, ref_logps)) for _ in range(4))


@_fake("logits_loss_")
def _(logits, tokens, old_logps, advantages, mask, ref_logps, *options):
    _one_device(logits, tokens, old_logps, advantages, mask, ref_logps)
    return tuple(logits.new_empty((), dtype=_wide(logits, old_logps, advantages, ref_logps)) for _ in range(4))


@_fake("scale_")
def _(gradient, factor):
    return None


@_fake("policy_loss_backward")
def _(grad_loss, grad_policy, grad_kl, logps, *rest):
    return logps.new_empty(logps.shape)


def _save_token_logps(ctx, inputs, output):
    logits, tokens, mask, ctx.inplace_backward = inputs
    ctx.save_for_backward(logits, tokens, output[1], mask)
    ctx.mark_non_differentiable(output[1])


def _token_logps_backward(ctx, grad, _):
    logits, tokens, lse, mask = ctx.saved_tensors
    if ctx.inplace_backward and not torch.compiler.is_compiling():
        ops.token_logps_backward_(grad, logits.detach(), tokens, lse, mask)
        return logits.detach(), None, None, None
    return ops.token_logps_backward(grad, logits, tokens, lse, mask), None, None, None


def _save_policy_loss(ctx, inputs, output):
    logps, old_logps, advantages, mask, ref_logps, *ctx.options = inputs
    ctx.save_for_backward(logps, old_logps, advantages, mask, ref_logps)
    ctx.mark_non_differentiable(output[3])


def _policy_loss_backward(ctx, grad_loss, grad_policy, grad_kl, _):
    gradient = ops.policy_loss_backward(grad_loss, grad_policy, grad_kl, *ctx.saved_tensors, *ctx.options)
    return gradient, *(None,) * 9


torch.library.register_autograd(
    "recast::token_logps", _token_logps_backward, setup_context=_save_token_logps, lib=_library
)
torch.library.register_autograd(
    "recast::policy_loss", _policy_loss_backward, setup_context=_save_policy_loss, lib=_library
)


class LossInPlace(torch.autograd.Function):
    """``logits_loss_``, whose forward leaves the gradient of the loss in the place of the logits."""

    @staticmethod
    def forward(ctx, logits, *rest):
        ctx.set_materialize_grads(False)
        outputs = ops.logits_loss_(logits.detach(), *rest)
        ctx.save_for_backward(logits)
        ctx.mark_non_differentiable(outputs[3])
        return outputs

    @staticmethod
    def backward(ctx, grad_loss, grad_policy, grad_kl, _):
        if grad_policy is not None or grad_kl is not None:
            raise RuntimeError(
                "logits_loss: with inplace_backward=True on a CUDA device only .loss has a gradient, got a backward through "
                ".policy or .kl; differentiate .loss, or pass inplace_backward=False"
            )
        gradient = ctx.saved_tensors[0].detach()
        ops.scale_(gradient, grad_loss)
        return gradient, *(None,) * 10


def loss_in_place(logits):
    """Is this a call for :class:`LossInPlace`? It needs its kernels, and a gradient that is asked for, now. Not in float16,
    where a gradient that is yet to be multiplied by a scaler's 65,536 would underflow."""
    return (
        logits.device.type in _ONE_VISIT
        and logits.dtype != torch.float16
        and logits.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def _has_kernel(name, device):
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"recast::{name}", device.upper())


_ONE_VISIT = [device for device in ("cpu", "cuda") if _has_kernel("logits_loss_", device)]


def _no_cuda(*_):
    reason = why_no_cuda() or "they were left out when it was built"
    raise RuntimeError(
        f"recast_ref.fast: it has no kernels for CUDA ({reason}), got CUDA tensors. Build it where torch is for CUDA and nvcc "
        "is there, move the tensors to the CPU, or use recast_ref.reference."
    )


if not _has_kernel("recast", "cuda"):
    for _name in (*_SELECTION, "token_logps", "policy_loss"):
        _library.impl(_name, _no_cuda, "CUDA")
