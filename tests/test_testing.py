"""The test kit itself: its strategies reach every corner, each law bites, both paths keep them, and what a user sees."""

import functools
import math
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
import unittest

import hypothesis
import misbehaving
import numpy as np
import pytest
import torch

from recast_ref import _apart, fast, reference, testing
from recast_ref.cli import main
from recast_ref.testing import examples, loops, state, strategies
from recast_ref.testing.checking import standard

# ---- the strategies


def reached(strategy, wanted, examples=30_000):
    """Whether an example of that sort is drawn, always by the same draws."""
    phases = [hypothesis.Phase.generate]
    settings = hypothesis.settings(max_examples=examples, database=None, derandomize=True, deadline=None, phases=phases)
    try:
        hypothesis.find(strategy, wanted, settings=settings)
    except hypothesis.errors.NoSuchExample:
        return False
    return True


def tied(x):
    return any(len(set(row)) < len(row) for row in x.tolist())


@pytest.mark.parametrize(
    "wanted",
    {
        "all-zero": lambda g: (g.rewards == 0).all(),
        "all-zero with penalties": lambda g: (
            (g.rewards <= 0).all() and (g.rewards < 0).any() and (g.rewards == 0).any()
        ),
        "-1 and +1": lambda g: set(g.rewards.flatten().tolist()) == {-1.0, 1.0},
        "a penalty, a miss and a hit": lambda g: any(
            (r > 0).any() and (r < 0).any() and (r == 0).any() for r in g.rewards
        ),
        "equal decimal rewards": lambda g: g.rewards.shape[1] > 2 and (g.rewards == torch.tensor(0.7)).all(),
        "equal penalties": lambda g: g.rewards.shape[1] > 2 and (g.rewards == torch.tensor(-0.1)).all(),
        "a huge reward": lambda g: (g.rewards > 1e30).any(),
        "a tiny reward": lambda g: ((g.rewards > 0) & (g.rewards < 1e-30)).any(),
        "single-hit": lambda g: ((g.rewards > 0).sum(1) == 1).all() and g.rewards.shape[1] == 5,
        "multi-hit": lambda g: ((g.rewards > 0).sum(1) > 1).any(),
        "all hit": lambda g: (g.rewards > 0).all() and g.rewards.shape[1] > 1,
        "every regime in one batch": lambda g: set(reference.group_regimes(g.rewards).tolist()) == {0, 1, 2},
        "graded": lambda g: ((g.rewards > 0) & (g.rewards < 1)).any() and (g.rewards > 1).any(),
        "tied positives": lambda g: any((row == row.max()).sum() > 1 for row in g.rewards if row.max() > 0),
        "tied for the lowest": lambda g: any((u == u.min()).sum() > 1 for u in g.scores[(g.rewards <= 0).all(1)]),
        "tied keys": lambda g: tied(g.tie_break),
        "no tie": lambda g: g.scores.shape[1] > 3 and not tied(g.scores) and not tied(g.tie_break),
        "a miss of score 1": lambda g: ((g.scores == 1) & (g.rewards <= 0)).any(),
        "infinite score": lambda g: g.scores.isinf().any(),
        "any other score": lambda g: (g.scores.abs() > 3).any() and g.scores.isfinite().all(),
        "not repairable": lambda g: (~g.repairable & (g.rewards <= 0).all(1)).any(),
        "a group of one": lambda g: g.rewards.shape[1] == 1,
    }.items(),
    ids=lambda item: item[0],
)
def test_groups_reach(wanted):
    assert reached(testing.sparse_hit_groups(), wanted[1])


def test_groups_keep_to_what_is_asked():
    def all_of(strategy, holds):
        return not reached(strategy, lambda g: not holds(g), examples=100)

    assert all_of(testing.sparse_hit_groups(hit_rate=0.0), lambda g: (g.rewards <= 0).all())
    assert all_of(testing.sparse_hit_groups(hit_rate=1.0), lambda g: (g.rewards > 0).all())
    assert all_of(testing.sparse_hit_groups(graded=False), lambda g: ((g.rewards == 0) | (g.rewards == 1)).all())
    assert all_of(testing.sparse_hit_groups(ties=False), lambda g: not tied(g.scores) and not tied(g.tie_break))
    assert all_of(testing.sparse_hit_groups(size=(2, 2), prompts=(0, 1)), lambda g: g.rewards.shape in ((0, 2), (1, 2)))
    assert all_of(testing.sid_groups(padding=False), lambda s: (s.predictions >= 0).all() and (s.targets >= 0).all())
    assert all_of(
        testing.loss_inputs(masked=False, far=False), lambda x: x.mask.all() and (x.logps - x.old_logps).abs().max() < 3
    )
    extremes = testing.sparse_hit_groups(extremes=True)
    for some in (lambda g: g.rewards > 8e37, lambda g: g.rewards < -8e37, lambda g: g.tie_break == -math.inf):
        assert reached(extremes, lambda g, some=some: some(g).any())
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        drawn = testing.sparse_hit_groups(extremes=True, dtype=None)
        assert reached(drawn, lambda g, dtype=dtype: g.rewards.dtype == dtype and (g.rewards > 0).any())


def test_groups_with_equal_rewards_are_common():
    """Other rewards than 0 and 1: there a mean may be a rounding error off."""
    rows = []

    @hypothesis.settings(max_examples=500, database=None, derandomize=True, deadline=None)
    @hypothesis.given(testing.sparse_hit_groups(graded=True, size=(3, 5)))
    def collect(g):
        rows.extend(len(set(row)) == 1 and abs(row[0]) not in (0.0, 1.0) for row in g.rewards.tolist())

    collect()
    assert sum(rows) > len(rows) / 10


@pytest.mark.parametrize(
    "wanted",
    {
        "a hit": lambda s: loops.hit_rewards(*s).any(),
        "no hit": lambda s: s.predictions.numel() and s.targets.numel() and not loops.hit_rewards(*s).any(),
        "every prefix": lambda s: (
            {0.0, 0.01, 0.1, 1.0} <= {round(u, 3) for u in loops.structural_scores(*s).flatten().tolist()}
        ),
        "a duplicate": lambda s: any(len({tuple(p) for p in r}) < len(r) for q in s.predictions.tolist() for r in q),
        "a padded SID": lambda s: s.predictions.shape[3] > 1 and ((s.predictions < 0).sum(-1) == 1).any(),
        "no target": lambda s: (s.targets < 0).any(-1).all(-1).any(),
        "an empty response": lambda s: (s.predictions < 0).any(-1).all(-1).any(),
        "no overlap": lambda s: (
            s.predictions.numel() > 9 and s.targets.numel() and loops.structural_scores(*s).sum() == 0
        ),
        "one level": lambda s: s.predictions.shape[3] == 1,
        "several of each": lambda s: s.predictions.shape[2] == 3 and s.targets.shape[1] == 2,
    }.items(),
    ids=lambda item: item[0],
)
def test_sids_reach(wanted):
    assert reached(testing.sid_groups(), wanted[1])


@pytest.mark.parametrize(
    "wanted",
    {
        "a padded target": lambda a: padding(a).any() and not padding(a).all(),
        "no target": lambda a: padding(a).all() and len(a.targets),
        "padding of the largest value": lambda a: (
            not padding(a).all() and a.values[0].argmax() == 1 and padding(a)[0].tolist() == [False, True]
        ),
        "a tie of values": lambda a: tied(a.values) and not padding(a).any(),
        "a tie of keys": lambda a: tied(a.values) and tied(a.tie_break) and not padding(a).any(),
        "an infinite value": lambda a: a.values.isinf().any(),
    }.items(),
    ids=lambda item: item[0],
)
def test_anchors_reach(wanted):
    assert reached(strategies.anchors(), wanted[1])


def padding(x):
    return (x.targets < 0).any(-1)


@pytest.mark.parametrize(
    "wanted",
    {
        "equal": lambda x: len(x) > 1 and len(set(x.tolist())) == 1,
        "of one size": lambda x: len(x) > 2 and 0 < x.max() - x.min() < 5,
        "far apart": lambda x: len(x) > 1 and x.min() < -1e30 and x.max() > -5,
        "one certain": lambda x: (x == 0).any(),
    }.items(),
    ids=lambda item: item[0],
)
def test_anchor_logps_reach(wanted):
    assert reached(strategies.anchor_logps(), wanted[1])


def gap(x):
    return x.logps - x.old_logps


@pytest.mark.parametrize(
    "wanted",
    {
        "past the upper clip": lambda x: (gap(x).exp() > 1.28).any() and (gap(x) < 2).all(),
        "past the lower clip": lambda x: (gap(x).exp() < 0.8).any() and (gap(x) > -2).all(),
        "inside the clips": lambda x: ((gap(x) != 0) & (gap(x).abs() < 0.2)).any(),
        "past the dual clip": lambda x: ((gap(x).exp() > 3) & x.mask & (gap(x) < 3)).any(),
        "past the clamps": lambda x: (gap(x) > 20).any() and (gap(x) < -20).any(),
        "kl past its clamp": lambda x: ((x.ref_logps - x.logps) > 20).any(),
        "a ragged mask": lambda x: len(set(x.mask.sum(1).tolist())) > 1,
        "a row of nothing": lambda x: (~x.mask).all(1).any() and x.mask.any(),
        "all masked": lambda x: not x.mask.any(),
        "an advantage a row": lambda x: (
            x.advantages.dim() == 1 and (x.advantages < 0).any() and (x.advantages > 0).any()
        ),
        "an advantage a token": lambda x: x.advantages.dim() == 2 and x.advantages.unique().numel() > 2,
        "a vocabulary of one": lambda x: x.logits.shape[2] == 1,
    }.items(),
    ids=lambda item: item[0],
)
def test_losses_reach(wanted):
    assert reached(testing.loss_inputs(), wanted[1])


def test_loss_inputs_are_consistent():
    @hypothesis.given(testing.loss_inputs())
    def logps_are_those_of_the_logits(x):
        torch.testing.assert_close(reference.token_logps(x.logits, x.tokens), x.logps)

    logps_are_those_of_the_logits()


# ---- every law bites


def altered(kind, change, before=None):
    """The reference's function of a kind with its answer changed: ``change(answer, arguments)``."""
    base = standard("reference", kind)

    def variant(**given):
        return change(base(**(before(given) if before else given)), given)

    functools.update_wrapper(variant, base)
    return variant


def advantages(change):
    def apply(answer, given):
        return (
            answer._replace(advantages=change(answer.advantages, given))
            if hasattr(answer, "_replace")
            else change(answer, given)
        )

    return apply


def skipping(answer, given):
    """No pair for anybody."""
    nobody = torch.full_like(answer.positive, -1)
    return answer._replace(positive=nobody, negative=nobody, advantages=torch.zeros_like(answer.advantages))


def other_slot(rewards, scores, repairable=None, tie_break=None):
    return reference.repair(rewards, -scores, repairable, tie_break)


def shift_with_width(answer, given):
    return answer + given["logits"].stride(0) * 1e-3


def index_keyed(answer, given):
    return answer * torch.arange(1.0, answer.shape[1] + 1, dtype=answer.dtype)


def in_place(answer, given):
    given["rewards"].add_(1)
    return answer


def eager_repair(rewards, scores, repairable=None, tie_break=None):
    return reference.repair(torch.where(rewards < 1, 0.0, rewards), scores, repairable, tie_break)


def one_log_sum_exp(logits, tokens):
    """Rounds the log of V away where the logits are large."""
    return logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(dim=-1)


def plain_logps(logits, tokens):
    return (logits.exp() / logits.exp().sum(-1, keepdim=True)).gather(-1, tokens[..., None])[..., 0].log()


def unmasked_loss(logps, old_logps, advantages, mask):
    """No clip, no clamp, and the mask is multiplied on, as many first versions have it."""
    advantages = advantages if advantages.dim() == 2 else advantages[:, None]
    return -((logps - old_logps).exp() * advantages * mask).sum() / mask.sum()


def loss(change):
    return altered("policy_loss", change)


def verl(rewards):
    """As trainers have it: a rounding error in the mean is divided by a deviation of almost nothing."""
    rewards = rewards.detach()
    if rewards.shape[1] == 1:
        return rewards
    return (rewards - rewards.mean(dim=1, keepdim=True)) / (rewards.std(dim=1, keepdim=True) + 1e-6)


def leaking(logps, old_logps, advantages, mask):
    return (logps * advantages.sum()).sum() + old_logps.sum() * 0.5


def meaned(weights):
    """What was cut off is given to the others."""
    return weights / weights.mean()


def raises(rewards, scores):
    raise RuntimeError("boom\nmore")


ADVANTAGES = advantages(lambda a, given: a * 2)
FIRST_ROW = advantages(lambda a, given: a - a[:1].mean())

BROKEN = {  # law -> a variant of some kind that breaks it
    "form": ("recast", altered("recast", advantages(lambda a, given: a[:, None]))),
    "agreement": ("recast", altered("recast", ADVANTAGES)),
    "by_hand": ("structural_scores", altered("structural_scores", lambda u, given: u * 0.999)),
    "pure": ("recast", altered("recast", in_place)),
    "no_gradient": ("group_advantages", lambda rewards: rewards - rewards.mean(dim=1, keepdim=True)),
    "locality": ("group_advantages", lambda rewards: rewards - rewards.mean()),
    "concatenation": ("group_advantages", lambda rewards: rewards - rewards.mean()),
    "permutation": ("group_advantages", altered("group_advantages", index_keyed)),
    "strides": ("token_logps", altered("token_logps", shift_with_width)),
    "empty": ("group_advantages", lambda rewards: rewards - rewards.amax(dim=1, keepdim=True)),
    "empty_batch": ("policy_loss", unmasked_loss),
    "same_gradient": ("policy_loss", loss(lambda x, given: x._replace(loss=x.loss * 2 - x.loss.detach()))),
    "gradient_is_the_difference": ("policy_loss", loss(lambda x, given: x._replace(loss=x.loss * 2 - x.loss.detach()))),
    "gradient_to_the_policy_alone": ("policy_loss", leaking),
    "masked_has_no_influence": ("policy_loss", unmasked_loss),
    "all_masked_is_zero": ("policy_loss", unmasked_loss),
    "row_order": ("policy_loss", loss(lambda x, given: x._replace(loss=x.loss + given["logps"][0].sum()))),
    "mean_of_parts": ("policy_loss", loss(lambda x, given: x._replace(loss=x.loss * len(given["mask"])))),
    "one_advantage_a_row": (
        "policy_loss",
        loss(lambda x, given: x._replace(loss=x.loss * (1 if given["advantages"].dim() == 1 else 2))),
    ),
    "on_policy": ("policy_loss", loss(lambda x, given: x._replace(policy=-x.policy))),
    "clip_stops": ("policy_loss", unmasked_loss),
    "parts": ("policy_loss", loss(lambda x, given: x._replace(loss=x.policy + 0.5 * x.kl))),
    "no_divergence": ("policy_loss", loss(lambda x, given: x._replace(kl=x.kl + 0.1))),
    "unasked_reference": (
        "policy_loss",
        loss(lambda x, given: x._replace(loss=x.policy + given.get("kl_coef", 0) * x.kl)),
    ),
    "widened": ("token_logps", altered("token_logps", lambda x, given: x.to(given["logits"].dtype))),
    "finite_far_away": ("policy_loss", unmasked_loss),
    "sums_to_one": ("token_logps", altered("token_logps", lambda x, given: x * 1.01)),
    "shift_of_logits": ("token_logps", plain_logps),
    "equal_logits": ("token_logps", one_log_sum_exp),
    "impossible_tokens": ("token_logps", altered("token_logps", lambda x, given: x.clamp(min=-100))),
    "in_place_or_not": (
        "logits_loss",
        altered("logits_loss", lambda x, given: x._replace(loss=x.loss * (2 if given.get("inplace_backward") else 1))),
    ),
    "no_repair_with_a_hit": ("repair", eager_repair),
    "repairs_what_it_can": ("repair", lambda rewards, scores, repairable=None: reference.repair(rewards, scores)),
    "lowest_slot": ("repair", other_slot),
    "touches_only_the_slot": ("repair", altered("repair", lambda x, given: x._replace(scores=given["scores"]))),
    "repairs_once": ("repair", altered("repair", lambda x, given: x._replace(rewards=torch.zeros_like(x.rewards)))),
    "sparsity": ("contrast", lambda rewards, scores: reference.group_advantages(rewards)),
    "zero_sum": ("contrast", altered("contrast", advantages(lambda a, given: a.clamp(min=0)))),
    "marks": ("contrast", altered("contrast", lambda x, given: x._replace(negative=x.positive))),
    "strongest_positive": ("contrast", lambda rewards, scores: reference.contrast((rewards > 0).float(), scores)),
    "hardest_negative": ("contrast", lambda rewards, scores: reference.contrast(rewards, -scores)),
    "learnable": ("recast", altered("recast", skipping)),
    "silent": ("contrast", altered("contrast", advantages(lambda a, given: a + (given["rewards"] > 0).to(a.dtype)))),
    "equal_rewards": ("group_advantages", verl),
    "signs": ("contrast", altered("contrast", advantages(lambda a, given: -a))),
    "monotone": ("group_advantages", altered("group_advantages", lambda a, given: -a)),
    "offset_invariance": ("group_advantages", lambda rewards: rewards.detach() / (1 + rewards.sum(1, keepdim=True))),
    "spread_is_one": ("group_advantages", lambda rewards: reference.group_advantages(rewards, eps=1e-4)),
    "size_of_rewards": ("group_regimes", lambda rewards: rewards.sum(dim=1).long().clamp(max=2)),
    "only_the_order_of_scores": ("repair", lambda rewards, scores: reference.repair(rewards, scores.abs())),
    "ties": ("contrast", lambda rewards, scores, tie_break=None: reference.contrast(rewards, scores)),
    "dtype": ("contrast", altered("contrast", advantages(lambda a, given: a.float()))),
    "finite": ("group_advantages", lambda rewards: rewards.detach() * 1e25),
    "prefix": ("branch_mask", lambda positive_tokens, negative_tokens: positive_tokens != negative_tokens),
    "symmetry": ("branch_mask", lambda positive_tokens, negative_tokens: positive_tokens > negative_tokens),
    "renaming_tokens": ("branch_mask", lambda positive_tokens, negative_tokens: positive_tokens > 1),
    "sets": (
        "structural_scores",
        altered("structural_scores", lambda u, given: u * (1 + 1e-6 * given["predictions"].shape[2])),  # a few bits
    ),
    "between_0_and_1": ("structural_scores", altered("structural_scores", lambda u, given: u * 100)),
    "exact_match_is_best": ("hit_rewards", altered("structural_scores", lambda u, given: u * 10)),
    "renaming": (
        "hit_rewards",
        altered("hit_rewards", lambda r, given: r * (given["predictions"] != 0).all(-1).any(-1)),
    ),
    "ten_times_a_code": ("structural_scores", altered("structural_scores", lambda u, given: u.sqrt())),
    "whole_group_with_a_hit": ("hybrid", lambda rewards, scores: reference.Hybrid(*reference.recast(rewards, scores))),
    "anchor_against_one": ("hybrid", lambda rewards, scores: reference.hybrid(rewards, scores, negative_weight=1.0)),
    "skipped": ("hybrid", lambda rewards, scores, repairable=None: reference.hybrid(rewards, scores)),
    "largest_value": ("choose_anchor", lambda targets, values: reference.choose_anchor(targets.clamp(min=0), values)),
    "padding_has_no_influence": ("choose_anchor", lambda targets, values: values.argmax(dim=1)),
    "targets_apart": ("nearness", altered("nearness", lambda n, given: n - n.mean(dim=1, keepdim=True))),
    "whoever_names_it": (
        "nearness",
        lambda predictions, targets: reference.nearness(predictions[:, :1], targets),
    ),
    "named_is_nearest": (
        "nearness",
        lambda predictions, targets: reference.nearness(predictions, targets.clamp(min=0)),
    ),
    "bounded": ("anchor_weights", altered("anchor_weights", lambda w, given: w * 2)),
    "mean_is_one": ("anchor_weights", lambda logps: (logps.detach() / 2).softmax(dim=0)),
    "likelier_weighs_more": ("anchor_weights", lambda logps: reference.anchor_weights(-logps)),
    "power_of_p": ("anchor_weights", lambda logps: reference.anchor_weights(logps, alpha=1.0)),
    "nothing_at_alpha_0": (
        "anchor_weights",
        lambda logps, alpha=0.5: reference.anchor_weights(logps, max(alpha, 0.1)),
    ),
    "shift_of_logps": ("anchor_weights", lambda logps: (logps.detach() / 2).exp()),
    "cut_alone": (
        "anchor_weights",
        lambda logps, largest=4.0: meaned(reference.anchor_weights(logps, largest=largest)),
    ),
    "batch_order": ("anchor_weights", altered("anchor_weights", lambda w, given: w / torch.arange(1.0, len(w) + 1))),
    "none_or_one": ("anchor_weights", lambda logps: (logps.detach() / 2).exp()),
}


def test_every_law_is_in_the_table():
    assert list(BROKEN) == list(testing.LAWS) or set(BROKEN) == set(testing.LAWS)


def grpo_in_float32(rewards, normalize=True, eps=1e-6):
    """As trainers have it: not wrong, only rounded more than the reference."""
    r = rewards.detach()
    r = r.float() if r.dtype in (torch.float16, torch.bfloat16) else r
    if r.shape[1] <= 1 or not len(r):
        advantages = r / (1 + eps) if normalize else r
    else:
        gap = r - r.mean(dim=1, keepdim=True)
        gap = torch.where((r == r[:, :1]).all(dim=1, keepdim=True), 0.0, gap)
        advantages = gap / (r.std(dim=1, keepdim=True) + eps) if normalize else gap
    return advantages.to(rewards.dtype)


def test_what_is_only_rounded_more_breaks_no_law_about_it():
    """But for rewards whose sum or squares float32 cannot hold, which the laws on agreement, and on finite answers, draw too."""
    laws = "form by_hand pure locality concatenation permutation strides equal_rewards learnable dtype".split()
    report = testing.check(grpo_in_float32, kind="group_advantages", laws=laws, examples=300)
    broken = {outcome.law: outcome.message for outcome in report.outcomes if outcome.status == "BROKEN"}
    assert not broken, report


@pytest.mark.parametrize("law", BROKEN)
def test_a_law_bites(law):
    kind, variant = BROKEN[law]
    outcome = testing.check(variant, laws=[law], kind=kind, examples=2000)[law]
    assert outcome.status == "BROKEN" and outcome.message, outcome
    # The line under it reproduces it.
    assert "replay(" in outcome.line
    names = {"variant": variant}
    if "test_testing" in outcome.line or ", recast_ref" in outcome.line:  # named after what it wraps
        outcome.line = re.sub(r"replay\('(\w+)', [\w.]+,", r"replay('\1', variant,", outcome.line).replace(
            ", test_testing;", ";"
        )
    if "kind=" not in outcome.line:
        outcome.line = outcome.line.replace("variant,", f"variant, kind={kind!r},", 1)
    with pytest.raises(AssertionError) as caught:
        exec(outcome.line, names)
    assert str(caught.value) == outcome.message
    assert all(len(row) <= 100 for row in outcome.table.splitlines())


# ---- both paths keep them


@pytest.mark.parametrize("kind", [kind for kind in testing.KINDS if kind != "token_advantages"])
@pytest.mark.parametrize("path, against", [("reference", "loops"), ("fast", "reference")])
def test_both_paths_keep_the_laws(path, against, kind):
    report = testing.check(standard(path, kind), against=against, examples=15)
    assert [outcome.law for outcome in report.outcomes if outcome.status != "holds"] == [], str(report)


def test_against_itself_there_is_nothing_to_agree_with():
    outcome = testing.check(reference.recast, laws=["agreement"], examples=5)["agreement"]
    assert str(outcome) == "agreement                    not applicable: it would be compared with itself"


test_as_pytest_sees_it = testing.suite(examples.recast_by_sorting, examples=10, against="fast")
test_the_published_losses = testing.suite(fast.policy_loss, laws=["agreement", "same_gradient"], examples=30)


# ---- what a report says


@testing.breaks("signs", because="on purpose")
def declared(rewards, scores):
    return reference.recast(rewards, scores)


def test_declared_broken_and_it_holds():
    report = testing.check(declared, laws=["signs", "ties"], examples=7)
    assert report.ok
    assert "declared broken, but no counterexample in 7 examples" in str(report["signs"])
    with pytest.warns(UserWarning, match="declared broken"):
        testing.suite(declared, laws=["signs"], examples=7)("signs")


def test_suite_fails_skips_and_expects_to_fail():
    with pytest.raises(AssertionError, match="replay"):
        testing.suite(examples.recast_with_a_bug)("no_repair_with_a_hit")
    with pytest.raises(pytest.skip.Exception, match="answers no slot"):
        testing.suite(lambda rewards, scores: torch.zeros_like(rewards))("no_repair_with_a_hit")
    with pytest.raises(pytest.xfail.Exception, match="stands alone"):
        testing.suite(examples.branch_point)("zero_sum")


def test_an_exception_is_a_counterexample():
    report = testing.check(raises, laws=["form", "zero_sum"], examples=5)
    assert report["form"].message == "raised RuntimeError: boom"
    assert str(report["zero_sum"]).endswith("not applicable: its answers have not the right form")
    with pytest.raises(AssertionError, match="boom"):
        report.assert_holds()


@pytest.mark.parametrize(
    "answer, words",
    [
        (lambda r: r[:, None], r"advantages: answered shape \(1, 1, 1\), expected \(Q, G\) = \(1, 1\)"),
        (lambda r: None, "answered a NoneType, expected a tensor"),
        (lambda r: (r, r), r"answered a tuple of 2, expected a tensor \(advantages\) or the fields slot, positive"),
        (lambda r: r.long(), "advantages: answered torch.int64, expected float"),
        (lambda r: {"slot": torch.zeros(len(r)).long()}, "answered no advantages"),
        (lambda r: {"slot": torch.full((len(r),), 9), "advantages": r}, "expected -1 or a response, 0 to 0"),
    ],
)
def test_wrong_answers_in_words(answer, words):
    assert re.search(words, testing.check(lambda rewards, scores: answer(rewards), laws=["form"])["form"].message)


def test_a_variant_that_does_not_repeat_itself():
    answers = iter(range(10**6))
    report = testing.check(lambda rewards: rewards * 0 + next(answers), laws=["agreement", "pure"], examples=20)
    assert report["pure"].message != "" and not report.ok


def test_kinds_by_signature():
    def kind(variant):
        return testing.check(variant, laws=["form"], against=None, examples=1).kind

    assert kind(lambda rewards, scores, logps: rewards.detach()) == "recast"
    assert kind(lambda rewards: rewards) == "group_advantages"
    assert kind(lambda responses, targets: responses.float()) == "token_advantages"
    assert kind(lambda predictions, targets: predictions.float().sum((2, 3))) == "structural_scores"
    assert kind(lambda predictions, targets, tie_break: tie_break) == "recast_from_sids"
    assert kind(lambda logits, tokens: logits.sum(-1)) == "token_logps"
    assert kind(lambda logits, tokens, old_logps: logits.sum()) == "logits_loss"
    assert kind(lambda logps, old_logps, advantages, mask: logps.sum()) == "policy_loss"
    assert kind(fast.repair) == "repair"
    assert kind(fast.hybrid) == "hybrid" and kind(fast.nearness) == "nearness"
    assert kind(lambda targets, values: values.argmax(dim=1)) == "choose_anchor"
    assert kind(lambda logps, alpha: logps) == "anchor_weights"


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: testing.check(lambda a: a), "are those of no kind; give one: structural_scores"),
        (
            lambda: testing.check(lambda rewards, scores, colour: 0),
            "nothing is known to give for its argument 'colour'",
        ),
        (
            lambda: testing.check(declared, laws=["zero"]),
            "there is no law 'zero' about recast; there are form, agreement",
        ),
        (lambda: testing.check(declared, laws=["sets"]), "there is no law 'sets' about recast"),
        (lambda: testing.check(declared, kind="rule"), "kind: expected one of structural_scores"),
        (
            lambda: testing.check(declared, against="slow"),
            "against: expected reference, fast, loops, a function or None",
        ),
        (lambda: testing.breaks("zero"), "there is no law 'zero'"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


def test_the_same_seed_finds_the_same():
    first, again = (str(testing.check(examples.recast_with_a_bug, laws=["signs"], seed=3)) for _ in range(2))
    assert first == again


# ---- the command line

RUN = [sys.executable, "-m", "recast_ref", "check"]


def run(*arguments, cwd=None):
    return subprocess.run([*RUN, *arguments], capture_output=True, text=True, cwd=cwd, timeout=1800, check=False)


@pytest.mark.parametrize(
    "name, code, words",
    [
        ("recast_by_sorting", 0, "as recast, against reference: 26 holds"),
        ("branch_point", 0, "14 holds, 3 broken on purpose"),
        ("recast_by_logp", 0, "23 holds, 2 broken on purpose, 1 not applicable"),
        ("recast_with_a_bug", 1, "no_repair_with_a_hit         BROKEN: repaired although it has a hit"),
    ],
)
def test_the_examples(name, code, words):
    laws = ["--laws", "form", "no_repair_with_a_hit", "ties"] if code else []
    result = run(f"recast_ref.testing.examples:{name}", "--examples", "50" if code else "20", *laws)
    assert result.returncode == code, result.stdout + result.stderr
    assert words in result.stdout and not result.stderr


MINE = """
import torch

def spread(rewards, scores):
    hit = (rewards > 0).float()
    return hit / hit.sum(1, keepdim=True).clamp(min=1) - (1 - hit) / (1 - hit).sum(1, keepdim=True).clamp(min=1)

number = 3
"""


def test_check_a_file_here(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    result = run("mine:spread", "--laws", "sparsity", "signs", "--seed", "1", "--against", "none", cwd=tmp_path)
    assert result.returncode == 1 and "mine.spread as recast, against nothing: 1 BROKEN, 1 holds" in result.stdout
    line = next(line for line in result.stdout.splitlines() if "replay(" in line).strip()
    again = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert again.returncode == 1 and "more than one response above 0, or below" in again.stderr


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "check needs a function: package.module:function (or --list)"),
        (["mine"], "expected package.module:function, got 'mine'"),
        (["mistaken:spread", "--against", "other:"], "expected package.module:function, got 'other:'"),
        (["nowhere:f"], "nowhere:f: No module named 'nowhere'"),
        (["mistaken:spread", "--laws", "zero"], "there is no law 'zero' about recast"),
        (["mistaken:spread", "--examples", "0"], "--examples: expected a whole number from 1 to 1,000,000, got '0'"),
        (["mistaken:spread", "--timeout", "0"], "--timeout: expected a whole number from 1 to 1,000,000, got '0'"),
        (["mistaken:spread", "--against", "slow"], "against: expected reference, fast, loops"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(arguments, words, tmp_path, monkeypatch, capsys):
    (tmp_path / "mistaken.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["check", *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and words in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "spec, words",
    [
        ("mistaken:f", "mistaken:f: module 'mistaken' has no attribute 'f'"),
        ("mistaken:number", "mistaken:number: expected a function, got int"),
        ("bad:f", "bad:f: "),
    ],
)
def test_what_is_not_found(spec, words, tmp_path, monkeypatch):
    (tmp_path / "mistaken.py").write_text(MINE)
    (tmp_path / "bad.py").write_text("def f(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mistaken", raising=False)
    with pytest.raises(_apart.Refused) as refused:
        _apart.find(spec)
    assert words in str(refused.value) and "\n" not in str(refused.value)


# ---- variants that misbehave: nothing but laws that hold is exit code 0


def misbehaved(folder, text, *arguments, hangs=False):
    """``recast-ref check`` of the text of a module, to a terminal that shows ASCII only."""
    (folder / "bad.py").write_text(text)
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    seconds = "30" if hangs else "900"  # what does not hang may be slow, on a busy machine
    command = [*RUN, "bad:f", "--examples", "3", "--timeout", seconds, *arguments]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=folder, env=environment, timeout=1800
    )


@pytest.mark.parametrize("name", misbehaving.CALLS)
def test_a_variant_that_misbehaves_is_broken(name, tmp_path):
    body, words = misbehaving.CALLS[name]
    result = misbehaved(tmp_path, misbehaving.variant(body), "--laws", "form", "signs", hangs="30 s" in words)
    lines = result.stdout.splitlines()
    assert result.returncode == 1, result.stdout + result.stderr
    assert lines[0].startswith("form                         BROKEN: ") and words in lines[0]
    assert lines[-1] == "bad.f as recast, against reference: 1 BROKEN, 1 not applicable"
    assert "testing.replay('form', bad.f, rewards=torch.tensor([[" in lines[-3], result.stdout


@pytest.mark.parametrize("name", misbehaving.MODULES)
def test_a_module_that_misbehaves_is_refused(name, tmp_path):
    body, words = misbehaving.MODULES[name]
    result = misbehaved(tmp_path, misbehaving.module(body), "--laws", "form", hangs="30 s" in words)
    assert result.returncode == 2 and not result.stdout
    assert words in result.stderr.splitlines()[-1]


def test_what_a_variant_is_compared_with_may_misbehave_too(tmp_path):
    (tmp_path / "good.py").write_text(misbehaving.variant("pass"))
    for text, code, words in (
        (misbehaving.variant("sys.exit(0)"), 1, "BROKEN: bad.f raised SystemExit: 0"),
        (misbehaving.variant("os._exit(0)"), 1, "BROKEN: ended the process, with exit code 0"),
        (misbehaving.module("os._exit(0)"), 2, "bad:f: its import ended the process, with exit code 0"),
    ):
        (tmp_path / "bad.py").write_text(text)
        result = run("good:f", "--against", "bad:f", "--laws", "agreement", "--examples", "3", cwd=tmp_path)
        assert result.returncode == code and words in result.stdout + result.stderr


NOISY = """
print("bad.f as recast, against reference: 2 holds")
import atexit, os, sys, threading, time
from recast_ref import reference
atexit.register(print, "at last")
threading.Thread(target=time.sleep, args=(10**6,)).start()
sys.stdout.close()
sys.stdout = None

def f(rewards, scores):
    os.write(1, b"hello\\n")
    if not os.fork():
        sys.exit(0)
    return reference.recast(rewards, scores)
"""


def test_noise_is_no_part_of_the_report(tmp_path):
    result = misbehaved(tmp_path, NOISY, "--laws", "form", "signs")
    assert result.returncode == 0
    assert re.fullmatch(
        r"form +holds, \d examples\nsigns +holds, \d examples\nbad.f as recast, against reference: 2 holds\n",
        result.stdout,
    )
    assert "hello" in result.stderr and "at last" not in result.stderr


HANGS = """
import os, pathlib, time
from recast_ref import reference

def f(rewards, scores):
    pathlib.Path("pid").write_text(str(os.getpid()))
    while not rewards.numel():
        time.sleep(1)
    return reference.recast(rewards, scores)
"""


def test_after_a_law_that_hangs_the_next_is_held(tmp_path):
    result = misbehaved(tmp_path, HANGS, "--laws", "empty", "form", hangs=True)
    lines = result.stdout.splitlines()
    assert result.returncode == 1
    assert lines[0] == "empty                        BROKEN: did not end within 30 s (--timeout)"
    assert "testing.replay('empty', bad.f, rewards=torch.zeros((" in lines[1]
    assert re.fullmatch(r"form +holds, \d examples", lines[2])
    assert lines[3] == "bad.f as recast, against reference: 1 BROKEN, 1 holds"


STOPS_WHILE_IT_IS_MADE_SMALLER = """
import time

wrong = 0

def f(rewards, scores):
    global wrong
    wrong += 1
    while wrong > 1:
        time.sleep(1)
"""


def test_a_counterexample_that_was_found_in_time_is_told(tmp_path):
    result = misbehaved(tmp_path, STOPS_WHILE_IT_IS_MADE_SMALLER, "--laws", "form", hangs=True)
    lines = result.stdout.splitlines()
    assert result.returncode == 1
    assert lines[0].startswith("form                         BROKEN: answered a NoneType, expected a tensor")
    assert "testing.replay('form', bad.f, rewards=torch.tensor([[" in lines[1]
    assert lines[2] == "bad.f as recast, against reference: 1 BROKEN"


@pytest.mark.parametrize("stop, code, timeout", [(signal.SIGINT, 130, "3600"), (signal.SIGKILL, -9, "30")])
def test_the_law_is_named_before_it_is_held_and_nothing_is_left_behind(stop, code, timeout, tmp_path):
    (tmp_path / "bad.py").write_text(HANGS)
    command = [*RUN, "bad:f", "--laws", "empty", "--timeout", timeout]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        said = b""
        while b"empty" not in said:
            said += os.read(process.stdout.fileno(), 100) or pytest.fail(process.stderr.read())
        assert said == b"empty                        "
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(stop)
        assert process.wait() == code
        assert code < 0 or process.stderr.read() == b"Interrupted.\n"
    child = int((tmp_path / "pid").read_text())
    while code < 0 and alive(child):  # whom we killed can kill nobody: the child ends itself, when its time is over
        time.sleep(0.1)
    assert not alive(child)


def test_an_import_that_hangs_does_not_outlive_who_asked(tmp_path):
    (tmp_path / "bad.py").write_text(
        "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(10**6)"
    )
    with subprocess.Popen([*RUN, "bad:f", "--timeout", "30"], cwd=tmp_path) as process:
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    child = int((tmp_path / "pid").read_text())
    while alive(child):
        time.sleep(0.1)


DEAF = """
import fcntl, os, stat
from recast_ref import reference

def f(rewards, scores):
    for file in range(3, 20):
        try:
            if stat.S_ISFIFO(os.fstat(file).st_mode) and fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                os.close(file)
        except OSError:
            pass
    return reference.recast(rewards, scores)
"""


def test_who_hears_nothing_any_more_is_replaced(tmp_path):
    result = misbehaved(tmp_path, DEAF, "--laws", "form", "signs", "form")
    lines = result.stdout.splitlines()
    assert result.returncode == 1
    assert re.fullmatch(r"form +holds, \d examples", lines[0]) and re.fullmatch(r"form +holds, \d examples", lines[-2])
    assert lines[1] == "signs                        BROKEN: ended the process, with exit code 1"
    assert lines[-1] == "bad.f as recast, against reference: 2 holds, 1 BROKEN"


def test_parts_that_come_and_go_pass_over_no_law():
    def moody(rewards, scores):
        answer = reference.recast(rewards, scores)
        wrong = answer._replace(negative=answer.slot)
        return wrong._asdict() if (rewards > 0).any() else answer.advantages

    form = testing.check(moody, kind="recast", laws=["form"])["form"]
    assert form.status == "BROKEN"
    assert form.message == "answered slot, positive, negative, advantages here, and advantages in the call before"


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    "error",
    [SystemExit(0), pytest.skip.Exception("x"), pytest.exit.Exception("x"), unittest.SkipTest("x"), GeneratorExit()],
    ids=lambda error: type(error).__name__,
)
def test_no_way_out_is_a_pass_or_a_skip(error):
    def in_a_call(rewards, scores):
        raise error

    def in_a_backward(logps, old_logps, advantages, mask):
        logps = logps.clone()
        if logps.requires_grad:
            logps.register_hook(lambda gradient: in_a_call(0, 0))
        return (logps * advantages.view(len(advantages), -1)).sum()

    words = f"raised {type(error).__name__}"
    for variant, law in ((in_a_call, "form"), (in_a_backward, "all_masked_is_zero")):
        with pytest.raises(AssertionError, match=words):
            testing.suite(variant, laws=[law])(law)


def test_an_interrupt_is_passed_on():
    def interrupted(rewards, scores):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        testing.check(interrupted, laws=["form"])


def draw_numpy():
    np.random.rand()


CHANGES = {
    "torch's default dtype from torch.float32 to torch.float64": lambda: torch.set_default_dtype(torch.float64),
    "torch's default device from cpu to meta": lambda: torch.set_default_device("meta"),
    "torch's grad mode from True to False": lambda: torch.set_grad_enabled(False),
    "torch's number of threads from 1 to 2": lambda: torch.set_num_threads(2),
    "torch's deterministic algorithms from off to warn only": lambda: torch.use_deterministic_algorithms(
        True, warn_only=True
    ),
    "torch's random state": lambda: torch.manual_seed(1),
    "numpy's random state": draw_numpy,
    "Python's random state": random.random,
}


@pytest.mark.parametrize("words", CHANGES)
@pytest.mark.parametrize("raises", [False, True])
def test_a_change_of_global_state_is_told_and_undone(words, raises):
    def changes(rewards, scores):
        answer = reference.recast(rewards, scores)
        CHANGES[words]()
        if raises:
            raise RuntimeError("after the change")
        return answer

    before = {name: read() for name, (read, _) in state.ALL.items()}
    report = testing.check(changes, laws=["form", "pure", "signs"], examples=5)
    assert {name: read() for name, (read, _) in state.ALL.items()} == before
    if raises:
        assert report["form"].message == "raised RuntimeError: after the change"
        return
    assert [outcome.status for outcome in report.outcomes] == ["holds", "BROKEN", "holds"], report
    assert report["pure"].message == f"changed {words}"
    with pytest.raises(AssertionError, match=words):
        exec(report["pure"].line, {"variant": changes})
    # Where `pure` is not asked for, any law tells it; where it is declared, none does.
    (alone,) = testing.check(changes, laws=["signs"], examples=5).outcomes
    assert alone.message == f"changed {words}"
    assert testing.check(changes, laws=["signs"], examples=5, breaks=["pure"]).ok


def test_a_report_in_which_no_law_speaks_is_not_ok():
    report = testing.check(reference.recast, laws=["agreement"], against=None, examples=5)
    assert not report.ok and report.summary().endswith("against nothing: 1 not applicable: nothing was checked")


# ---- callables of every sort


def places(rewards, scores, repairable=None, /, tie_break=None):
    return reference.recast(rewards, scores, repairable, tie_break=tie_break)


class Rule(torch.nn.Module):
    def forward(self, rewards, scores, *more, **options):
        assert not more and not options
        return reference.recast(rewards, scores)


class Called:
    def __call__(self, rewards, scores):
        return reference.recast(rewards, scores).advantages + 1


rule, called = Rule(), Called()


def test_callables_that_are_no_plain_functions():
    for variant in (places, rule, functools.partial(reference.recast, weight=2.0), Rule().forward):
        report = testing.check(variant, kind="recast", laws=["form", "permutation", "zero_sum"], examples=20)
        assert report.ok and len(report.outcomes) == 3, report
    outcome = testing.check(called, laws=["zero_sum"])["zero_sum"]
    assert f"import torch, {__name__};" in outcome.line and f"replay('zero_sum', {__name__}.called, " in outcome.line
    with pytest.raises(ValueError, match="names no arguments; it is given what it names"):
        testing.check(lambda *everything: everything[0], kind="recast")


def test_the_list_of_laws():
    result = run("--list")
    assert result.returncode == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(testing.LAWS)


def test_without_hypothesis():
    code = "import sys; sys.modules['hypothesis'] = None\nimport recast_ref.testing"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: recast_ref.testing needs hypothesis: pip install recast-ref[test]" in result.stderr
