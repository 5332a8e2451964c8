"""Scores, regimes, GRPO advantages, repair, contrast: tables worked by hand, laws, and plain loops that must agree."""

import functools
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from recast_ref.testing import loops, sid_groups, sparse_hit_groups
from recast_ref.testing.strategies import norms, ranks

T = torch.tensor
groups = functools.partial(sparse_hit_groups, prompts=(0, 5), size=(0, 5))
sids = functools.partial(sid_groups, prompts=(0, 4), size=(0, 4), named=(0, 4), wanted=(0, 4))


@st.composite
def any_rewards(draw, least, most):
    """One group of any finite rewards of any dtype: equal ones, far apart and next to each other."""
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    limits = torch.finfo(dtype)
    ends = [limits.max, limits.min, limits.smallest_normal, limits.smallest_normal * limits.eps]
    values = st.sampled_from([0.7, 0.95, -0.1, 1.0, 0.0, *ends]) | ranks(dtype).map(
        lambda x: max(limits.min, min(limits.max, x))
    )
    return T([draw(st.lists(values, min_size=least, max_size=most))], dtype=dtype)


# ---- tables worked by hand


@pytest.mark.parametrize(
    "prediction, score, reward",
    [
        ([[12, 7, 201]], 1.0, 1.0),
        ([[12, 7, 40]], 0.1, 0.0),
        ([[12, 9, 201]], 0.01, 0.0),
        ([[30, 7, 201]], 0.0, 0.0),
        ([[12, 7, 201], [30, 7, 201]], 0.5, 1.0),  # the mean over the set
        ([[12, 7, 40], [12, 7, 40]], 0.1, 0.0),  # a duplicate counts once
        ([[12, 7, 40], [12, 7, -1]], 0.1, 0.0),  # padding does not count
        ([[-1, -1, -1]], 0.0, 0.0),  # an empty set
        ([[44, 1, 2], [12, 7, 40]], 0.55, 1.0),  # each against the target it agrees with best
    ],
)
def test_scores_by_hand(R, prediction, score, reward):
    predictions, targets = T([[prediction]]), T([[[12, 7, 201], [44, 1, 2], [-1, 7, 201]]])
    assert R.structural_scores(predictions, targets).item() == pytest.approx(score)
    assert R.hit_rewards(predictions, targets).item() == reward


@pytest.mark.parametrize("matched", range(16))
def test_fifteen_levels(R, matched):
    target = torch.arange(15)
    prediction = torch.where(torch.arange(15) < matched, target, target + 1)
    predictions = prediction.expand(1, 1, 100, 15).clone()
    predictions[0, 0, 1:, 0] = torch.arange(100, 199)  # 99 that match nothing
    u = R.structural_scores(predictions, target[None, None])
    assert u.item() == pytest.approx((10.0 ** (matched - 15) if matched else 0) / 100, rel=1e-6)


def test_regimes_and_grpo_by_hand(R):
    rewards = T([[0.0, 0, 0, 0, 0, 0, 0, 0], [1.0, 0, 0, 0, 0, 0, 0, 0], [1.0, 1, 0, 0, 0, 0, 0, 0]])
    assert R.group_regimes(rewards).tolist() == [0, 1, 2]
    advantages = R.group_advantages(rewards)
    assert (advantages[0] == 0).all()
    # mean 1/8; sum of squares 7/8; std sqrt(1/8); (1 - 1/8) / sqrt(1/8) = 7 / sqrt(8)
    assert advantages[1, 0].item() == pytest.approx(7 / math.sqrt(8), rel=1e-5)
    assert advantages[1, 1].item() == pytest.approx(-1 / math.sqrt(8), rel=1e-5)
    assert (
        R.group_advantages(rewards)[2].tolist()
        == [pytest.approx(1.620, abs=1e-3)] * 2 + [pytest.approx(-0.540, abs=1e-3)] * 6
    )
    assert R.group_advantages(rewards, normalize=False)[1].tolist() == [0.875] + [-0.125] * 7
    assert R.group_advantages(rewards, eps=1.0)[1, 0].item() == pytest.approx(0.875 / (8**-0.5 + 1))
    assert (R.group_advantages(torch.ones(1, 8)) == 0).all()
    # -1 and +1: mean -1/3, std sqrt(4/3); with a penalty of -0.5: mean 1/6, std sqrt(7/12)
    graded = R.group_advantages(T([[-1.0, 1, -1], [1.0, 0, -0.5]]))
    assert graded[0].tolist() == pytest.approx([-1 / math.sqrt(3), 2 / math.sqrt(3), -1 / math.sqrt(3)], rel=1e-5)
    assert graded[1].tolist() == pytest.approx([x / math.sqrt(21) for x in (5, -1, -4)], rel=1e-5)
    assert R.group_regimes(T([[-1.0, -1], [-1.0, 1], [-0.5, 0]])).tolist() == [0, 1, 0]


def test_a_group_of_one_keeps_its_reward(R):
    assert R.group_advantages(T([[1.0], [0.0], [-0.5]])).flatten().tolist() == pytest.approx([1.0, 0.0, -0.5], abs=2e-6)
    assert R.group_advantages(T([[1.0], [0.7]]), normalize=False).tolist() == T([[1.0], [0.7]]).tolist()


def test_a_small_difference_is_no_rounding_error(R):
    """Equality decides, not a threshold on the deviation."""
    small = R.group_advantages(T([[1e-6, 0.0]]))[0].tolist()
    assert small == pytest.approx([0.5 / (math.sqrt(0.5) + 1), -0.5 / (math.sqrt(0.5) + 1)])
    next_to_each_other = torch.nextafter(T(0.7), T(1.0)).item()  # and the mean lies between the two
    a = R.group_advantages(T([[0.7] * 6 + [next_to_each_other]]), normalize=False)[0]
    assert (a[:6] < 0).all() and a[6] == pytest.approx((next_to_each_other - T(0.7).item()) * 6 / 7)


@pytest.mark.parametrize("normalize", [True, False])
@given(any_rewards(least=2, most=2), st.integers(2, 70))
def test_equal_rewards_have_no_advantage(R, normalize, pair, size):
    equal = pair[:, :1].expand(1, size)
    assert (R.group_advantages(equal, normalize) == 0).all(), equal[0, 0].item()


@pytest.mark.parametrize(
    "rewards, advantages, eps",
    [
        # (2 / 3) / sqrt(4 / 3) and its like: no square overflows, or vanishes
        ([1.5e308, 1.5e308, 0.0], [1 / math.sqrt(3), 1 / math.sqrt(3), -2 / math.sqrt(3)], 1e-6),
        ([1e-200, 0.0], [math.sqrt(0.5), -math.sqrt(0.5)], 1e-300),
        ([1e-309, 0.0], [math.sqrt(0.5), -math.sqrt(0.5)], 1e-315),
    ],
)
def test_huge_and_tiny_rewards_by_hand(R, rewards, advantages, eps):
    got = R.group_advantages(T([rewards], dtype=torch.float64), eps=eps)
    torch.testing.assert_close(got, T([advantages], dtype=torch.float64), rtol=1e-5, atol=0)


@given(any_rewards(least=1, most=6), st.booleans(), st.sampled_from([1e-6, 1e-8, 0.5, 1e6]))
def test_any_finite_reward_has_a_finite_advantage_or_is_refused(path, rewards, normalize, eps):
    limits = torch.finfo(rewards.dtype if not normalize else torch.float64)
    held = rewards.double().amax() / 2 - rewards.double().amin() / 2 <= limits.max / 2
    try:
        assert path.group_advantages(rewards, normalize, eps).isfinite().all()
    except ValueError as error:
        assert "rewards: expected values whose differences" in str(error) and not held


@pytest.mark.parametrize(
    "rewards, scores, tie_break, slot",
    [
        ([0.0, 0, 0], [0.1, 0.0, 0.01], None, 1),
        ([0.0, 0, 0], [0.1, 0.0, 0.0], None, 1),  # tie: the lowest index
        ([0.0, 0, 0], [0.1, 0.0, 0.0], [9.0, 0.2, 0.7], 2),  # tie: the largest key among the tied
        ([0.0, 0, 0], [0.1, 0.0, 0.0], [9.0, -math.inf, -math.inf], 1),
        ([0.0, 1, 0], [0.1, 1.0, 0.0], None, -1),  # a hit: untouched
        ([0.0, 0.2, 0], [0.1, 0.1, 0.0], None, -1),  # a graded reward is a hit
        ([-1.0, -1, -1], [0.1, 0.0, 0.01], None, 1),  # no hit, whatever the misses got
        ([-1.0, 1, -1], [0.1, 1.0, 0.0], None, -1),
        ([0.0, -0.5, 0], [0.1, 0.2, 0.01], None, 2),  # a penalty does not choose the slot
    ],
)
def test_repair_by_hand(R, rewards, scores, tie_break, slot):
    fixed = R.repair(T([rewards]), T([scores]), tie_break=None if tie_break is None else T([tie_break]))
    assert fixed.slot.tolist() == [slot]
    for before, after in ((rewards, fixed.rewards), (scores, fixed.scores)):
        expected = T([before])
        if slot >= 0:
            expected[0, slot] = 1
        assert torch.equal(after, expected)


@pytest.mark.parametrize(
    "rewards, scores, tie_break, pair",
    [
        ([0.0, 1, 0], [0.1, 1.0, 0.01], None, (1, 0)),
        ([0.5, 1, 0], [0.9, 1.0, 0.01], None, (1, 2)),  # graded: 0.5 is neither the strongest nor a negative
        ([1.0, 1, 0, 0], [1.0, 1.0, 0.1, 0.1], None, (0, 2)),  # ties: the lowest index
        ([1.0, 1, 0, 0], [1.0, 1.0, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4], (1, 3)),  # ties: the largest key
        ([0.0, 0, 0], [0.1, 0.2, 0.3], None, (-1, -1)),  # no positive
        ([1.0, 1, 1], [1.0, 1.0, 1.0], None, (-1, -1)),  # no negative
        ([0.0, 1, 0], [-math.inf, 1.0, -math.inf], None, (1, 0)),  # any score that can be ranked
        ([-1.0, 1, -1], [0.1, 1.0, 0.01], None, (1, 0)),
        ([-0.5, 1, 0], [0.1, 1.0, 0.01], None, (1, 0)),  # misses are ranked by their score alone, penalty or not
        ([-1.0, -0.5, 0], [0.1, 0.2, 0.3], None, (-1, -1)),
    ],
)
def test_contrast_by_hand(R, rewards, scores, tie_break, pair):
    picked = R.contrast(T([rewards]), T([scores]), 2.0, 0.5, None if tie_break is None else T([tie_break]))
    assert (picked.positive.item(), picked.negative.item()) == pair
    expected = torch.zeros(1, len(rewards))
    if pair != (-1, -1):
        expected[0, pair[0]], expected[0, pair[1]] = 2.0, -0.5
    assert torch.equal(picked.advantages, expected)


def test_recast_by_hand(R):
    rewards = T([[0.0, 0, 0], [0.0, 1, 0], [0.0, 0, 0], [1.0, 1, 1], [-1.0, -1, -0.5]])
    scores = T([[0.1, 0.0, 0.01], [0.1, 1, 0.01], [0.1, 0.0, 0.01], [1.0, 1, 1], [0.1, 0.0, 0.01]])
    result = R.recast(rewards, scores, repairable=T([True, True, False, True, True]))
    assert result.slot.tolist() == [1, -1, -1, -1, 1]
    assert result.positive.tolist() == [1, 1, -1, -1, 1]
    assert result.negative.tolist() == [0, 0, -1, -1, 0]
    assert result.advantages.tolist() == [[-1, 1, 0], [-1, 1, 0], [0, 0, 0], [0, 0, 0], [-1, 1, 0]]


def test_a_group_of_one_is_repaired_and_skipped(R):
    assert [x.tolist() for x in R.recast(T([[0.0]]), T([[0.0]]))] == [[0], [-1], [-1], [[0.0]]]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=8))
def test_branch_mask_equals_the_loop(R, tokens):
    positive, negative = T([p for p, _ in tokens], dtype=torch.int64), T([n for _, n in tokens], dtype=torch.int64)
    expected = [any(p != n for p, n in tokens[: t + 1]) for t in range(len(tokens))]
    assert R.branch_mask(positive, negative).tolist() == expected


def test_branch_mask_by_hand(R):
    positive, negative = T([[12, 7, 201], [12, 7, 201], [12, 7, 201]]), T([[12, 7, 40], [12, 9, 201], [12, 7, 201]])
    assert R.branch_mask(positive, negative).tolist() == [
        [False, False, True],
        [False, True, True],
        [False, False, False],
    ]


# ---- plain loops


def loop_scores(predictions, targets):
    rows = []
    for q in range(predictions.shape[0]):
        wanted = {tuple(t) for t in targets[q].tolist() if min(t) >= 0}
        row = []
        for response in predictions[q].tolist():
            named = {tuple(p) for p in response if min(p) >= 0}
            total = 0.0
            for p in named:
                best = 0.0
                for t in wanted:
                    m = 0
                    while m < len(t) and p[m] == t[m]:
                        m += 1
                    best = max(best, 10.0 ** -(len(t) - m) if m else 0.0)
                total += best
            row.append((total / len(named) if named else 0.0, float(bool(named & wanted))))
        rows.append(row)
    return rows


@given(sids())
def test_scores_equal_the_loops(R, inputs):
    predictions, targets = inputs
    expected = loop_scores(predictions, targets)
    u, r = R.structural_scores(predictions, targets), R.hit_rewards(predictions, targets)
    assert u.dtype == r.dtype == torch.float32 and u.shape == r.shape == predictions.shape[:2]
    assert u.tolist() == [[pytest.approx(score, rel=1e-6) for score, _ in row] for row in expected]
    assert r.tolist() == [[hit for _, hit in row] for row in expected]


def loop_recast(rewards, scores, repairable, tie_break, weight, negative_weight):
    """Paper's definitions, one group at a time."""
    slots, positives, negatives, rows = [], [], [], []
    for r, u, usable, tie in zip(rewards.tolist(), scores.tolist(), repairable.tolist(), tie_break.tolist()):
        index = range(len(r))
        slot = -1
        if usable and index and not any(x > 0 for x in r):
            slot = min(index, key=lambda i: (u[i], -tie[i], i))
            r[slot] = u[slot] = 1.0
        positive = min((i for i in index if r[i] > 0), key=lambda i: (-r[i], -tie[i], i), default=-1)
        negative = min((i for i in index if r[i] <= 0), key=lambda i: (-u[i], -tie[i], i), default=-1)
        advantages = [0.0] * len(r)
        if positive < 0 or negative < 0:
            positive = negative = -1
        else:
            advantages[positive], advantages[negative] = weight, -negative_weight
        slots.append(slot), positives.append(positive), negatives.append(negative), rows.append(advantages)
    return slots, positives, negatives, rows


@given(groups(), st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.0, 0.25, 1.0]))
def test_recast_equals_the_loops(R, inputs, weight, negative_weight):
    rewards, scores, repairable, tie_break = inputs
    result = R.recast(rewards, scores, repairable, weight, negative_weight, tie_break)
    slots, positives, negatives, rows = loop_recast(rewards, scores, repairable, tie_break, weight, negative_weight)
    assert result.slot.tolist() == slots
    assert (result.positive.tolist(), result.negative.tolist()) == (positives, negatives)
    assert result.advantages.tolist() == rows


@given(groups(dtype=None), norms())
def test_grpo_equals_the_loops(R, inputs, options):
    """Whose fractions are exact: what is left is the rounding of the answer, and a little of float64 in a group's largest."""
    rewards = inputs[0]
    got, exact = R.group_advantages(rewards, **options), loops.group_advantages(rewards.double(), **options)
    assert got.dtype == rewards.dtype
    limits, most = torch.finfo(got.dtype), exact.abs().sum(dim=1, keepdim=True)
    rounding = limits.eps * (exact.abs() + limits.smallest_normal) + 1e-14 * most
    rounding += torch.finfo(torch.float64).smallest_normal / options.get("eps", 1e-6)  # a smaller range counts as 0
    assert ((got.double() - exact).abs() <= rounding).all()
    hits = (rewards > 0).sum(dim=1).tolist()
    assert R.group_regimes(rewards).tolist() == [min(k, 2) for k in hits]


# ---- laws


@given(groups())
def test_at_most_two_advantages(R, inputs):
    rewards, scores, repairable, tie_break = inputs
    result = R.recast(rewards, scores, repairable, 2.0, 0.5, tie_break)
    for positive, negative, row in zip(result.positive.tolist(), result.negative.tolist(), result.advantages.tolist()):
        assert (positive < 0) == (negative < 0)
        assert sorted(a for a in row if a) == ([] if positive < 0 else [-0.5, 2.0])
        if positive >= 0:
            assert positive != negative and row[positive] == 2.0 and row[negative] == -0.5
    assert (R.recast(rewards, scores, repairable, 1.5).advantages.sum(dim=1) == 0).all()


@given(groups())
def test_repair_touches_only_all_zero_groups(R, inputs):
    rewards, scores, repairable, tie_break = inputs
    assume(rewards.shape[1] > 0)
    fixed = R.repair(rewards, scores, repairable, tie_break)
    needs = (rewards <= 0).all(dim=1) & repairable
    assert torch.equal(fixed.slot >= 0, needs)
    assert torch.equal(fixed.rewards[~needs], rewards[~needs]) and torch.equal(fixed.scores[~needs], scores[~needs])
    assert ((fixed.rewards[needs] > 0).sum(dim=1) == 1).all()
    assert torch.equal(fixed.scores[needs].gather(1, fixed.slot[needs, None]), torch.ones(int(needs.sum()), 1))
    replaced = scores[needs].gather(1, fixed.slot[needs, None])[:, 0]
    assert torch.equal(replaced, scores[needs].amin(dim=1))
    again = R.repair(fixed.rewards, fixed.scores, repairable, tie_break)
    assert (again.slot[needs] == -1).all()  # repair is done once


@given(groups(), st.randoms(use_true_random=False))
def test_permuting_the_group_permutes_the_answer(R, inputs, random):
    rewards, scores, repairable, _ = inputs
    q, g = rewards.shape
    distinct = torch.tensor([random.sample(range(g), g) for _ in range(q)], dtype=torch.float32).view(q, g)
    order = torch.tensor(random.sample(range(g), g), dtype=torch.int64)
    before = R.recast(rewards, scores, repairable, tie_break=distinct)
    after = R.recast(rewards[:, order], scores[:, order], repairable, tie_break=distinct[:, order])
    assert torch.equal(after.advantages, before.advantages[:, order])
    for one, other in ((before.slot, after.slot), (before.positive, after.positive), (before.negative, after.negative)):
        assert [-1 if i < 0 else int(order[i]) for i in other.tolist()] == one.tolist()
    assert torch.allclose(R.group_advantages(rewards[:, order]), R.group_advantages(rewards)[:, order], atol=1e-5)


@given(groups(), st.integers(0, 5))
def test_prompts_do_not_see_each_other(R, inputs, cut):
    rewards, scores, repairable, tie_break = inputs
    whole = R.recast(rewards, scores, repairable, tie_break=tie_break)
    parts = [
        R.recast(rewards[part], scores[part], repairable[part], tie_break=tie_break[part])
        for part in (slice(None, cut), slice(cut, None))
    ]
    for i, tensor in enumerate(whole):
        assert torch.equal(tensor, torch.cat([part[i] for part in parts]))


@given(groups(), st.sampled_from([0.5, 3.0, 100.0]))
def test_only_the_order_of_scores_matters(R, inputs, scale):
    rewards, scores, repairable, tie_break = inputs
    plain = R.contrast(rewards, scores, tie_break=tie_break)
    scaled = R.contrast(rewards, scores.unique(return_inverse=True)[1] * scale - 7, tie_break=tie_break)
    assert all(torch.equal(a, b) for a, b in zip(plain, scaled))


@given(groups())
def test_the_input_is_left_alone_and_no_gradient_flows(R, inputs):
    rewards, scores, repairable, tie_break = inputs
    copies = [x.clone() for x in inputs]
    rewards.requires_grad_(), scores.requires_grad_()
    outputs = [
        *R.repair(rewards, scores, repairable, tie_break),
        *R.recast(rewards, scores, repairable, tie_break=tie_break),
    ]
    outputs.append(R.group_advantages(rewards))
    assert not any(x.requires_grad for x in outputs)
    assert all(torch.equal(a.detach(), b) for a, b in zip(inputs, copies))


@given(sids(), st.randoms(use_true_random=False))
def test_scores_see_sets(R, inputs, random):
    predictions, targets = inputs
    u, r = R.structural_scores(predictions, targets), R.hit_rewards(predictions, targets)
    shuffled = predictions[:, :, random.sample(range(predictions.shape[2]), predictions.shape[2])]
    doubled = torch.cat([shuffled, predictions], dim=2)
    padded = torch.cat([targets, targets.flip(1), torch.full_like(targets, -1)], dim=1)
    for variant in (shuffled, doubled):
        assert torch.equal(R.structural_scores(variant, padded), u) and torch.equal(R.hit_rewards(variant, padded), r)
    assert ((0 <= u) & (u <= 1)).all()
    assert ((u == 1) <= (r == 1)).all()  # u is 1 only where every SID is a target


@given(groups(dtype=None))
def test_selection_does_not_depend_on_the_dtype(R, inputs):
    rewards, scores, repairable, tie_break = inputs
    narrow = R.recast(rewards, scores, repairable, tie_break=tie_break)
    wide = R.recast(rewards.double(), scores.double(), repairable, tie_break=tie_break.double())
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(narrow, wide))
    assert narrow.advantages.dtype == rewards.dtype


@given(groups())
def test_strides_do_not_matter(R, inputs):
    rewards, scores, repairable, tie_break = inputs
    plain = R.recast(rewards, scores, repairable, tie_break=tie_break)
    turned = R.recast(
        *(x.T.contiguous().T for x in (rewards, scores)), repairable, tie_break=tie_break.T.contiguous().T
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, turned))


# ---- bad input


Z = torch.zeros


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda R: R.recast(Z(2, 3), Z(2, 4)), ValueError, "scores: expected shape (Q=2, G=3), got (2, 4)"),
        (lambda R: R.recast(Z(2, 3, 1), Z(2, 3)), ValueError, "rewards: expected shape (Q, G), got (2, 3, 1)"),
        (lambda R: R.recast([[0.0]], Z(1, 1)), TypeError, "rewards: expected a torch.Tensor, got list"),
        (
            lambda R: R.recast(Z(2, 3).long(), Z(2, 3)),
            TypeError,
            "rewards: expected float32, float64, float16 or bfloat16, got torch.int64",
        ),
        (lambda R: R.repair(Z(2, 3), Z(2, 3), Z(2)), TypeError, "repairable: expected torch.bool, got torch.float32"),
        (lambda R: R.repair(Z(2, 3), Z(2, 3), Z(3).bool()), ValueError, "repairable: expected shape (Q=2,), got (3,)"),
        (
            lambda R: R.contrast(T([[0.0, math.nan]]), Z(1, 2)),
            ValueError,
            "rewards: expected finite values, got nan at [0, 1]; TRL gives NaN where a reward function returns None: drop those "
            "prompts first, rewards[~rewards.isnan().any(dim=1)]",
        ),
        (
            lambda R: R.contrast(T([[0.0, -math.inf]]), Z(1, 2)),
            ValueError,
            "rewards: expected finite values, got -inf at [0, 1]",
        ),
        (lambda R: R.recast(T([[0.0, math.inf]]), Z(1, 2)), ValueError, "rewards: expected finite values, got inf"),
        (lambda R: R.repair(T([[0.0, math.nan]]), Z(1, 2)), ValueError, "drop those prompts first"),
        (lambda R: R.group_advantages(T([[0.0], [math.nan]])), ValueError, "got nan at [1, 0]; TRL gives NaN"),
        (
            lambda R: R.group_regimes(T([[math.inf, 0.0]])),
            ValueError,
            "rewards: expected finite values, got inf at [0, 0]",
        ),
        (
            lambda R: R.group_advantages(T([[6e4, -6e4, -6e4]], dtype=torch.float16), normalize=False),
            ValueError,
            "rewards: expected values whose differences torch.float16 can hold, got 60000.0 at [0, 0]",
        ),
        (
            lambda R: R.group_advantages(T([[0.0, 0.0], [1.5e308, -1.5e308]], dtype=torch.float64)),
            ValueError,
            "rewards: expected values whose differences torch.float64 can hold, got 1.5e+308 at [1, 0]",
        ),
        (lambda R: R.contrast(Z(1, 2), T([[0.0, math.nan]])), ValueError, "scores: expected values that can be ranked"),
        (
            lambda R: R.repair(Z(1, 2), Z(1, 2), tie_break=T([[0.0, math.nan]])),
            ValueError,
            "tie_break: expected values that can be ranked",
        ),
        (
            lambda R: R.contrast(Z(1, 2), Z(1, 2), tie_break=T([[0.0, math.nan]])),
            ValueError,
            "tie_break: expected values",
        ),
        *(
            (lambda R, d=d, w=w: R.contrast(Z(1, 2).to(d), Z(1, 2), weight=w), TypeError, "rewards: expected float32")
            for d, w in ((torch.complex64, 1e5), (torch.int8, 1e-5), (torch.int64, 1.0))
        ),
        (lambda R: R.contrast(Z(1, 2), Z(1, 2), weight=0), ValueError, "weight: expected a finite number > 0, got 0"),
        (lambda R: R.contrast(Z(1, 2), Z(1, 2), weight="1"), TypeError, "weight: expected a number, got str"),
        (
            lambda R: R.contrast(Z(1, 2), Z(1, 2), negative_weight=-0.1),
            ValueError,
            "negative_weight: expected a finite number >= 0",
        ),
        (
            lambda R: R.contrast(Z(1, 2), Z(1, 2, device="meta")),
            ValueError,
            "scores: expected device cpu, where rewards is, got meta",
        ),
        (lambda R: R.group_advantages(Z(1, 2), 1e-6), TypeError, "normalize: expected True or False, got 1e-06"),
        (lambda R: R.contrast(Z(1, 2), Z(1, 2), weight=10**400), ValueError, "weight: expected a finite number > 0"),
        (
            lambda R: R.contrast(Z(1, 2).half(), Z(1, 2), weight=1e6),
            ValueError,
            "weight: expected a number that torch.float16 can hold",
        ),
        (
            lambda R: R.contrast(Z(1, 2).half(), Z(1, 2), weight=1e-9),
            ValueError,
            "can hold, got 1e-09, which becomes 0.0",
        ),
        (lambda R: R.group_advantages(Z(1, 2), eps=math.nan), ValueError, "eps: expected a finite number > 0, got nan"),
        (
            lambda R: R.hit_rewards(Z(1, 2, 1, 3).long(), Z(1, 1, 4).long()),
            ValueError,
            "targets: expected shape (Q=1, K, L=3), got (1, 1, 4)",
        ),
        (
            lambda R: R.structural_scores(Z(1, 2, 1, 3), Z(1, 1, 3).long()),
            TypeError,
            "predictions: expected torch.int64, got torch.float32",
        ),
        (
            lambda R: R.structural_scores(Z(1, 2, 1, 0).long(), Z(1, 1, 0).long()),
            ValueError,
            "expected 1 to 15 codes per SID",
        ),
        (
            lambda R: R.structural_scores(Z(1, 2, 1, 16).long(), Z(1, 1, 16).long()),
            ValueError,
            "expected 1 to 15 codes per SID",
        ),
        *(
            (
                lambda R, f=function: getattr(R, f)(Z(1).long().expand(1, 1, 92_300, 15), Z(1).long().expand(1, 1, 15)),
                ValueError,
                "predictions: expected at most 92233 SIDs of 15 codes in a response, got 92300",
            )
            for function in ("structural_scores", "hit_rewards", "recast_from_sids")
        ),
        (
            lambda R: R.branch_mask(Z(2, 3).long(), Z(2, 4).long()),
            ValueError,
            "negative_tokens: expected shape (2, T=3), got (2, 4)",
        ),
    ],
)
def test_bad_input_is_named(path, call, error, words):
    with pytest.raises(error) as caught:
        call(path)
    assert words in str(caught.value)
