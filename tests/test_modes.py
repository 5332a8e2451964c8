"""Every way of calling in which torch is told to do more than ``.backward()``: it works and equals the plain call of the
reference, or it is refused in the documented words. One table: modes x functions x paths."""

import contextlib
import functools
import inspect
import io
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from recast_ref import fast, reference, testing

# What the paths say of what they do not do, in their docstrings too.
NO_SUCH_DERIVATIVE = "of recast_ref.fast have a gradient, but no second derivatives and no forward mode"
CANNOT_LOOK = r"data-dependent|Could not guard|vmap: It looks like you're attempting to use a Tensor in some data"
ONE_PLACE = "inplace_backward=True has one place for the gradient"

B, T, V = 3, 4, 7


def made(*shape, seed=0, low=None):
    generator = torch.Generator().manual_seed(seed)
    if low is None:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.randint(low, V, shape, generator=generator)


def constants(size=B):
    """What a loss is given beside logits or log-probs."""
    return {
        "old_logps": made(size, T, seed=1) / 4 - 2,
        "advantages": made(size, seed=2),
        "mask": made(size, T, seed=3) < 0.8,
        "ref_logps": made(size, T, seed=4) / 4 - 2,
    }


def token_logps(module, x, tokens, **_):
    return module.token_logps(x, tokens)


def policy_loss(module, x, tokens, **given):
    return torch.stack(module.policy_loss(x, **given, kl_coef=0.1)[:3])


def logits_loss(module, x, tokens, **given):
    return torch.stack(module.logits_loss(x, tokens, **given, kl_coef=0.1)[:3])


def logits_loss_in_place(module, x, tokens, **given):
    copy = x * 1  # which may be overwritten
    return module.logits_loss(copy, tokens, **given, kl_coef=0.1, inplace_backward=True).loss[None]


LOSSES = [token_logps, policy_loss, logits_loss, logits_loss_in_place]


class Case:
    """A loss as a function of what carries the gradient, ``x``."""

    def __init__(self, loss, module, size=B, dtype=torch.float64, **changes):
        self.loss, self.module = loss, module
        self.x = (made(size, T, seed=5) / 4 - 2 if loss is policy_loss else made(size, T, V, seed=5)).to(dtype)
        self.given = {"tokens": made(size, T, seed=6, low=0).clamp(max=V - 2), **constants(size), **changes}

    def __call__(self, x):
        return self.loss(self.module, x, **self.given)

    def total(self, x):
        return summed(self(x))

    def given_beside(self, name):
        return {other: value for other, value in self.given.items() if other != name}

    def leaf(self):
        return self.x.clone().requires_grad_()


def summed(answer):
    return (answer * torch.arange(1.0, answer.numel() + 1).view(answer.shape)).sum()


def gradient(case, total=None):
    x = case.leaf()
    return torch.autograd.grad((total or case.total)(x), x)[0]


# ---- the modes: each answers what the plain call answers too


def checkpointed(case, reentrant):
    """The loss is the last to save something: in the second forward pass it is there that torch stops."""
    x = case.leaf()
    summed(checkpoint(case, x, use_reentrant=reentrant)).backward()
    return x.grad


def offloaded(case):
    with torch.autograd.graph.save_on_cpu():
        return gradient(case)


def twice(case):
    """The derivative of a gradient penalty."""
    x = case.leaf()
    (first,) = torch.autograd.grad(case.total(x), x, create_graph=True)
    return torch.autograd.grad(first.square().sum(), x)[0]


def kept_graph(case):
    """A graph of the gradient that is asked for and not used."""
    x = case.leaf()
    return torch.autograd.grad(case.total(x), x, create_graph=True)[0].detach()


def dual(case):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(case.total(forward_ad.make_dual(case.x, torch.ones_like(case.x)))).tangent


def from_inference_mode(case):
    with torch.inference_mode():
        given = {name: value.clone() for name, value in case.given.items()}
    return gradient(Case(case.loss, case.module, **given))


def in_inference_mode(case):
    with torch.inference_mode():
        return case(case.x).clone()


def under(context, case, answer):
    with context:
        return answer(case)


def narrow(case):
    """What autocast could cast, where float64 is left alone."""
    given = {name: x.float() if x.is_floating_point() else x for name, x in case.given.items()}
    return Case(case.loss, case.module, dtype=torch.float32, **given)


def autocast(case):
    with torch.autocast("cpu", torch.bfloat16):
        return gradient(narrow(case))


def compiled_jvp(case):
    torch._dynamo.reset()
    function = torch.compile(lambda x: torch.func.jvp(case, (x,), (torch.ones_like(x),))[1], backend="aot_eager")
    return function(case.x)


def compiled(case):
    """One graph for every size."""
    torch._dynamo.reset()
    whole = case.module is fast

    @functools.partial(torch.compile, backend="aot_eager", dynamic=True, fullgraph=whole)
    def total(x, given):
        answer = case.loss(case.module, x, **given)
        return (answer * answer.detach()).sum()

    answers = []
    for size in (2, 3, 5):
        other = Case(case.loss, case.module, size)
        x = other.leaf()
        answers.append(torch.autograd.grad(total(x, other.given), x)[0])
    return torch.cat(answers)


def not_compiled(case):
    others = [Case(case.loss, reference, size) for size in (2, 3, 5)]
    return torch.cat([gradient(o, lambda x, o=o: (o(x) * o(x).detach()).sum()) for o in others])


def exported(case):
    class Module(torch.nn.Module):
        def forward(self, x):
            return case(x)

    return torch.export.export(Module(), (case.x,)).module()(case.x)


def in_threads(case):
    with ThreadPoolExecutor(8) as pool:
        first, *rest = pool.map(lambda _: gradient(case), range(32))
    assert all(torch.equal(first, other) for other in rest)
    return first


def forked(answer):
    """The answer of a child process that was forked after threads had been at work here."""
    torch.ones(100_000).exp()
    reading, writing = os.pipe()
    if not (child := os.fork()):
        torch.set_num_threads(1)  # as in a DataLoader's workers; with more PyTorch itself waits there for ever
        with contextlib.suppress(BaseException):
            torch.save(answer().detach(), file := io.BytesIO())
            os.write(writing, file.getvalue())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answered = pipe.read()
    os.waitpid(child, 0)
    assert answered, "the child answered nothing"
    return torch.load(io.BytesIO(answered), weights_only=True)


def stacked(case):
    return torch.stack([case.x, case.x + 1, case.x / 2])


def one_by_one(answer, case):
    return torch.stack([answer(x) for x in stacked(case)])


func = torch.func
MODES = {  # name: (how, what the plain call of the reference says to it; the gradient, if nothing else)
    "checkpoint, reentrant": (lambda c: checkpointed(c, True), gradient),
    "checkpoint": (lambda c: checkpointed(c, False), gradient),
    "saved tensors elsewhere": (offloaded, gradient),
    "torch.func.grad": (lambda c: func.grad(c.total)(c.x), gradient),
    "torch.func.vjp": (lambda c: func.vjp(c.total, c.x)[1](torch.ones((), dtype=c.x.dtype))[0], gradient),
    "torch.func.jacrev": (lambda c: func.jacrev(c)(c.x), None),
    "torch.func.jacfwd": (lambda c: func.jacfwd(c)(c.x), None),
    "torch.func.jvp": (lambda c: func.jvp(c, (c.x,), (torch.ones_like(c.x),))[1], None),
    "torch.func.hessian": (lambda c: func.hessian(c.total)(c.x), None),
    "torch.func.vmap": (lambda c: func.vmap(c)(stacked(c)), lambda c: one_by_one(c, c)),
    "vmap of grad": (lambda c: func.vmap(func.grad(c.total))(stacked(c)), lambda c: one_by_one(func.grad(c.total), c)),
    "dual tensors": (dual, None),
    "twice": (twice, None),
    "a graph that is not used": (kept_graph, gradient),
    "inference tensors": (from_inference_mode, gradient),
    "inference mode": (in_inference_mode, lambda c: c(c.x)),
    "no_grad": (lambda c: under(torch.no_grad(), c, lambda c: c(c.leaf())), lambda c: c(c.x)),
    "autocast": (autocast, lambda c: gradient(narrow(c))),
    "compile": (compiled, not_compiled),
    "compiled jvp": (compiled_jvp, lambda c: func.jvp(c, (c.x,), (torch.ones_like(c.x),))[1]),
    "export": (exported, lambda c: c(c.x)),
    "threads": (in_threads, gradient),
    "fork": (lambda c: forked(lambda: gradient(c)), gradient),
}
REFUSED = {  # (path, mode), or (path, mode, loss): in which words
    **{
        ("fast", mode): (NotImplementedError, NO_SUCH_DERIVATIVE)
        for mode in (
            *("torch.func.jacfwd", "torch.func.jvp", "torch.func.hessian", "dual tensors", "twice"),
            "compiled jvp",
        )
    },
    ("fast", "torch.func.jacrev", "logits_loss_in_place"): (NotImplementedError, ONE_PLACE),
    ("reference", "export"): (Exception, CANNOT_LOOK),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("module", [reference, fast], ids=["reference", "fast"])
def test_a_loss_in_every_mode(module, loss, mode):
    how, plain = MODES[mode]
    case, path = Case(loss, module), module.__name__.rpartition(".")[2]
    if refusal := REFUSED.get((path, mode)) or REFUSED.get((path, mode, loss.__name__)):
        with pytest.raises(refusal[0], match=refusal[1]):
            how(case)
        return
    expected = (plain or how)(Case(loss, reference))
    rtol, atol = (1e-9, 1e-12) if expected.dtype == torch.float64 else (1e-4, 1e-6)
    torch.testing.assert_close(how(case), expected, rtol=rtol, atol=atol)


def test_options_that_change_between_compiled_calls():
    """Numbers become symbols then, which cannot be looked at as tensors."""
    torch._dynamo.reset()
    case, rewards = Case(policy_loss, fast), made(B, T, seed=7).relu()

    @functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    def step(x, kl_coef, weight):
        loss = fast.policy_loss(x, **case.given_beside("tokens"), kl_coef=kl_coef).loss
        return loss, fast.contrast(rewards, rewards, weight=weight).advantages

    for kl_coef, weight in ((1e-3, 1.0), (5e-4, 2.0), (9e-5, 1e5), (5e-5, 3e4)):
        loss, advantages = step(case.leaf(), kl_coef, weight)
        expected = reference.policy_loss(case.x, **case.given_beside("tokens"), kl_coef=kl_coef).loss
        torch.testing.assert_close(loss.detach(), expected)
        assert torch.equal(advantages, reference.contrast(rewards, rewards, weight=weight).advantages)


def test_under_vmap_what_is_bad_is_named_by_the_op():
    with pytest.raises(ValueError, match="tokens: expected values in"):
        func.vmap(fast.token_logps)(torch.zeros(2, 3, 4), torch.full((2, 3), 9))
    with pytest.raises(ValueError, match="vmap: expected a batch of at least one"):
        func.vmap(fast.token_logps)(torch.zeros(0, 3, 4), torch.zeros(0, 3, dtype=torch.int64))


# ---- selection: it has no derivatives, so that fewer modes say something about it


def selection_inputs(size=B):
    rewards, scores, keys = (made(size, T, seed=seed).relu() for seed in (7, 8, 9))
    sids = made(size, T, 2, 3, seed=10, low=-1).clamp(max=2), made(size, 2, 3, seed=11, low=-1).clamp(max=2)
    usable = torch.arange(size) != 1
    return {
        "structural_scores": sids,
        "hit_rewards": sids,
        "group_regimes": (rewards,),
        "group_advantages": (rewards,),
        "repair": (rewards, scores, usable, keys),
        "contrast": (rewards, scores, 1.0, 0.5, keys),
        "recast": (rewards, scores, usable, 1.0, 0.5, keys),
        "recast_from_sids": (*sids, 1.0, 0.5, keys),
        "branch_mask": (made(size, T, seed=12, low=0), made(size, T, seed=13, low=0)),
        "choose_anchor": (sids[1], scores[:, :2], keys[:, :2]),
        "nearness": sids,
        "anchor_weights": (-scores[:, 0], 0.5, 1.5),
        "hybrid": (rewards, scores, usable, 1.0, 0.5, keys),
    }


def parts(answer):
    return tuple(answer) if isinstance(answer, tuple) else (answer,)


def selected(module, name, size=B):
    return parts(getattr(module, name)(*selection_inputs(size)[name]))


def selected_inference_tensors(module, name):
    with torch.inference_mode():
        inputs = [x.clone() if isinstance(x, torch.Tensor) else x for x in selection_inputs()[name]]
        inside = parts(getattr(module, name)(*inputs))
    outside = parts(getattr(module, name)(*inputs))
    assert all(torch.equal(a, b) for a, b in zip(inside, outside))
    return tuple(x.clone() for x in outside)


def selected_dual(module, name):
    """Nothing that is selected by has a derivative in what is selected."""
    with forward_ad.dual_level():
        inputs = [
            forward_ad.make_dual(x, torch.ones_like(x)) if isinstance(x, torch.Tensor) and x.is_floating_point() else x
            for x in selection_inputs()[name]
        ]
        answer = parts(getattr(module, name)(*inputs))
        assert all(forward_ad.unpack_dual(x).tangent is None for x in answer if x.is_floating_point())
        return tuple(forward_ad.unpack_dual(x).primal if x.is_floating_point() else x for x in answer)


def selected_compiled(module, name):
    torch._dynamo.reset()
    options = {"backend": "aot_eager", "dynamic": True, "fullgraph": module is fast}
    function = torch.compile(lambda *inputs: parts(getattr(module, name)(*inputs)), **options)
    answers = [function(*selection_inputs(size)[name]) for size in (2, 3, 5)]
    return tuple(map(torch.cat, zip(*answers)))


def selected_one_by_one(module, name):
    return tuple(map(torch.cat, zip(*(selected(module, name, size) for size in (2, 3, 5)))))


def selected_exported(module, name):
    class Module(torch.nn.Module):
        def forward(self, *inputs):
            return parts(getattr(module, name)(*inputs))

    inputs = selection_inputs()[name]
    return torch.export.export(Module(), inputs).module()(*inputs)


def selected_vmap(module, name):
    inputs = selection_inputs()[name]
    dims = tuple(0 if isinstance(x, torch.Tensor) else None for x in inputs)
    several = [torch.stack([x, x.flip(0)]) if d == 0 else x for x, d in zip(inputs, dims)]
    return func.vmap(lambda *one: parts(getattr(module, name)(*one)), in_dims=dims)(*several)


def selected_twice(module, name):
    inputs = selection_inputs()[name]
    turned = [x.flip(0) if isinstance(x, torch.Tensor) else x for x in inputs]
    function = getattr(module, name)
    return tuple(map(torch.stack, zip(parts(function(*inputs)), parts(function(*turned)))))


def selected_in_threads(module, name):
    with ThreadPoolExecutor(8) as pool:
        first, *rest = pool.map(lambda _: selected(module, name), range(32))
    assert all(torch.equal(a, b) for other in rest for a, b in zip(first, other))
    return first


SELECTING = {
    "inference tensors": (selected_inference_tensors, selected),
    "dual tensors": (selected_dual, selected),
    "torch.func.vmap": (selected_vmap, selected_twice),
    "compile": (selected_compiled, selected_one_by_one),
    "export": (selected_exported, selected),
    "threads": (selected_in_threads, selected),
    "fork": (lambda module, name: (forked(lambda: selected(module, name)[0]),), selected),
}


@pytest.mark.parametrize("mode", SELECTING)
@pytest.mark.parametrize("name", selection_inputs())
@pytest.mark.parametrize("module", [reference, fast], ids=["reference", "fast"])
def test_selection_in_every_mode(module, name, mode):
    how, plain = SELECTING[mode]
    looks_at_values = name not in ("structural_scores", "hit_rewards", "branch_mask", "nearness")
    if module is reference and mode in ("torch.func.vmap", "export") and looks_at_values:
        with pytest.raises(Exception, match=CANNOT_LOOK):
            how(module, name)
        return
    for got, expected in zip(how(module, name), plain(reference, name)):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


# ---- fake tensors: refused as real ones are


def example(name):
    case = Case(logits_loss, reference)
    given = list(case.given.values())
    return {
        **selection_inputs(),
        "token_logps": (case.x, given[0]),
        "policy_loss": (case.x[..., 0], *given[1:]),
        "logits_loss": (case.x, *given),
    }[name]


FUNCTIONS = [*selection_inputs(), "token_logps", "policy_loss", "logits_loss"]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("module", [reference, fast], ids=["reference", "fast"])
def test_what_is_no_dense_tensor_is_refused_by_name(module, name):
    function, good = getattr(module, name), example(name)
    names = list(inspect.signature(function).parameters)
    optional = ("repairable", "tie_break", "ref_logps")
    for place, argument in enumerate(good):
        if not isinstance(argument, torch.Tensor):
            continue
        twice = [argument, argument]
        nested = [torch.nested.nested_tensor(twice, layout=kind) for kind in (torch.strided, torch.jagged)]
        others = [
            (argument.tolist(), "expected a torch.Tensor, got list"),
            (argument.to_sparse(), "expected a dense tensor, got layout torch.sparse_coo"),
            *((x, "expected a dense tensor, got a nested one") for x in nested),
        ]
        if names[place] not in optional:
            others.append((None, "expected a torch.Tensor, got NoneType"))
        for other, words in others:
            with pytest.raises(TypeError, match=f"^{names[place]}: {words}"):
                function(*good[:place], other, *good[place + 1 :])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_fake_tensors_are_refused_as_real_ones(name):
    """A shape, dtype or device at a time that does not fit."""
    changes = {
        "longer": lambda x: torch.cat([x, x[:1]]),
        "deeper": lambda x: x[..., None],
        "narrower": lambda x: x[..., :-1],
        "complex": lambda x: x.to(torch.complex64),
        "elsewhere": lambda x: x.to("meta"),
    }
    function, good, refused = getattr(fast, name), example(name), 0
    for place, argument in enumerate(good):
        for change in changes.values() if isinstance(argument, torch.Tensor) else ():
            inputs = [change(x) if i == place else x for i, x in enumerate(good)]
            said = []
            for fake in (False, True):
                with FakeTensorMode() if fake else contextlib.nullcontext() as mode:
                    try:
                        function(*(mode.from_tensor(x) if fake and isinstance(x, torch.Tensor) else x for x in inputs))
                        said.append(None)
                    except (TypeError, ValueError) as error:
                        said.append((type(error), str(error)))
            assert said[0] == said[1]
            refused += said[0] is not None
    assert refused >= 2


# ---- and with drawn values: every law of the losses inside a checkpoint


@pytest.mark.parametrize("name", ["token_logps", "policy_loss", "logits_loss"])
@pytest.mark.parametrize("module", [reference, fast], ids=["reference", "fast"])
def test_every_law_holds_inside_a_checkpoint(module, name):
    function = getattr(module, name)

    @functools.wraps(function)
    def recomputed(*arguments, **options):
        return checkpoint(function, *arguments, use_reentrant=False, **options)

    testing.check(recomputed, against="loops", examples=25).assert_holds()
