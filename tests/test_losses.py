"""Log-probs and the policy loss: values by hand, the formula in float64 with autograd, and what must not matter."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recast_ref import testing
from recast_ref.testing.strategies import loss_options

T = torch.tensor
ONE = torch.ones(1, 1)


def loss_inputs():
    """``(logps, old_logps, advantages, mask, ref_logps), options``."""
    return st.tuples(testing.loss_inputs(rows=(0, 4), tokens=(0, 4)).map(lambda drawn: drawn[2:]), loss_options())


def formula(
    logps, old, advantages, mask, ref, clip_low=0.2, clip_high=0.28, dual_clip=3.0, kl_coef=0.0, aggregate="token-mean"
):
    """verl's loss token by token in Python, on 0-d tensors so that autograd gives its gradient. ``None`` if all is masked."""
    rows = []
    for b in range(logps.shape[0]):
        row = []
        for t in range(logps.shape[1]):
            if not mask[b, t]:
                continue
            a = float(advantages[b] if advantages.dim() == 1 else advantages[b, t])
            ratio = torch.exp(torch.clamp(logps[b, t] - old[b, t], -20, 20))
            bound = torch.tensor(1 + clip_high if ratio > 1 else 1 - clip_low, dtype=torch.float64)
            clipped = ratio if 1 - clip_low <= ratio <= 1 + clip_high else bound
            policy = -a * ratio if -a * ratio >= -a * clipped else -a * clipped
            if a < 0 and policy > -a * dual_clip:
                policy = T(-a * dual_clip, dtype=torch.float64)
            x = torch.clamp(ref[b, t] - logps[b, t], -20, 20)
            kl = torch.clamp(torch.exp(x) - x - 1, -10, 10)
            row.append((policy, kl, float(-a * clipped > -a * ratio)))
        if row:
            rows.append(row)
    if not rows:
        return None

    def reduce(part):
        sums = [sum(token[part] for token in row) for row in rows]
        if aggregate == "token-mean":
            return sum(sums) / sum(map(len, rows))
        if aggregate == "seq-mean-token-mean":
            sums = [s / len(row) for s, row in zip(sums, rows)]
        return sum(sums) / len(rows)

    clipped = sum(token[2] for row in rows for token in row) / sum(map(len, rows))
    return reduce(0), reduce(1), reduce(0) + kl_coef * reduce(1), clipped


@given(loss_inputs(), st.tuples(*3 * [st.sampled_from([1.0, 0.0, -0.5])]))
def test_loss_and_gradient_equal_the_formula(R, inputs, weights):
    """And so does the gradient of the two parts, each by itself."""
    (logps, old, advantages, mask, ref), options = inputs
    mine, theirs = logps.clone().requires_grad_(), logps.clone().requires_grad_()
    got = R.policy_loss(mine, old, advantages, mask, ref, **options)

    def weighted(policy, kl, loss):
        return weights[0] * loss + weights[1] * policy + weights[2] * kl

    weighted(got.policy, got.kl, got.loss).backward()
    expected = formula(theirs, old, advantages, mask, ref, **options)
    if expected is None:
        assert got.loss == got.policy == got.kl == got.clip_fraction == 0
        assert (mine.grad == 0).all()
        return
    detached = [float(x.detach()) for x in expected[:3]]
    assert got.clip_fraction.item() == pytest.approx(expected[3])
    assert got.policy.item() == pytest.approx(detached[0], rel=1e-9, abs=1e-12)
    assert got.kl.item() == pytest.approx(detached[1], rel=1e-9, abs=1e-12)
    assert got.loss.item() == pytest.approx(detached[2], rel=1e-9, abs=1e-12)
    expected_grad = torch.autograd.grad(weighted(*expected[:3]) + 0 * theirs.sum(), theirs)[0]
    torch.testing.assert_close(mine.grad, expected_grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "ratio, advantage, expected, clipped",
    [
        (1.0, 1.0, -1.0, 0),
        (1.1, 1.0, -1.1, 0),
        (1.5, 1.0, -1.28, 1),  # a positive is not pushed past 1 + clip_high
        (0.5, 1.0, -0.5, 0),  # below the range it still pulls back
        (0.5, -1.0, 0.8, 1),  # a negative is not pushed below 1 - clip_low
        (1.5, -1.0, 1.5, 0),
        (5.0, -1.0, 3.0, 0),  # dual clip
        (5.0, -2.0, 6.0, 0),
    ],
)
def test_clips_by_hand(R, ratio, advantage, expected, clipped):
    logps = torch.full((1, 1), math.log(ratio), dtype=torch.float64)
    got = R.policy_loss(logps, torch.zeros_like(logps), T([advantage]).double(), ONE)
    assert got.policy.item() == pytest.approx(expected)
    assert got.clip_fraction == clipped


def test_kl_by_hand_and_its_clamps(R):
    def kl(gap):
        return R.policy_loss(
            torch.zeros(1, 1).double(), ONE, T([0.0]).double(), ONE, torch.full((1, 1), gap).double()
        ).kl.item()

    assert kl(0.0) == 0
    assert kl(math.log(2)) == pytest.approx(2 - math.log(2) - 1)
    assert kl(-math.log(2)) == pytest.approx(0.5 + math.log(2) - 1)
    assert kl(50.0) == 10.0  # exp(20) before the outer clamp
    assert kl(-50.0) == 10.0


@pytest.mark.parametrize("gap", [-200.0, 200.0])
def test_far_ratios_stay_finite_in_float32(R, gap):
    """Without the inner clamps these are ``0 * inf``."""
    logps = torch.zeros(1, 1, requires_grad=True)
    got = R.policy_loss(logps, torch.full((1, 1), -gap), T([0.0]), ONE, torch.full((1, 1), gap), kl_coef=1.0)
    got.loss.backward()
    assert got.policy == 0 and got.kl == 10 and logps.grad == 0


@given(loss_inputs())
def test_gradient_goes_to_the_policy_alone(R, inputs):
    tensors, options = inputs
    logps, old, advantages, mask, ref = (x.clone().requires_grad_(x.is_floating_point()) for x in tensors)
    R.policy_loss(logps, old, advantages, mask, ref, **options).loss.backward()
    assert logps.grad is not None and old.grad is advantages.grad is ref.grad is None


@given(loss_inputs(), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_half_precision_is_widened(R, inputs, dtype):
    (logps, old, advantages, mask, ref), options = inputs
    narrow = [x.to(dtype) for x in (logps, old, advantages, ref)]
    got = R.policy_loss(*narrow[:3], mask, narrow[3], **options)
    wide = [x.float() for x in narrow]
    assert got.loss.dtype == torch.float32
    assert torch.equal(torch.stack(got), torch.stack(R.policy_loss(*wide[:3], mask, wide[3], **options)))


def test_aggregates_by_hand(R):
    logps = torch.zeros(3, 3)
    mask = T([[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    advantages = T([[-1.0, -2.0, -3.0], [-10.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    for how, expected in (
        ("token-mean", 16 / 4),
        ("seq-mean-token-mean", (2 + 10) / 2),
        ("seq-mean-token-sum", (6 + 10) / 2),
    ):
        assert R.policy_loss(logps, logps, advantages, mask, aggregate=how).loss.item() == pytest.approx(expected)


def test_a_pair_has_loss_zero_and_a_gradient(R):
    logps = torch.zeros(2, 3, requires_grad=True)
    got = R.policy_loss(logps, torch.zeros(2, 3), T([1.0, -1.0]), torch.ones(2, 3))
    got.loss.backward()
    assert got.loss == 0
    assert logps.grad.tolist() == [[pytest.approx(-1 / 6)] * 3, [pytest.approx(1 / 6)] * 3]


@given(loss_inputs(), st.sampled_from([math.nan, math.inf, -math.inf, 1e30]))
def test_what_is_masked_has_no_influence(R, inputs, junk):
    (logps, old, advantages, mask, ref), options = inputs
    advantages = advantages if advantages.dim() == 2 else advantages[:, None].expand_as(logps)
    clean = R.policy_loss(logps, old, advantages, mask, ref, **options)
    dirty = [x.masked_fill(~mask, junk) for x in (logps, old, advantages, ref)]
    dirty[0].requires_grad_()
    got = R.policy_loss(*dirty[:3], mask, dirty[3], **options)
    assert torch.equal(torch.stack(got), torch.stack(clean))
    got.loss.backward()
    assert (dirty[0].grad[~mask] == 0).all()


@given(loss_inputs())
def test_gradcheck_away_from_the_corners(R, inputs):
    (logps, old, advantages, mask, ref), options = inputs
    ratio = (logps - old).exp()
    low, high = options.get("clip_low", 0.2), options.get("clip_high", 0.28)
    for corner in (1 - low, 1 + high, options.get("dual_clip", 3.0)):
        mask = mask & ((ratio - corner).abs() > 1e-3)
    mask = mask & (ratio.log().abs() < 10) & ((ref - logps).abs() < 2)
    assert torch.autograd.gradcheck(
        lambda x: R.policy_loss(x, old, advantages, mask, ref, **options).loss, (logps.clone().requires_grad_(),)
    )


@given(loss_inputs(), st.tuples(*4 * [st.booleans()]), st.booleans())
def test_only_what_depends_on_the_policy_requires_a_gradient(R, inputs, requires, with_ref):
    (logps, old, advantages, mask, ref), options = inputs
    for x, required in zip((logps, old, advantages, ref), requires):
        x.requires_grad_(required)
    got = R.policy_loss(logps, old, advantages, mask, ref, **options)
    assert [x.requires_grad for x in got] == [requires[0]] * 3 + [False]
    options.pop("kl_coef", None)
    got = R.policy_loss(logps, old, advantages, mask, **options)
    assert [x.requires_grad for x in got] == [requires[0]] * 2 + [False] * 2


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32, np.float16, Fraction, int])
@pytest.mark.parametrize("name", ["clip_low", "clip_high", "dual_clip", "kl_coef"])
def test_a_number_of_any_kind_is_that_number(R, name, kind):
    logps = torch.linspace(-2, 2, 12).double().view(3, 4)
    inputs = (logps, logps.flip(1), T([1.0, -1.0, 0.5]).double(), torch.ones(3, 4), logps.flip(0))
    assert torch.equal(
        torch.stack(R.policy_loss(*inputs, **{name: kind(2)})), torch.stack(R.policy_loss(*inputs, **{name: 2.0}))
    )


# ---- log-probs


@given(
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]).flatmap(
        lambda dtype: st.tuples(st.just(dtype), st.floats(-1, 1).map(lambda share: share * torch.finfo(dtype).max))
    ),
    st.integers(1, 40),
)
def test_equal_logits_are_a_uniform_distribution_whatever_their_size(R, drawn, size):
    dtype, value = drawn
    logits = torch.full((2, size), value, dtype=torch.float64).to(dtype).requires_grad_()
    logps = R.token_logps(logits, T([0, size - 1]))
    torch.testing.assert_close(logps, torch.full_like(logps, -math.log(size)), rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(logps[0], logits)
    expected = torch.full((2, size), -1 / size, dtype=torch.float64)
    expected[0, 0] = 1 - 1 / size
    expected[1] = 0
    rtol = 2 * torch.finfo(dtype).eps + 1e-6
    torch.testing.assert_close(gradient.double(), expected, rtol=rtol, atol=1e-6 if size == 1 else 0)


LOGITS = st.integers(1, 6).flatmap(
    lambda v: st.lists(st.lists(st.floats(-1e4, 1e4), min_size=v, max_size=v), min_size=1, max_size=4)
)


@given(LOGITS, st.data())
def test_token_logps_equal_log_softmax(R, rows, data):
    logits = T(rows, dtype=torch.float64)
    tokens = T(data.draw(st.lists(st.integers(0, logits.shape[1] - 1), min_size=len(rows), max_size=len(rows))))
    expected = logits.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(R.token_logps(logits, tokens), expected, rtol=1e-12, atol=1e-9)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        narrow = logits.to(dtype)
        if narrow.isfinite().all():
            got = R.token_logps(narrow, tokens)
            assert got.dtype == torch.float32
            exact = narrow.double().log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
            torch.testing.assert_close(got.double(), exact, rtol=2e-6, atol=2e-6)


def test_impossible_tokens_have_probability_zero(R):
    logits = T([[0.0, -math.inf, 0.0], [0.0, -math.inf, 0.0]], requires_grad=True)
    logps = R.token_logps(logits, T([0, 1]))
    assert logps.tolist() == [pytest.approx(-math.log(2)), -math.inf]
    logps[0].backward()
    assert logits.grad[0].tolist() == [pytest.approx(0.5), 0.0, pytest.approx(-0.5)]
    assert not logits.grad.isnan().any()


@given(loss_inputs(), st.data())
def test_logits_loss_is_the_composition(R, inputs, data):
    (logps, old, advantages, mask, ref), options = inputs
    b, t = logps.shape
    v = 5
    values = data.draw(st.lists(st.floats(-5, 5), min_size=b * t * v, max_size=b * t * v))
    logits = T(values, dtype=torch.float64).view(b, t, v).requires_grad_()
    tokens = T(data.draw(st.lists(st.integers(0, v - 1), min_size=b * t, max_size=b * t)), dtype=torch.int64).view(b, t)
    got = R.logits_loss(logits, tokens, old, advantages, mask, ref, **options)
    expected = R.policy_loss(R.token_logps(logits, tokens), old, advantages, mask, ref, **options)
    assert torch.equal(torch.stack(got), torch.stack(expected))


@pytest.mark.parametrize("junk", [-math.inf, math.inf, math.nan])
def test_masked_logits_and_tokens_have_no_influence(R, junk):
    logits = torch.tensor([[[0.0, 1.0, 2.0], [junk] * 3]], requires_grad=True)
    rest = (torch.zeros(1, 2), T([1.0]), T([[1, 0]]))
    got = R.logits_loss(logits, T([[2, -100]]), *rest)
    got.loss.backward()
    assert torch.equal(got.loss, R.logits_loss(logits[:, :1], T([[2]]), rest[0][:, :1], rest[1], rest[2][:, :1]).loss)
    assert (logits.grad[0, 1] == 0).all() and (logits.grad[0, 0] != 0).all()


Z = torch.zeros


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda R: R.token_logps(Z(2, 3), T([0, 3])), ValueError, "tokens: expected values in [0, V=3), got 3 at [1]"),
        (lambda R: R.token_logps(Z(2, 3), Z(3).long()), ValueError, "tokens: expected shape (T=2,), got (3,)"),
        (lambda R: R.token_logps(Z(2, 3), Z(2)), TypeError, "tokens: expected torch.int64, got torch.float32"),
        (
            lambda R: R.policy_loss(Z(2, 3), Z(2, 4), Z(2), Z(2, 3)),
            ValueError,
            "old_logps: expected shape (B=2, T=3), got (2, 4)",
        ),
        (
            lambda R: R.policy_loss(Z(2, 3), Z(2, 3), Z(3), Z(2, 3)),
            ValueError,
            "advantages: expected shape (B=2,), got (3,)",
        ),
        (
            lambda R: R.policy_loss(Z(2, 3), Z(2, 3), Z(2, 1), Z(2, 3)),
            ValueError,
            "advantages: expected shape (B=2, T=3) or (B,), got (2, 1)",
        ),
        (
            lambda R: R.policy_loss(Z(2, 3), Z(2, 3), Z(2), Z(2, 3) + 0.5),
            ValueError,
            "mask: expected only 0 and 1, got 0.5 at [0, 0]",
        ),
        (
            lambda R: R.policy_loss(Z(2, 3), Z(2, 3), Z(2), Z(2, 3), kl_coef=0.1),
            ValueError,
            "ref_logps: needed for kl_coef=0.1",
        ),
        (
            lambda R: R.policy_loss(Z(2, 3), Z(2, 3), Z(2), Z(2, 3), dual_clip=1.0),
            ValueError,
            "dual_clip: expected a finite number > 1",
        ),
        (
            lambda R: R.policy_loss(Z(2, 3), Z(2, 3), Z(2), Z(2, 3), aggregate="mean"),
            ValueError,
            "aggregate: expected one of token-mean",
        ),
        (
            lambda R: R.policy_loss(Z(2, 3), Z(2, 3), None, Z(2, 3)),
            TypeError,
            "advantages: expected a torch.Tensor, got NoneType",
        ),
        (lambda R: R.token_logps(Z(2, 0), Z(2).long()), ValueError, "logits: expected a vocabulary, V >= 1"),
        (
            lambda R: R.logits_loss(Z(2, 3, 0), Z(2, 3).long(), Z(2, 3), Z(2), Z(2, 3)),
            ValueError,
            "logits: expected a vocabulary, V >= 1 (last dimension), got (2, 3, 0)",
        ),
        (
            lambda R: R.logits_loss(Z(2, 3, 4), Z(2, 3).long(), Z(2, 3, device="meta"), Z(2), Z(2, 3)),
            ValueError,
            "old_logps: expected device cpu, where logits is, got meta",
        ),
        *(
            (lambda R, n=name, v=value: R.policy_loss(Z(2, 3), Z(2, 3), Z(2), Z(2, 3), Z(2, 3), **{n: v}), error, words)
            for name in ("clip_low", "clip_high", "dual_clip", "kl_coef")
            for value, error, words in (
                (True, TypeError, f"{name}: expected a number, got bool"),
                (T(0.2), TypeError, f"{name}: expected a number, got Tensor; call .item() on it"),
                (Decimal("0.2"), TypeError, f"{name}: expected a number, got Decimal"),
                ("0.2", TypeError, f"{name}: expected a number, got str"),
                (None, TypeError, f"{name}: expected a number, got NoneType"),
                (math.nan, ValueError, f"{name}: expected a finite number"),
                (10**400, ValueError, f"{name}: expected a finite number"),
                (-1, ValueError, f"{name}: expected a finite number"),
                (
                    1e39,
                    ValueError,
                    f"{name}: expected a number that torch.float32 can hold, got 1e+39, which becomes inf",
                ),
            )
        ),
        (
            lambda R: R.policy_loss(Z(2, 3), Z(2, 3), Z(2), Z(2, 3), aggregate=b"token-mean"),
            ValueError,
            "aggregate: expected one of token-mean, seq-mean-token-mean, seq-mean-token-sum, got b'token-mean'",
        ),
        (
            lambda R: R.logits_loss(Z(2, 3), Z(2).long(), Z(2), Z(2), Z(2)),
            ValueError,
            "logits: expected shape (B, T, V), got (2, 3)",
        ),
    ],
)
def test_bad_input_is_named(path, call, error, words):
    with pytest.raises(error) as caught:
        call(path)
    assert words in str(caught.value)
