"""The fast path where it is more than the reference: its registration with torch, its precision and memory.

That the two agree is tested with the laws, in ``test_selection.py`` and ``test_losses.py``, which run over both.
"""

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recast_ref import bench, fast, reference
from recast_ref.testing import loss_inputs, sid_groups, sparse_hit_groups
from recast_ref.testing.strategies import anchor_logps, anchor_options, anchors, loss_options

OPS = torch.ops.recast
groups = functools.partial(sparse_hit_groups, prompts=(0, 5), size=(0, 5), dtype=None)
sids = functools.partial(sid_groups, prompts=(0, 4), size=(0, 4), named=(0, 4), wanted=(0, 4))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# ---- agreement, to the last index


@given(groups())
def test_selection_is_equal_to_the_last_index(inputs):
    rewards, scores, repairable, tie_break = inputs
    for function, arguments in (
        ("group_regimes", (rewards,)),
        ("repair", inputs),
        ("contrast", (rewards, scores, 2.0, 0.5, tie_break)),
        ("recast", (rewards, scores, repairable, 2.0, 0.5, tie_break)),
        ("recast", (rewards, scores)),
        ("hybrid", (rewards, scores, repairable, 2.0, 0.5, tie_break)),
    ):
        ours, theirs = getattr(fast, function)(*arguments), getattr(reference, function)(*arguments)
        for a, b in zip(ours, theirs) if isinstance(theirs, tuple) else [(ours, theirs)]:
            if function == "hybrid" and a.is_floating_point():  # GRPO's, whose sums the two round differently
                torch.testing.assert_close(a, b)
            else:
                assert torch.equal(a, b) and a.dtype == b.dtype
    assert type(fast.recast(rewards, scores)) is reference.ReCast
    assert type(fast.hybrid(rewards, scores)) is reference.Hybrid


@given(sids(), st.data())
def test_sids_to_pair_is_equal_to_the_last_index(inputs, data):
    predictions, targets = inputs
    q, g = predictions.shape[:2]
    keys = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=q * g, max_size=q * g))
    tie_break = torch.tensor(keys).view(q, g)
    for a, b in zip(
        fast.recast_from_sids(predictions, targets, 2.0, 0.5, tie_break),
        reference.recast_from_sids(predictions, targets, 2.0, 0.5, tie_break),
    ):
        assert torch.equal(a, b) and a.dtype == b.dtype
    assert torch.equal(fast.structural_scores(*inputs), reference.structural_scores(*inputs))
    assert torch.equal(fast.hit_rewards(*inputs), reference.hit_rewards(*inputs))
    near = fast.nearness(*inputs)
    assert torch.equal(near, reference.nearness(*inputs)) and near.dtype == torch.float32


@given(anchors(prompts=(0, 5), size=(0, 5), dtype=None), st.sampled_from(["whole", "sliced", "transposed"]))
def test_the_anchor_is_the_same_target_however_it_lies_in_memory(inputs, layout):
    def view(x):
        if layout == "sliced":
            return torch.stack([x, -x], dim=2).flatten(1, 2)[:, ::2]
        return x.transpose(0, 1).contiguous().transpose(0, 1) if layout == "transposed" else x

    targets, values, tie_break = (view(x) for x in inputs)
    for given_keys in (None, tie_break):
        got = fast.choose_anchor(targets, values, given_keys)
        assert torch.equal(got, reference.choose_anchor(*inputs[:2], None if given_keys is None else inputs.tie_break))


@given(anchor_logps(prompts=(0, 70), dtype=None), anchor_options())
def test_anchor_weights_are_equal_but_for_rounding(logps, options):
    expected = reference.anchor_weights(logps, **options)
    torch.testing.assert_close(fast.anchor_weights(logps, **options), expected)
    stepped = torch.stack([logps, -logps], dim=1).flatten()[::2]
    torch.testing.assert_close(fast.anchor_weights(stepped, **options), expected)


@st.composite
def single_sids(draw):
    """One SID a response, one target, many ties: what ``recast_from_sids`` has a way of its own for."""
    q, g, levels = draw(st.integers(0, 3)), draw(st.integers(0, 6)), draw(st.integers(2, 5))

    def draws(values, *shape):
        count = math.prod(shape)
        return torch.tensor(draw(st.lists(st.sampled_from(values), min_size=count, max_size=count))).view(shape)

    # Mostly long prefixes: the last code decides.
    predictions = torch.cat(
        [draws([0, 0, 0, 1], q, g, 1, levels - 1), draws([0, 1, 1, 1, -1], q, g, 1, 1)], dim=-1
    ).long()
    targets = draws([0, 0, 0, 0, 0, 0, 0, -1], q, 1, levels).long()
    keys = draws([-math.inf, -1.5, -0.0, 0.0, 1e-30, 0.5, math.inf], q, g).to(
        draw(st.sampled_from([torch.float32, torch.float64]))
    )
    return predictions, targets, draw(st.sampled_from([None, keys, keys.T.contiguous().T]))


@given(single_sids())
def test_single_sids_to_pair_is_equal_to_the_last_index(inputs):
    predictions, targets, keys = inputs
    ours = fast.recast_from_sids(predictions, targets, tie_break=keys)
    assert all(
        torch.equal(a, b) for a, b in zip(ours, reference.recast_from_sids(predictions, targets, tie_break=keys))
    )
    if keys is not None and keys.numel():
        with pytest.raises(ValueError, match="tie_break: expected values that can be ranked, got nan"):
            fast.recast_from_sids(predictions, targets, tie_break=torch.full_like(keys, math.nan))


@given(groups(), st.sampled_from(["sliced", "transposed", "expanded"]))
def test_selection_reads_any_strides(inputs, layout):
    rewards, scores, repairable, tie_break = inputs

    def view(x):
        if layout == "sliced":
            return torch.stack([x, -x], dim=-1).flatten(1)[:, ::2]
        return x.T.contiguous().T if layout == "transposed" else x[:1].expand(x.shape[0], -1)

    expected = reference.recast(view(rewards), view(scores), repairable, tie_break=view(tie_break))
    got = fast.recast(view(rewards), view(scores), repairable, tie_break=view(tie_break))
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


# ---- precision: at most twice the error that PyTorch itself makes in the dtype, against float64


def rows_of_logits():
    """Logits with a shape that leaves vector remainders, of any size, and tokens."""
    return st.tuples(
        st.integers(0, 3),
        st.sampled_from([1, 2, 15, 16, 17, 33, 100, 4097]),
        st.integers(0, 2**31),
        st.sampled_from([1.0, 30.0, 1e4]),
    )


@given(rows_of_logits(), st.sampled_from(DTYPES), st.booleans())
def test_logps_and_gradient_are_as_precise_as_pytorch(drawn, dtype, masked):
    rows, size, seed, scale = drawn
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, size, generator=generator, dtype=torch.float64) * scale).to(dtype)
    tokens = torch.randint(size, (rows,), generator=generator)
    if masked and size > 1:
        logits[torch.arange(rows), (tokens + 1) % size] = -math.inf
    weights = torch.randn(rows, generator=generator)

    def run(function):
        x = logits.detach().requires_grad_()
        logps = function(x, tokens)
        return logps.detach(), torch.autograd.grad((logps * weights.to(logps.dtype)).sum(), x)[0]

    plain, plain_gradient = run(reference.token_logps)
    ours, gradient = run(fast.token_logps)
    exact, exact_gradient = exact_logps_and_gradient(logits, tokens, weights)
    assert ours.dtype == plain.dtype and gradient.dtype == dtype
    for got, theirs, truth in ((ours, plain, exact), (gradient, plain_gradient, exact_gradient)):
        if not truth.numel():
            continue
        # Where PyTorch is exact by luck: a few units in the last place of the largest number involved.
        finite = logits.double()[logits.isfinite()].abs().max() if dtype == torch.float64 else truth.abs().max()
        floor = 4 * torch.finfo(got.dtype).eps * finite.clamp(min=1)
        assert (got.double() - truth).abs().max() <= max(2 * (theirs.double() - truth).abs().max(), floor)
    assert not gradient.isnan().any()


def exact_logps_and_gradient(logits, tokens, weights):
    """In numpy's widest float, which has 11 bits more than float64 on x86, rounded to float64."""
    x = logits.double().numpy().astype(np.longdouble)
    rows = np.arange(len(x))
    shifted = x - x.max(axis=1, keepdims=True)
    logps = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    gradient = -np.exp(logps)
    gradient[rows, tokens] = -np.expm1(logps[rows, tokens])
    gradient *= weights.double().numpy()[:, None]
    return torch.from_numpy(logps[rows, tokens].astype(np.float64)), torch.from_numpy(gradient.astype(np.float64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 200_000])
def test_very_short_and_very_long_rows(dtype, size):
    logits = torch.randn(2, size, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    logps = fast.token_logps(logits, torch.tensor([0, size - 1]))
    expected = logits.detach().double().log_softmax(dim=-1)[[0, 1], [0, size - 1]]
    torch.testing.assert_close(logps.double(), expected, rtol=1e-6, atol=1e-6)
    logps.sum().backward()
    assert logits.grad.double().sum(dim=-1).abs().max() < (1e-6 if dtype in (torch.float32, torch.float64) else 1e-1)


@pytest.mark.parametrize("fill", [math.nan, math.inf])
def test_nan_and_infinite_logits_are_not_hidden(fill):
    for position in (0, 20, 4100):
        logits = torch.zeros(1, 5000)
        logits[0, position] = fill
        assert fast.token_logps(logits, torch.tensor([7])).isnan().all()


@pytest.mark.parametrize("fill", [math.nan, math.inf, -math.inf])
def test_a_row_without_a_number_has_no_logps(fill):
    rows = torch.full((2, 5000), fill)
    assert reference.token_logps(rows, torch.tensor([0, 7])).isnan().all()
    assert fast.token_logps(rows, torch.tensor([0, 7])).isnan().all()


@pytest.mark.parametrize("dims", range(2, 8))  # on a CUDA device, no more
def test_logits_of_any_number_of_dimensions(dims):
    *shape, size = [2, 1, 2, 3, 1, 2, 5][-dims:]
    logits = torch.randn(*shape, size, generator=torch.Generator().manual_seed(0), requires_grad=True)
    tokens = torch.arange(math.prod(shape)).view(shape) % size
    expected, got = reference.token_logps(logits, tokens), fast.token_logps(logits, tokens)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), logits)[0] for x in (got, expected)))


@given(st.integers(1, 5), st.integers(1, 40), st.sampled_from(["sliced", "transposed", "expanded", "step"]))
def test_logits_of_any_strides(rows, size, layout):
    base = torch.randn(rows, 3, size, generator=torch.Generator().manual_seed(rows * size))
    views = {
        "sliced": base[:, :-1],
        "transposed": base.transpose(0, 1),
        "expanded": base[:1].expand(rows, -1, -1),
        "step": base[..., ::2],
    }
    logits = views[layout].detach().requires_grad_()
    tokens = torch.randint(logits.shape[-1], logits.shape[:2], generator=torch.Generator().manual_seed(0))
    expected, got = reference.token_logps(logits, tokens), fast.token_logps(logits, tokens)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        *(torch.autograd.grad(x.sum(), logits)[0] for x in (got, expected)), rtol=1e-5, atol=1e-6
    )


def test_results_do_not_depend_on_the_number_of_threads():
    logits = torch.randn(7, 30_000, generator=torch.Generator().manual_seed(0), requires_grad=True)
    tokens, before, results = torch.arange(7), torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        logps = fast.token_logps(logits, tokens)
        results.append((logps, torch.autograd.grad(logps.sum(), logits)[0]))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


@pytest.mark.parametrize("token", [10**12, -100, 6])
@pytest.mark.parametrize("inplace", [False, True])
def test_tokens_that_changed_after_forward_are_refused(token, inplace):
    """Through memory that is shared with numpy, where autograd does not see it."""
    tokens = torch.tensor([[1, 2, 3], [1, 3, 4]])
    logits = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0)).half().requires_grad_()
    rest = (torch.full((2, 3), -1.5), torch.tensor([1.0, -1.0]), torch.ones(2, 3))
    loss = fast.logits_loss(logits * 1, tokens, *rest, inplace_backward=inplace).loss
    tokens.numpy()[1, 2] = token
    with pytest.raises(ValueError, match=r"tokens: expected values in \[0, V"):
        loss.backward()


# ---- in place


def pair_loss(module, logits, **options):
    tokens = torch.tensor([[1, 2, -100], [1, 3, 4]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    return module.logits_loss(
        logits,
        tokens,
        torch.full((2, 3), -1.5),
        torch.tensor([1.0, -1.0]),
        mask,
        torch.full((2, 3), -1.0),
        kl_coef=0.1,
        **options,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_inplace_backward_writes_the_gradient_over_the_logits(dtype):
    hidden = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    expected = torch.autograd.grad(pair_loss(fast, hidden * 2).loss, hidden)[0]
    logits = hidden * 2
    address = logits.data_ptr()
    loss = pair_loss(fast, logits, inplace_backward=True).loss
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    assert gradient.data_ptr() == address and torch.equal(gradient * 2, expected)
    assert (gradient[0, 2] == 0).all()  # the masked row
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, logits)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [4099, 30_001])
def test_inplace_backward_of_long_rows(dtype, size):
    """Rows that are longer than a block's shared memory, begin at any address, and are in part masked."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(3, 4, size, generator=generator).to(dtype).requires_grad_()
    tokens = torch.randint(size, (3, 3), generator=generator)
    tokens[0, 0], tokens[0, 1] = 0, size - 1
    mask = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 0]])

    def gradient(**options):
        logits = (base * 1)[:, :-1]
        inputs = (tokens, torch.full((3, 3), -9.0), torch.tensor([1.0, -1.0, 1.0]), mask)
        loss = fast.logits_loss(logits, *inputs, **options).loss
        return torch.autograd.grad(loss * 1024, base)[0]  # as a gradient scaler would: half must not underflow

    expected = gradient()
    got = gradient(inplace_backward=True)
    # The gradient is proportional to the ratio, whose log is a difference of numbers of about 12; each is rounded.
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rounding = 2 * torch.finfo(dtype).eps + 16 * torch.finfo(wide).eps
    torch.testing.assert_close(got, expected, rtol=rounding, atol=0)
    assert torch.equal(got == 0, expected == 0) and expected[0, 0, 0] != 0


def test_inplace_backward_refuses_rows_that_are_not_apart():
    base = torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0))
    whole = base.permute(1, 2, 0).contiguous()
    layouts = {
        "a row is not in one piece": base.permute(1, 2, 0),
        "all rows are one": whole[:1, :1].expand(2, 3, 6),
        "rows overlap": torch.arange(11.0).as_strided((2, 3, 6), (3, 1, 1)),
    }
    for words, logits in layouts.items():
        with pytest.raises(ValueError, match="contiguous in memory and do not overlap"):
            pair_loss(fast, logits.detach().requires_grad_(), inplace_backward=True).loss.backward()
            pytest.fail(words)
    for logits in (whole.transpose(0, 1).contiguous().transpose(0, 1), torch.cat([whole, whole], dim=2)[..., :6]):
        leaf = logits.detach().requires_grad_()
        expected = torch.autograd.grad(pair_loss(reference, leaf).loss, leaf)[0]
        got = torch.autograd.grad(pair_loss(fast, leaf, inplace_backward=True).loss, leaf)[0]
        torch.testing.assert_close(got, expected)


def test_inplace_backward_reaches_the_parameters():
    weight = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    states = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    plain = torch.autograd.grad(pair_loss(reference, states @ weight).loss, weight)[0]
    got = torch.autograd.grad(pair_loss(fast, states @ weight, inplace_backward=True).loss, weight)[0]
    torch.testing.assert_close(got, plain)


# ---- torch


def opcheck_cases():
    rewards, scores, keys = torch.tensor([[0.0, 1, 0], [0, 0, 0]]), torch.rand(2, 3), torch.rand(2, 3)
    predictions, targets = torch.randint(0, 3, (2, 3, 2, 3)), torch.randint(0, 3, (2, 1, 3))
    usable, tokens = torch.tensor([True, False]), torch.tensor([[1, 2, 0], [3, 3, 1]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    logits = torch.randn(2, 3, 5)
    lse = torch.stack([logits.amax(dim=-1), torch.rand(2, 3)], dim=-1).double()
    options = (0.2, 0.28, 3.0, 0.1, "token-mean")
    loss = (torch.randn(2, 3), torch.randn(2, 3), torch.tensor([1.0, -1.0]), mask, torch.randn(2, 3), *options)
    one = torch.ones(())
    return [
        ("structural_scores", (predictions, targets)),
        ("hit_rewards", (predictions, targets)),
        ("group_regimes", (rewards,)),
        ("group_advantages", (rewards, True, 1e-6)),
        ("repair", (rewards, scores, usable, keys)),
        ("contrast", (rewards, scores, 1.0, 0.5, keys)),
        ("recast", (rewards, scores, usable, 1.0, 0.5, keys)),
        ("recast", (rewards, scores, None, 1.0, 1.0, None)),
        ("recast_from_sids", (predictions, targets, 1.0, 1.0, keys)),
        ("branch_mask", (tokens, tokens.flip(0))),
        ("choose_anchor", (targets, torch.rand(2, 1), torch.rand(2, 1))),
        ("choose_anchor", (targets, torch.rand(2, 1), None)),
        ("anchor_weights", (torch.randn(4), 0.5, 4.0)),
        ("token_logps", (logits, tokens, mask, False)),
        ("token_logps_backward", (torch.randn(2, 3), logits, tokens, lse, mask)),
        ("token_logps_backward_", (torch.randn(2, 3), logits.clone(), tokens, lse, None)),
        ("policy_loss", loss),
        ("policy_loss_backward", (one, one, one, *loss)),
    ]


@pytest.mark.parametrize(
    "name, arguments, gradient",
    [
        pytest.param(name, arguments, gradient, id=f"{name}-{'grad' if gradient else 'no grad'}")
        for name, arguments in opcheck_cases()
        for gradient in (False, True)
        if not (gradient and "backward" in name)  # a backward op is not differentiated again
    ],
)
def test_opcheck(name, arguments, gradient):
    if gradient:  # token_logps and policy_loss have one in their first argument, selection has none
        first = 1 if name in ("token_logps", "policy_loss") else len(arguments)
        arguments = tuple(
            x.clone().requires_grad_() if i < first and torch.is_tensor(x) and x.is_floating_point() else x
            for i, x in enumerate(arguments)
        )
    torch.library.opcheck(getattr(OPS, name).default, arguments)


@given(loss_inputs(rows=(0, 4), tokens=(0, 4)), loss_options(), st.integers(1, 6), st.integers(0, 2**31))
def test_gradcheck(drawn, options, size, seed):
    _, _, logps, old, advantages, mask, ref = drawn
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*logps.shape, size, generator=generator, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(size, logps.shape, generator=generator)
    assert torch.autograd.gradcheck(lambda x: fast.token_logps(x, tokens), (logits,))
    gap = (reference.token_logps(logits, tokens) - old).detach()
    low, high = options.get("clip_low", 0.2), options.get("clip_high", 0.28)
    for corner in (1 - low, 1 + high, options.get("dual_clip", 3.0)):
        mask = mask & ((gap.exp() - corner).abs() > 1e-3)
    mask = mask & (gap.abs() < 10) & ((ref - old).abs() < 2) & (gap.abs() < 2)
    assert torch.autograd.gradcheck(
        lambda x: fast.logits_loss(x, tokens, old, advantages, mask, ref, **options).loss, (logits,)
    )


def test_compiles_without_a_graph_break():
    def step(predictions, targets, keys, logits, tokens):
        picked = fast.recast_from_sids(predictions, targets, tie_break=keys)
        rewards, scores = fast.hit_rewards(predictions, targets), fast.structural_scores(predictions, targets)
        again = fast.hybrid(rewards, scores, tie_break=keys)
        old = fast.token_logps(logits, tokens).detach()
        loss = fast.logits_loss(
            logits, tokens, old - 0.1, torch.tensor([1.0, -1.0]), torch.ones(2, 3), inplace_backward=True
        )
        return picked.advantages + again.advantages + fast.group_advantages(rewards), loss.loss

    generator = torch.Generator().manual_seed(0)
    arguments = (
        torch.randint(0, 3, (4, 5, 1, 3), generator=generator),
        torch.randint(0, 3, (4, 1, 3), generator=generator),
        torch.rand(4, 5, generator=generator),
        torch.randn(2, 3, 6, generator=generator).requires_grad_(),
        torch.randint(6, (2, 3), generator=generator),
    )
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    (signal, loss), (plain_signal, plain_loss) = (
        compiled(*arguments),
        step(*arguments[:3], arguments[3] * 1, arguments[4]),  # a copy: it may be overwritten
    )
    assert torch.equal(signal, plain_signal) and torch.equal(loss, plain_loss)
    gradient = torch.autograd.grad(loss, arguments[3])[0]
    leaf = arguments[3].detach().clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(step(*arguments[:3], leaf * 1, arguments[4])[1], leaf)[0])


def test_autocast():
    states, weight = torch.randn(2, 3, 5), torch.randn(5, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = states @ weight
        assert logits.dtype == torch.bfloat16
        loss = pair_loss(fast, logits).loss
    loss.backward()
    assert loss.dtype == torch.float32 and weight.grad.isfinite().all()


def test_empty_batches():
    empty = torch.zeros(0, 3)
    assert [x.shape[0] for x in fast.recast(empty, empty)] == [0] * 4
    assert fast.recast(torch.zeros(2, 0), torch.zeros(2, 0)).slot.tolist() == [-1, -1]
    assert fast.token_logps(torch.zeros(0, 3, 5), torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3)
    assert fast.policy_loss(empty, empty, torch.zeros(0), empty).loss == 0


# ---- the bench


def test_bench_measures_what_it_says():
    peers = bench.measure(bench.selection_peers(20, 4), repeats=2)
    assert set(peers) == {"plain Python", "reference", "fast"}
    assert peers["fast"]["extra_bytes"] == 3 * 20 * 8 + 20 * 4 * 4  # three indices a group and the advantages
    text = bench.table({"selection": peers})
    assert "plain Python" in text and " 1.0x " in text
    rows, targets = [[[0, 1, 2], [0, 1, 3], [4, 4, 4]]], [[0, 1, 2]]
    expected = reference.group_advantages(torch.tensor([[1.0, 0, 0]]).double())
    assert bench.plain_python(rows, targets) == [pytest.approx(expected[0].tolist())]
