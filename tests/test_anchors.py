"""Which target becomes the anchor, how much it counts, and the hybrid of GRPO and anchors: by hand and as laws, on both paths."""

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recast_ref.testing import sid_groups, sparse_hit_groups

T, Z = torch.tensor, torch.zeros
groups = functools.partial(sparse_hit_groups, prompts=(0, 5), size=(0, 5))
sids = functools.partial(sid_groups, prompts=(0, 4), size=(0, 4), named=(0, 4), wanted=(0, 4))
logps = st.lists(st.floats(-1e4, 0, width=32), max_size=8).map(torch.tensor)
alphas = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1)


# ---- which target


@pytest.mark.parametrize(
    "values, tie_break, chosen",
    [
        ([-9.0, -4.0, -1.0, 0.0], None, 1),  # the last two are padding
        ([-4.0, -4.0, -4.0, -4.0], None, 0),  # a tie: the lowest index
        ([-4.0, -4.0, 0.0, 0.0], [0.1, 0.2, 9.0, 9.0], 1),  # a tie: the largest key
        ([-math.inf, -math.inf, 0.0, 0.0], None, 0),  # no worse than any other
        ([-9.0, -4.0, math.nan, math.nan], [0.0, 0.0, math.nan, math.nan], 1),  # whatever stands at padding
    ],
)
def test_choose_anchor_by_hand(R, values, tie_break, chosen):
    targets = T([[[12, 7], [30, 2], [12, -1], [-1, -1]]])
    assert R.choose_anchor(targets, T([values]), None if tie_break is None else T([tie_break])).tolist() == [chosen]
    assert R.choose_anchor(targets[:, 2:], T([values[2:]])).tolist() == [-1]


@given(sids(), st.data())
def test_choose_anchor_equals_the_loop(R, inputs, data):
    targets = inputs[1]
    q, k, _ = targets.shape
    few = st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 2.0]), min_size=q * k, max_size=q * k)
    values, keys = (T(data.draw(few), dtype=torch.float32).view(q, k) for _ in range(2))
    expected = []
    for sid, value, key in zip(targets.tolist(), values.tolist(), keys.tolist()):
        real = [i for i in range(k) if min(sid[i]) >= 0]
        expected.append(min(real, key=lambda i: (-value[i], -key[i], i), default=-1))
    got = R.choose_anchor(targets, values, keys)
    assert got.dtype == torch.int64 and got.tolist() == expected


@given(sids())
def test_nearness_is_1_where_a_target_was_named_and_grows_with_the_prefix(R, inputs):
    predictions, targets = inputs
    near = R.nearness(predictions, targets)
    assert near.shape == targets.shape[:2]
    levels = targets.shape[-1]
    for q in range(len(targets)):
        named = [p for r in predictions[q].tolist() for p in r if min(p) >= 0]
        for t, value in zip(targets[q].tolist(), near[q].tolist()):
            agree = [next((m for m in range(levels) if p[m] != t[m]), levels) for p in named] if min(t) >= 0 else []
            best = max(agree, default=0)
            assert value == pytest.approx(10.0 ** (best - levels) if best else 0.0)


# ---- how much it counts


def test_anchor_weights_by_hand(R):
    p = T([0.01, 0.04, 0.16, 0.04])  # square roots 0.1, 0.2, 0.4, 0.2: mean 0.225
    expected = [0.1 / 0.225, 0.2 / 0.225, 0.4 / 0.225, 0.2 / 0.225]
    assert R.anchor_weights(p.log()).tolist() == pytest.approx(expected)
    assert R.anchor_weights(p.log(), largest=1.5).tolist() == pytest.approx([*expected[:2], 1.5, expected[3]])
    assert R.anchor_weights(T([0.0, *[-99.0] * 9])).tolist() == pytest.approx([4.0, *[0.0] * 9])  # 10, cut to 4
    assert R.anchor_weights(p.log(), alpha=0.0).tolist() == [1.0] * 4
    assert R.anchor_weights(p.log(), alpha=1.0).tolist() == pytest.approx((p / p.mean()).tolist())


@given(logps, alphas, st.sampled_from([1.0, 4.0, 1e6]))
def test_anchor_weights_are_relative_bounded_and_in_order(R, logps, alpha, largest):
    weights = R.anchor_weights(logps, alpha, largest)
    assert weights.shape == logps.shape and weights.dtype == logps.dtype
    assert ((0 <= weights) & (weights <= largest)).all()
    if len(logps):
        assert weights.double().mean() <= 1 + 1e-6
        if weights.max() < largest:
            assert weights.double().mean().item() == pytest.approx(1)
        assert (weights[logps.argsort()].diff() >= 0).all()
    # What matters is how likely an anchor is beside the others: with all half as likely, nothing changes.
    torch.testing.assert_close(R.anchor_weights(logps.double() - math.log(2), alpha, largest), R.anchor_weights(logps.double(), alpha, largest))  # fmt: skip


@given(logps, alphas)
def test_cutting_one_anchor_leaves_the_others_alone(R, logps, alpha):
    cut, free = R.anchor_weights(logps, alpha, largest=2.0), R.anchor_weights(logps, alpha, largest=1e9)
    assert torch.equal(cut, free.clamp(max=2.0))


@given(st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=5))
def test_alpha_1_is_the_policy_gradient_of_the_chance_of_a_hit(R, logits):
    """Each prompt has one target, the first code. The gradient of sum p, and of the weighted log-probs, in every direction."""
    logits = torch.stack([T(logits, dtype=torch.float64), T(logits, dtype=torch.float64).flip(0)]).requires_grad_()
    logp = logits.log_softmax(dim=1)[:, 0]
    (exact,) = torch.autograd.grad(logp.exp().sum(), logits, retain_graph=True)
    (weighted,) = torch.autograd.grad((R.anchor_weights(logp, 1.0, 1e9) * logp).sum(), logits)
    torch.testing.assert_close(weighted * logp.detach().exp().mean(), exact)


# ---- hybrid


def test_hybrid_by_hand(R):
    rewards = T([[0.0, 0, 0, 0], [0.0, 0, 1, 0], [0.0, 0, 0, 0], [1.0, 1, 1, 1], [-1.0, -1, -0.5, -1]])
    scores = T([[0.1, 0.0, 0.01, 0.0], [0.1, 0.0, 1.0, 0.0], [0.1, 0.0, 0, 0], [1.0] * 4, [0.1, 0.0, 0.01, 0.01]])
    result = R.hybrid(rewards, scores, T([True, True, False, True, True]), 2.0, 0.5)
    assert result.slot.tolist() == [1, -1, -1, -1, 1]
    assert result.positive.tolist() == [1, -1, -1, -1, 1]
    assert result.negative.tolist() == [0, -1, -1, -1, 0]
    expected = [[-0.5, 2, 0, 0], [-0.5, -0.5, 1.5, -0.5], [0] * 4, [0] * 4, [-0.5, 2, 0, 0]]
    torch.testing.assert_close(result.advantages, T(expected), atol=1e-5, rtol=0)
    plain = R.hybrid(rewards, scores, normalize=False).advantages
    assert plain[1].tolist() == [-0.25, -0.25, 0.75, -0.25] and plain[0].tolist() == pytest.approx([-0.3, 1, 0, 0])


@given(groups(dtype=None), st.booleans(), st.sampled_from([0.5, 1.0]), st.sampled_from([0.0, 0.25]))
def test_hybrid_is_grpo_where_there_is_a_hit_and_recast_where_there_is_none(R, inputs, normalize, weight, negative):
    rewards, scores, repairable, tie_break = inputs
    result = R.hybrid(rewards, scores, repairable, weight, negative, tie_break, normalize)
    hit = (rewards > 0).any(dim=1)
    pairs = R.recast(rewards, scores, repairable, weight, negative, tie_break)
    whole = R.group_advantages(rewards, normalize)
    assert torch.equal(result.advantages[hit], whole[hit])
    assert torch.equal(result.advantages[~hit], pairs.advantages[~hit])
    assert torch.equal(result.slot, pairs.slot) and (result.slot[hit] == -1).all()
    for mine, theirs in ((result.positive, pairs.positive), (result.negative, pairs.negative)):
        assert torch.equal(mine[~hit], theirs[~hit]) and (mine[hit] == -1).all()


@given(groups())
def test_hybrid_puts_the_weight_on_the_anchor_and_on_nothing_else(R, inputs):
    rewards, scores, repairable, tie_break = inputs
    result = R.hybrid(rewards, scores, repairable, 2.0, 0.5, tie_break)
    for q, row in enumerate(result.advantages.tolist()):
        if (rewards[q] > 0).any():
            continue
        slot, positive, negative = (x[q].item() for x in result[:3])
        assert sorted(a for a in row if a) == ([-0.5, 2.0] if positive >= 0 else [])
        assert positive in (slot, -1) and (positive < 0) == (negative < 0)
        assert positive < 0 or (row[positive], row[negative]) == (2.0, -0.5)


@given(groups(), st.randoms(use_true_random=False))
def test_permuting_the_group_permutes_the_hybrid(R, inputs, random):
    rewards, scores, repairable, _ = inputs
    q, g = rewards.shape
    distinct = torch.tensor([random.sample(range(g), g) for _ in range(q)], dtype=torch.float32).view(q, g)
    order = torch.tensor(random.sample(range(g), g), dtype=torch.int64)
    before = R.hybrid(rewards, scores, repairable, tie_break=distinct)
    after = R.hybrid(rewards[:, order], scores[:, order], repairable, tie_break=distinct[:, order])
    torch.testing.assert_close(after.advantages, before.advantages[:, order], atol=1e-5, rtol=1e-5)
    for one, other in zip(before[:3], after[:3]):
        assert [-1 if i < 0 else int(order[i]) for i in other.tolist()] == one.tolist()


@given(groups(), st.integers(0, 5))
def test_prompts_do_not_see_each_other(R, inputs, cut):
    rewards, scores, repairable, tie_break = inputs
    whole = R.hybrid(rewards, scores, repairable, tie_break=tie_break)
    parts = [
        R.hybrid(rewards[part], scores[part], repairable[part], tie_break=tie_break[part])
        for part in (slice(None, cut), slice(cut, None))
    ]
    for i, tensor in enumerate(whole):
        assert torch.equal(tensor, torch.cat([part[i] for part in parts]))


@given(groups())
def test_the_input_is_left_alone_and_no_gradient_flows(R, inputs):
    rewards, scores, repairable, tie_break = inputs
    copies = [x.clone() for x in inputs]
    rewards.requires_grad_(), scores.requires_grad_()
    logps = rewards.flatten()  # any finite numbers
    outputs = [*R.hybrid(rewards, scores, repairable, tie_break=tie_break), R.anchor_weights(logps)]
    assert not any(x.requires_grad for x in outputs)
    assert all(torch.equal(a.detach(), b) for a, b in zip(inputs, copies))


# ---- bad input


SID = torch.zeros(2, 3, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda R: R.choose_anchor(SID, Z(2, 4)), ValueError, "values: expected shape (Q=2, K=3), got (2, 4)"),
        (
            lambda R: R.choose_anchor(SID.float(), Z(2, 3)),
            TypeError,
            "targets: expected torch.int64, got torch.float32",
        ),
        (lambda R: R.choose_anchor(SID, None), TypeError, "values: expected a torch.Tensor, got NoneType"),
        (
            lambda R: R.choose_anchor(SID, Z(2, 3), Z(3, 3)),
            ValueError,
            "tie_break: expected shape (Q=2, K=3), got (3, 3)",
        ),
        (
            lambda R: R.choose_anchor(SID[:1], T([[0.0, math.nan, 0.0]])),
            ValueError,
            "values: expected values that can be ranked, got nan at [0, 1]",
        ),
        (lambda R: R.nearness(SID, SID), ValueError, "predictions: expected shape (Q, G, M, L), got (2, 3, 4)"),
        (lambda R: R.anchor_weights(Z(2, 3)), ValueError, "logps: expected shape (Q,), got (2, 3)"),
        (lambda R: R.anchor_weights(Z(2).long()), TypeError, "logps: expected float32"),
        (
            lambda R: R.anchor_weights(T([0.0, -math.inf])),
            ValueError,
            "logps: expected finite values: the policy must be able to say the anchor, got -inf at [1]",
        ),
        (lambda R: R.anchor_weights(Z(2), alpha=-0.5), ValueError, "alpha: expected a finite number >= 0, got -0.5"),
        (
            lambda R: R.anchor_weights(Z(2), alpha=2),
            ValueError,
            "alpha: expected a number in [0, 1], 0 for SFT and 1 for the policy gradient, got 2",
        ),
        (lambda R: R.anchor_weights(Z(2), largest=0.5), ValueError, "largest: expected a finite number >= 1, got 0.5"),
        (lambda R: R.hybrid(Z(2, 3), Z(2, 4)), ValueError, "scores: expected shape (Q=2, G=3), got (2, 4)"),
        (lambda R: R.hybrid(Z(2, 3), Z(2, 3), weight=0), ValueError, "weight: expected a finite number > 0, got 0"),
        (lambda R: R.hybrid(Z(2, 3), Z(2, 3), negative_weight=-1), ValueError, "negative_weight: expected a finite"),
        (lambda R: R.hybrid(Z(2, 3), Z(2, 3), normalize=1), TypeError, "normalize: expected True or False, got 1"),
        (lambda R: R.hybrid(Z(2, 3), Z(2, 3), eps=0), ValueError, "eps: expected a finite number > 0, got 0"),
    ],
)
def test_bad_input_is_named(path, call, error, words):
    with pytest.raises(error) as caught:
        call(path)
    assert words in str(caught.value)
