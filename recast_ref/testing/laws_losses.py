"""Laws about log-probs and losses: values, gradients, and what must have no influence."""

import math

import torch
from hypothesis import strategies as st

from . import strategies
from .kinds import LawBroken, NotApplicable
from .laws import demand, index, law, same, size

LOSSES = ("policy_loss", "logits_loss")
FLOATS = ("logits", "logps", "old_logps", "advantages", "ref_logps")


def _learned(subject):
    """The argument that carries the gradient."""
    return "logps" if subject.kind.name == "policy_loss" else "logits"


def _gradient(subject, case, weights=1.0):
    """The answer, and the gradient of its main part to what is learned, zeros where there is none."""
    name = _learned(subject)
    leaf = case[name].detach().clone().requires_grad_()
    got = subject.answer(case | {name: leaf})
    value = (got[subject.kind.main] * weights).sum()
    demand(value.requires_grad, f"carries no gradient to {name}", got)
    (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True, materialize_grads=True)
    return {name: value.detach() for name, value in got.items()}, gradient


def _close(got, expected, what, rtol=1e-9, atol=1e-12):
    place = torch.isclose(got, expected, rtol=rtol, atol=atol, equal_nan=True)
    if not place.all():
        at = tuple((~place).nonzero()[0].tolist())
        raise LawBroken(f"{what}: {got[at].item():.10g} instead of {expected[at].item():.10g} at {list(at)}")


def _kept(case):
    """Tokens that count, bool ``(B, T)``."""
    return case["mask"].bool()


def _ratio(subject, case):
    logps = case["logps"] if "logps" in case else _logps(case)
    return (logps - case["old_logps"]).clamp(-20, 20).exp()


def _logps(case):
    return case["logits"].log_softmax(dim=-1).gather(-1, case["tokens"][..., None])[..., 0]


def _wide_advantages(case):
    a = case["advantages"]
    return a if a.dim() == 2 else a[:, None].expand(case["mask"].shape)


@law("token_logps", *LOSSES)
def same_gradient(subject, case):
    """Its gradient is that of the function it is compared with."""
    if subject.against is None or subject.against is subject.variant:
        subject.expected(case)  # says why not
    other = type(subject)(subject.against, subject.kind.name)
    weights = (
        torch.arange(1.0, case["tokens"].numel() + 1).view(case["tokens"].shape)
        if subject.kind.main == "logps"
        else 1.0
    )
    _close(
        _gradient(subject, case, weights=weights)[1], _gradient(other, case, weights=weights)[1], "the gradient differs"
    )


@law("token_logps", *LOSSES, far=False, tokens=(1, 2), vocabulary=(1, 3))
def gradient_is_the_difference(subject, case):
    """Its gradient is what a small step changes, ``(f(x + h) - f(x - h)) / 2h``, away from the corners of the clips."""
    case = case | {}
    if subject.kind.main == "loss":
        ratio, smooth = _ratio(subject, case), _kept(case)
        # With the defaults, unless the case has others.
        low, high, dual = (case.get(n, d) for n, d in (("clip_low", 0.2), ("clip_high", 0.28), ("dual_clip", 3.0)))
        for corner in (1 - low, 1 + high, dual):
            smooth = smooth & ((ratio - corner).abs() > 1e-3)
        if "ref_logps" in case:
            gap = case["ref_logps"] - (case["logps"] if "logps" in case else _logps(case))
            smooth = smooth & ((gap.exp() - gap - 11).abs() > 1e-2)
        case["mask"] = smooth.to(case["mask"].dtype)
    name, h = _learned(subject), 1e-5
    _, gradient = _gradient(subject, case)
    value = case[name]
    for place in range(min(value.numel(), 6)):
        at = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), value.shape))
        step = torch.zeros_like(value)
        step[at] = h
        up, down = (
            subject.answer(case | {name: value + sign * step})[subject.kind.main].detach().double().sum()
            for sign in (1, -1)
        )
        slope, got = ((up - down) / (2 * h)).item(), gradient[at].item()
        wrong = abs(slope - got) > 1e-5 * (1 + abs(slope))
        demand(not wrong, f"the gradient at {list(at)} of {name} is {got:.6g}, a small step says {slope:.6g}")


@law(*LOSSES)
def gradient_to_the_policy_alone(subject, case):
    """Old and reference log-probs, and the advantages, get no gradient."""
    name = _learned(subject)
    leaves = {n: case[n].clone().requires_grad_() for n in FLOATS if n in case}
    got = subject.answer(case | leaves)
    demand(got["loss"].requires_grad, f"carries no gradient to {name}", got)
    gradients = torch.autograd.grad(got["loss"], list(leaves.values()), allow_unused=True)
    for other, gradient in zip(leaves, gradients):
        reached = gradient is not None and bool((gradient != 0).any())
        demand(other == name or not reached, f"a gradient reaches {other}", got)


@law(
    *LOSSES,
    more=lambda draw, case, subject: {"junk": draw(st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))},
    masked=True,
)
def masked_has_no_influence(subject, case, junk):
    """What is masked has no influence, whatever its value, NaN included, and gets no gradient."""
    kept = _kept(case)
    clean, clean_gradient = _gradient(subject, case)
    dirty = case | {}
    if case["advantages"].dim() == 1:
        dirty["advantages"] = _wide_advantages(case)
    for name in FLOATS:
        if name in dirty:
            where = kept[..., None] if name == "logits" else kept
            dirty[name] = dirty[name].masked_fill(~where, junk)
    if "tokens" in dirty:
        dirty["tokens"] = dirty["tokens"].masked_fill(~kept, -100)
    got, gradient = _gradient(subject, dirty)
    same(got, clean, f"depends on a masked {junk}", rtol=0, atol=0)
    _close(gradient, clean_gradient, f"the gradient depends on a masked {junk}", 0, 0)
    demand(not bool((gradient[~kept] != 0).any()), "a gradient reaches what is masked", got)


@law(*LOSSES)
def all_masked_is_zero(subject, case):
    """A batch with nothing unmasked has a loss of 0, with a gradient of 0."""
    got, gradient = _gradient(subject, case | {"mask": torch.zeros_like(case["mask"])})
    for name, value in got.items():
        demand(value == 0, f"{name}: {value.item()} with all masked", got)
    demand(bool((gradient == 0).all()), "a gradient with all masked", got)


@law(
    *LOSSES,
    more=lambda draw, case, subject: {"order": draw(strategies.permutations(1, size(subject.kind, case, "B")))[0]},
)
def row_order(subject, case, order):
    """Permuting the rows permutes the gradient and leaves the loss."""
    before, gradient = _gradient(subject, case)
    after, moved = _gradient(subject, index(subject.kind, case, "B", order))
    same(after, before, "depends on the order of the rows")
    _close(moved, gradient[order], "the gradient does not follow its row")


@law(*LOSSES, more=lambda draw, case, subject: {"cut": draw(st.integers(0, size(subject.kind, case, "B")))})
def mean_of_parts(subject, case, cut):
    """The loss of a batch is the mean of that of its parts, weighted by their tokens, or by their rows that have one where
    the mean is over rows."""
    rows = torch.arange(size(subject.kind, case, "B"))
    whole, total, count = subject.answer(case)["loss"].detach().double(), 0.0, 0
    for part in (rows[:cut], rows[cut:]):
        piece = index(subject.kind, case, "B", part)
        kept = _kept(piece)
        weight = kept.any(dim=1).sum() if case.get("aggregate", "token-mean") != "token-mean" else kept.sum()
        if weight:
            total, count = total + weight * subject.answer(piece)["loss"].detach().double(), count + weight
    if count:
        _close(whole, total / count, "not the mean of the parts")


@law(*LOSSES, per_token=False)
def one_advantage_a_row(subject, case):
    """Advantages ``(B,)`` are those ``(B, T)`` that repeat them for every token."""
    repeated = case | {"advantages": _wide_advantages(case).clone()}
    same(subject.answer(repeated), subject.answer(case), "differs for repeated advantages")


@law(*LOSSES, options=False)
def on_policy(subject, case):
    """At the first update every ratio is 1: the policy part is ``-mean(A)``, its gradient to a log-prob ``-A / N``."""
    logps = case["logps"] if "logps" in case else _logps(case)
    case = case | {"old_logps": logps.detach()}
    case.pop("ref_logps", None)
    if "ref_logps" in subject.required:
        case["ref_logps"] = logps.detach()
    kept, a = _kept(case), _wide_advantages(case)
    count = kept.sum().clamp(min=1)
    got, gradient = _gradient(subject, case)
    part = "policy" if "policy" in got else "loss"
    expected = -torch.where(kept, a, 0.0).sum() / count
    _close(got[part].double(), expected.double(), f"{part}: not -mean(A)", 1e-9, 1e-9)
    if "logps" in case:
        _close(gradient, torch.where(kept, -a / count, 0.0), "the gradient is not -A / N", 1e-9, 1e-9)


@law("policy_loss", per_token=True, options=False)
def clip_stops(subject, case):
    """Past the clip the policy part has no gradient: for ``A > 0`` above ``1 + clip_high``, for ``A < 0`` below ``1 -
    clip_low`` and above ``dual_clip`` (0.2, 0.28 and 3)."""
    case.pop("ref_logps", None)
    if "ref_logps" in subject.required:
        case["ref_logps"] = case["logps"]
    _, gradient = _gradient(subject, case)
    ratio, a = _ratio(subject, case), case["advantages"]
    past = ((a > 0) & (ratio > 1.28 + 1e-6)) | ((a < 0) & ((ratio < 0.8 - 1e-6) | (ratio > 3 + 1e-6)))
    inside = _kept(case) & ~past & (a != 0) & (ratio < 20) & (ratio > 1e-3)
    for corner in (0.8, 1.28, 3.0):
        inside = inside & ((ratio - corner).abs() > 1e-6)
    demand(not bool((gradient[past] != 0).any()), "a gradient past the clip")
    demand(not bool((gradient[inside] == 0).any()), "no gradient inside the clip")


@law(*LOSSES)
def parts(subject, case):
    """``loss = policy + kl_coef * kl``, ``kl`` is in [0, 10], and ``clip_fraction`` is a share."""
    got = {name: value.detach().double() for name, value in subject.answer(case).items()}
    for name in ("policy", "kl", "clip_fraction"):
        if name not in got:
            raise NotApplicable(f"it answers no {name}")
    total = got["policy"] + case.get("kl_coef", 0.0) * got["kl"]
    _close(got["loss"], total, "loss: not policy + kl_coef * kl")
    most = 10.0 * (case["mask"].shape[1] if case.get("aggregate") == "seq-mean-token-sum" else 1)
    demand(-1e-9 <= got["kl"].item() <= most + 1e-9, f"kl: {got['kl'].item()}", got)
    demand(0 <= got["clip_fraction"].item() <= 1, f"clip_fraction: {got['clip_fraction'].item()}", got)


@law(*LOSSES)
def no_divergence(subject, case):
    """``kl`` is 0 where the reference is the policy itself, and without one."""
    logps = case["logps"] if "logps" in case else _logps(case)
    for ref in ([logps] if subject.takes("ref_logps") else []) + ([] if "ref_logps" in subject.required else [None]):
        changed = {name: value for name, value in case.items() if name not in ("ref_logps", "kl_coef")}
        kl = subject.answer(changed if ref is None else changed | {"ref_logps": ref})["kl"].detach()
        demand(abs(kl.item()) < 1e-9, f"kl: {kl.item()} where there is no divergence")


@law(*LOSSES, more=lambda draw, case, subject: {"junk": draw(st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))})
def unasked_reference(subject, case, junk):
    """Without ``kl_coef`` the reference's log-probs are only reported on: they have no part in the loss, NaN included."""
    if not subject.takes("ref_logps"):
        raise NotApplicable("it takes no ref_logps")
    case.pop("kl_coef", None)
    clean, gradient = _gradient(subject, case | {"ref_logps": case["old_logps"]})
    got, same_gradient = _gradient(subject, case | {"ref_logps": torch.full_like(case["old_logps"], junk)})
    got, clean = ({name: value for name, value in answer.items() if name != "kl"} for answer in (got, clean))
    same(got, clean, f"depends on a reference of {junk}", rtol=0, atol=0)
    _close(same_gradient, gradient, f"the gradient depends on a reference of {junk}", 0, 0)


def _narrow(draw, case, subject):
    return {"dtype": draw(st.sampled_from(["float32", "float16", "bfloat16"]))}


@law("token_logps", *LOSSES, more=_narrow)
def widened(subject, case, dtype):
    """Half-precision input is computed in float32: the answer has that dtype, and is that for the same numbers in it."""
    narrow = {name: case[name].to(getattr(torch, dtype)) for name in FLOATS if name in case}
    got = subject.answer(case | narrow)
    wide = subject.answer(case | {name: value.float() for name, value in narrow.items()})
    for name, value in got.items():
        demand(value.dtype == torch.float32, f"{name}: answered {value.dtype} for {dtype}", got)
    most = max((v.detach().abs()[v.isfinite()].sum().item() for v in wide.values()), default=0.0)
    same(got, wide, f"differs in {dtype}", rtol=4e-6, atol=2e-6 * (1 + most))


@law(*LOSSES, more=lambda draw, case, subject: {"gap": draw(st.sampled_from([-200.0, 200.0]))}, dtype=torch.float32)
def finite_far_away(subject, case, gap):
    """Log-probs 200 nats from the old policy's and the reference's give a finite loss and gradient, in float32 too."""
    logps = (case["logps"] if "logps" in case else _logps(case)).detach()
    far = {"old_logps": logps + gap, "ref_logps": logps - gap}
    got, gradient = _gradient(subject, case | {name: value for name, value in far.items() if name in case})
    for name, value in got.items():
        demand(value.isfinite(), f"{name}: {value.item()}", got)
    demand(bool(gradient.isfinite().all()), "the gradient is not finite", got)


# ---- log-probs


@law("token_logps")
def sums_to_one(subject, case):
    """The probabilities of all tokens of the vocabulary sum to 1."""
    size = case["logits"].shape[-1]
    each = [subject.answer(case | {"tokens": torch.full_like(case["tokens"], v)})["logps"] for v in range(size)]
    total = torch.stack(each).detach().exp().sum(dim=0)
    _close(total, torch.ones_like(total), "the probabilities do not sum to 1", 1e-9, 1e-9)


@law("token_logps", more=lambda draw, case, subject: {"shift": draw(st.sampled_from([-1e4, 50.0, 1e4]))})
def shift_of_logits(subject, case, shift):
    """Adding a constant to all logits of a token changes nothing, and nothing overflows."""
    shifted = subject.answer(case | {"logits": case["logits"] + shift})
    same(shifted, subject.answer(case), f"differs after adding {shift}", rtol=1e-9, atol=1e-9)


@law(
    "token_logps",
    more=lambda draw, case, subject: {"logit": draw(st.floats(allow_nan=False, allow_infinity=False))},
)
def equal_logits(subject, case, logit):
    """Equal logits are a uniform distribution, whatever their size: ``-log V`` for each token."""
    got = subject.answer(case | {"logits": torch.full_like(case["logits"], logit)})
    uniform = torch.full_like(got["logps"], -math.log(case["logits"].shape[-1]))
    same(got, {"logps": uniform}, f"is not uniform where every logit is {logit:g}")


@law("token_logps", vocabulary=(2, 4))
def impossible_tokens(subject, case):
    """A logit of ``-inf`` is a token of probability 0: ``-inf`` for it, as if it were not there for others, and no NaN in
    the gradient."""
    logits = case["logits"].clone()
    logits[..., 0] = -torch.inf
    other = case["tokens"].clamp(min=1)
    got = subject.answer(case | {"logits": logits, "tokens": other})
    without = subject.answer({"logits": case["logits"][..., 1:], "tokens": other - 1})
    same(got, without, "sees an impossible token", rtol=1e-9, atol=1e-9)
    none = subject.answer(case | {"logits": logits, "tokens": torch.zeros_like(other)})
    demand(bool((none["logps"] == -torch.inf).all()), "an impossible token has a probability", none)
    _, gradient = _gradient(subject, case | {"logits": logits, "tokens": other})
    demand(not bool(gradient.isnan().any()), "the gradient is NaN", got)


@law("logits_loss", options=False)
def in_place_or_not(subject, case):
    """``inplace_backward`` changes where the gradient is written, not what it is."""
    if not subject.takes("inplace_backward"):
        raise NotApplicable("it takes no inplace_backward")

    def through(flag):
        leaf = case["logits"].detach().clone().requires_grad_()
        got = subject.answer(case | {"logits": leaf * 1, "inplace_backward": flag})
        return torch.autograd.grad(got["loss"], leaf)[0]

    _close(through(True), through(False), "the gradient differs in place")
