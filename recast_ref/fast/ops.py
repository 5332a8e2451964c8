"""What torch needs to know of each op beside its kernels: fake kernels, for ``torch.compile``, autograd, and vmap.

The schemas are in ``csrc/ops.cpp``. Selection has no gradient; ``token_logps`` and ``policy_loss`` have one each, which is
an op of its own. Further derivatives there are not, and to ask for one is an error.
"""

import torch

from .. import _checks as checks
from .._library import why_no_cuda

ops = torch.ops.recast

_SELECTION = (
    *("structural_scores", "hit_rewards", "group_regimes", "group_advantages", "repair", "contrast", "recast"),
    *("recast_from_sids", "branch_mask", "choose_anchor", "anchor_weights"),
)
_library = torch.library.Library("recast", "IMPL")


def _fake(name):
    return torch.library.register_fake(f"recast::{name}", lib=_library)


def _wide(*tensors):
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


# Autograd passes straight through selection: nothing it returns requires a gradient.
for _name in _SELECTION:
    _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")


# ---- fake kernels: shapes, dtypes and devices, checked as the kernels check them


@_fake("structural_scores")
@_fake("hit_rewards")
def _(predictions, targets):
    checks.sid_tensors(predictions, targets, values=False)
    return predictions.new_empty(predictions.shape[:2], dtype=torch.float32)


@_fake("group_regimes")
def _(rewards):
    checks.reward_tensor(rewards, values=False)
    return rewards.new_empty(rewards.shape[0], dtype=torch.int64)


@_fake("group_advantages")
def _(rewards, normalize, eps):
    checks.reward_tensor(rewards, values=False)
    return rewards.new_empty(rewards.shape)


@_fake("repair")
def _(rewards, scores, repairable, tie_break):
    checks.group_tensors(rewards, scores, repairable, tie_break, values=False)
    slot = rewards.new_empty(rewards.shape[0], dtype=torch.int64)
    return slot, rewards.new_empty(rewards.shape), scores.new_empty(scores.shape)


@_fake("contrast")
def _(rewards, scores, weight, negative_weight, tie_break):
    checks.group_tensors(rewards, scores, tie_break=tie_break, values=False)
    return *(rewards.new_empty(rewards.shape[0], dtype=torch.int64) for _ in range(2)), rewards.new_empty(rewards.shape)


@_fake("recast")
def _(rewards, scores, repairable, weight, negative_weight, tie_break):
    checks.group_tensors(rewards, scores, repairable, tie_break, values=False)
    return *(rewards.new_empty(rewards.shape[0], dtype=torch.int64) for _ in range(3)), rewards.new_empty(rewards.shape)


@_fake("recast_from_sids")
def _(predictions, targets, weight, negative_weight, tie_break):
    checks.sid_tensors(predictions, targets, tie_break, values=False)
    indices = (predictions.new_empty(predictions.shape[0]) for _ in range(3))
    return *indices, predictions.new_empty(predictions.shape[:2], dtype=torch.float32)


@_fake("branch_mask")
def _(positive_tokens, negative_tokens):
    checks.branch_tensors(positive_tokens, negative_tokens)
    return positive_tokens.new_empty(positive_tokens.shape, dtype=torch.bool)


@_fake("choose_anchor")
def _(targets, values, tie_break):
    checks.anchor_tensors(targets, values, tie_break, values=False)
    return targets.new_empty(targets.shape[0])


@_fake("anchor_weights")
def _(logps, alpha, largest):
    checks.anchor_logps(logps, values=False)
    return logps.new_empty(logps.shape)


@_fake("token_logps")
def _(logits, tokens, mask, inplace_backward):
    arguments = checks.logit_tensors(logits, tokens, values=False)
    if mask is not None:
        arguments.tensor("mask", mask, "... T", "bool")
    return logits.new_empty(tokens.shape, dtype=_wide(logits)), _new_lse(logits, tokens)


def _new_lse(logits, tokens):
    return logits.new_empty((*tokens.shape, 2), dtype=torch.float64)


def _check_saved(grad, logits, tokens, lse, mask):
    arguments = checks.logit_tensors(logits, tokens, values=False)
    arguments.tensor("grad", grad, "... T", "floating")
    arguments.tensor("lse", lse, "... T 2", "floating")
    if mask is not None:
        arguments.tensor("mask", mask, "... T", "bool")


@_fake("token_logps_backward")
def _(grad, logits, tokens, lse, mask):
    _check_saved(grad, logits, tokens, lse, mask)
    return logits.new_empty(logits.shape)


@_fake("token_logps_backward_")
def _(grad, logits, tokens, lse, mask):
    _check_saved(grad, logits, tokens, lse, mask)


def _scalars(*tensors):
    return tuple(tensors[0].new_empty((), dtype=_wide(*tensors)) for _ in range(4))


@_fake("policy_loss")
def _(logps, old_logps, advantages, mask, ref_logps, *options):
    checks.loss_tensors(logps, old_logps, advantages, mask, ref_logps, values=False)
    return _scalars(logps, old_logps, advantages, ref_logps)


@_fake("policy_loss_backward")
def _(grad_loss, grad_policy, grad_kl, logps, old_logps, advantages, mask, ref_logps, *options):
    checks.loss_tensors(logps, old_logps, advantages, mask, ref_logps, values=False)
    return logps.new_empty(logps.shape)


@_fake("logits_loss_")
def _(logits, tokens, old_logps, advantages, mask, ref_logps, *options):
    checks.logits_loss_tensors(logits, tokens, old_logps, advantages, mask, ref_logps, values=False)
    return _scalars(logits, old_logps, advantages, ref_logps)


@_fake("scale_")
def _(gradient, factor):
    return None


# ---- autograd and vmap


def _no_such_derivative(*_):
    raise NotImplementedError(
        "token_logps, policy_loss and logits_loss of recast_ref.fast have a gradient, but no second derivatives and no forward "
        "mode; those of recast_ref.reference have"
    )


def _save(ctx, *tensors):
    """A tensor that was made under ``inference_mode`` can only be saved as a copy."""
    ctx.save_for_backward(*(x.clone() if x is not None and x.is_inference() else x for x in tensors))


def _save_token_logps(ctx, inputs, output):
    logits, tokens, mask, ctx.inplace_backward = inputs
    _save(ctx, logits, tokens, output[1], mask)
    ctx.mark_non_differentiable(output[1])


def _token_logps_backward(ctx, grad, _):
    logits, tokens, lse, mask = ctx.saved_tensors
    if ctx.inplace_backward and not torch.compiler.is_compiling():
        gradient = logits.detach()
        ops.token_logps_backward_(grad, gradient, tokens, lse, mask)
    else:
        gradient = ops.token_logps_backward(grad, logits, tokens, lse, mask)
    return _final(gradient, grad, logits), None, None, None


def _save_policy_loss(ctx, inputs, output):
    logps, old_logps, advantages, mask, ref_logps, *ctx.options = inputs
    _save(ctx, logps, old_logps, advantages, mask, ref_logps)
    # Without a reference kl is the number 0.
    ctx.mark_non_differentiable(*output[3:] if ref_logps is not None else output[2:])


def _policy_loss_backward(ctx, grad_loss, grad_policy, grad_kl, _):
    logps, *rest = ctx.saved_tensors  # once: activation checkpointing computes them for this one look
    gradient = ops.policy_loss_backward(grad_loss, grad_policy, grad_kl, logps, *rest, *ctx.options)
    return _final(gradient, grad_loss, grad_policy, grad_kl, logps), *(None,) * 9


# For torch.compile and torch.export, to which an op is opaque.
torch.library.register_autograd(
    "recast::token_logps", _token_logps_backward, setup_context=_save_token_logps, lib=_library
)
torch.library.register_autograd(
    "recast::policy_loss", _policy_loss_backward, setup_context=_save_policy_loss, lib=_library
)


def _in_turn(info, in_dims, arguments):
    """The arguments of each call of a batch."""
    for i in range(info.batch_size):
        yield [x if dim is None else x.select(dim, i) for x, dim in zip(arguments, in_dims)]


def _one_by_one(function):
    """A rule for vmap: a call for each of the batch."""

    def rule(info, in_dims, *arguments):
        if info.batch_size == 0:
            raise ValueError("vmap: expected a batch of at least one")
        answers = [function(*each) for each in _in_turn(info, in_dims, arguments)]
        if isinstance(answers[0], torch.Tensor):
            return torch.stack(answers), 0
        return tuple(map(torch.stack, zip(*answers))), (0,) * len(answers[0])

    return rule


for _name in (*_SELECTION, "token_logps_backward", "policy_loss_backward"):
    torch.library.register_vmap(f"recast::{_name}", _one_by_one(getattr(ops, _name)), lib=_library)


def _one_place(*_):
    raise NotImplementedError(
        "logits_loss: inplace_backward=True has one place for the gradient, and is asked for several at once; pass "
        "inplace_backward=False"
    )


def _one_by_one_in_place(info, in_dims, *arguments):
    if in_dims[1] is None:
        _one_place()
    for each in _in_turn(info, in_dims, arguments):
        ops.token_logps_backward_(*each)
    return None, None


torch.library.register_vmap("recast::token_logps_backward_", _one_by_one_in_place, lib=_library)
torch.library.register_vmap("recast::scale_", _one_place, lib=_library)


def _as_function(op, setup, gradient):
    """An op as ``torch.func``, and all else that is not compiled, wants to see one."""

    class Function(torch.autograd.Function):
        forward, setup_context, backward = staticmethod(op), staticmethod(setup), staticmethod(gradient)
        jvp = staticmethod(_no_such_derivative)
        vmap = staticmethod(_one_by_one(lambda *inputs: Function.apply(*inputs)))

    return Function


_TokenLogps = _as_function(ops.token_logps, _save_token_logps, _token_logps_backward)
_PolicyLoss = _as_function(ops.policy_loss, _save_policy_loss, _policy_loss_backward)


class _Final(torch.autograd.Function):
    """A gradient that stands for nothing that could be differentiated again."""

    @staticmethod
    def forward(gradient, *sources):
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    backward, jvp = staticmethod(_no_such_derivative), staticmethod(_no_such_derivative)
    generate_vmap_rule = True


def _final(gradient, *sources):
    """The gradient; where a graph of it is asked for, one that says that there are no second derivatives."""
    return _Final.apply(gradient, *sources) if torch.is_grad_enabled() else gradient


def _compiling():
    """Whether to hand the op itself on. It would drop the tangents of forward mode."""
    if torch.compiler.is_compiling():
        if torch.autograd.forward_ad._current_level >= 0:
            _no_such_derivative()
        return True
    return False


def token_logps(*inputs):
    """The log-probs and what backward needs, with a gradient."""
    return ops.token_logps(*inputs) if _compiling() else _TokenLogps.apply(*inputs)


def policy_loss(logps, old_logps, advantages, mask, ref_logps, *options):
    """The loss and its parts, with a gradient to ``logps`` alone."""
    constants = (None if x is None else x.detach() for x in (old_logps, advantages, mask, ref_logps))
    inputs = (logps, *constants, *options)
    return ops.policy_loss(*inputs) if _compiling() else _PolicyLoss.apply(*inputs)


class LossInPlace(torch.autograd.Function):
    """``logits_loss_``, whose forward leaves the gradient of the loss in the place of the logits."""

    @staticmethod
    def forward(logits, *rest):
        return ops.logits_loss_(logits.detach(), *rest)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0])
        ctx.has_ref = inputs[5] is not None
        ctx.mark_non_differentiable(*output[3:] if ctx.has_ref else output[2:])

    @staticmethod
    def backward(ctx, grad_loss, grad_policy, grad_kl, _):
        if grad_policy is not None or (ctx.has_ref and grad_kl is not None):
            raise RuntimeError(
                "logits_loss: with inplace_backward=True on a CUDA device only .loss has a gradient, got a backward through "
                ".policy or .kl; differentiate .loss, or pass inplace_backward=False"
            )
        (logits,) = ctx.saved_tensors
        gradient = logits.detach()
        ops.scale_(gradient, grad_loss)
        return _final(gradient, grad_loss, logits), *(None,) * 10

    jvp, vmap = staticmethod(_no_such_derivative), staticmethod(_one_place)


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
