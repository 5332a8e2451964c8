"""The study: its worlds and answers, what each arm follows, how outcomes become intervals, tuning, a kill and a report."""

import csv
import io
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recast_ref import cli, reference
from recast_ref.lab import arms as lab
from recast_ref.lab import checkpoints, locks, regimes
from recast_ref.lab.experiment import ExperimentError
from recast_ref.lab.reading import DataError
from recast_ref.lab.semantic_ids import Trie
from recast_ref.lab.study import (
    answers,
    arms,
    bases,
    bootstrap,
    cells,
    figures,
    findings,
    matching,
    outcomes,
    report,
    running,
    table,
    training,
    worlds,
)
from recast_ref.lab.study.arms import ARMS, Batch, roll_out, surrogate

USERS = 400
SCALE = cells.Scale(
    seeds=3,
    tuning_seeds=2,
    rates=(3e-4, 1e-3),
    more_rates=(),
    prompts=128,
    users=USERS,
    converged=20,
    valid=20,
    test=30,
)


@pytest.fixture(scope="module")
def world():
    return worlds.make("sparse", USERS)


def policy_of(world, seed=0, sharper=20):
    policy = world.answers.policy(world.trie, worlds.HISTORY, 64, seed)
    with torch.no_grad():
        policy.heads.mul_(sharper)  # an untrained policy is close to uniform: make it choose
    return policy


# ---- worlds


NAMES = ["sparse", "dense", "wrong-30", "next-4", "judge", "thought", "sets-2", "cold", "value", "other-1"]


@pytest.mark.parametrize("name", NAMES)
def test_a_world_is_the_same_each_time_and_its_answers_can_be_said(name):
    made, again = worlds.make(name, USERS), worlds.make.__wrapped__(name, USERS)
    policy = policy_of(made)
    for part in ("base", "rl", "valid", "test"):
        one, other = getattr(made, part), getattr(again, part)
        assert len(one) > 0
        assert torch.equal(one.history, other.history) and torch.equal(one.shown, other.shown)
        assert torch.equal(one.wanted, other.wanted)
        named = made.answers.of_targets(one.shown[:4], torch.Generator().manual_seed(0))
        assert policy.logps(one.history[:4], named).isfinite().all()
        assert (outcomes.rewards(made, one[:4], named) > 0).any(dim=1).all() or name in ("wrong-30", "judge")
    assert made.test.segments["item popularity"].shape == (len(made.test),)


def test_wrong_labels_are_in_what_the_arms_are_shown_and_nowhere_else(world):
    wrong = worlds.make("wrong-30", 4000)
    clean = worlds.make("sparse", 4000)
    for part in ("base", "valid", "test"):
        assert torch.equal(getattr(wrong, part).shown, getattr(clean, part).shown)
    for part in ("base", "rl", "valid", "test"):
        assert torch.equal(getattr(wrong, part).wanted, getattr(clean, part).wanted)
    changed = (wrong.rl.shown != clean.rl.shown).any(dim=-1)[:, 0]
    assert 0.25 < changed.float().mean() < 0.35
    assert len(torch.unique(wrong.rl.shown[changed], dim=0)) <= worlds.BANNERS
    assert worlds.base_world("wrong-30") == "sparse" and worlds.base_world("a/b+wrong-10") == "a/b"


def test_a_cold_world_hides_the_new_items_from_the_base():
    cold = worlds.make("cold", 2000)
    new = torch.from_numpy(cold.test.segments["new"] > 0)
    hidden = {tuple(sid) for sid in cold.test.wanted[new][:, 0].tolist()}
    seen = {tuple(sid) for sid in cold.base.shown[:, 0].tolist()} | {
        tuple(s) for s in cold.base.history.flatten(0, 1).tolist()
    }
    assert 0.05 < new.float().mean() < 0.3 and not hidden & seen


def test_a_judge_pays_for_more_than_the_log_shows():
    judge = worlds.make("judge", USERS)
    assert judge.rl.wanted.shape[1] == worlds.LIKED and judge.rl.shown.shape[1] == 1
    for row in judge.rl.wanted[:20].tolist():
        assert len({tuple(sid) for sid in row}) == worlds.LIKED


def interactions(path, seed=0):
    """A file of real interactions, made up; returns its path."""
    rng = np.random.default_rng(seed)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    lines += [f"u{u}\ti{i}\t{t}" for u in range(80) for t, i in enumerate(rng.integers(120, size=8))]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_real_interactions_with_wrong_labels(tmp_path):
    path = interactions(tmp_path / "toy.inter")
    clean, wrong = worlds.make(str(path)), worlds.make(f"{path}+wrong-50")
    assert torch.equal(clean.rl.wanted, wrong.rl.wanted) and torch.equal(clean.test.shown, wrong.test.shown)
    assert 0.3 < (clean.rl.shown != wrong.rl.shown).any(dim=-1).float().mean() < 0.7
    assert set(clean.test.segments) == {"user activity", "item popularity", "category size", "new"}
    with pytest.raises(ValueError, match="only \\+wrong-NN and \\+cold are known"):
        worlds.make(f"{path}+value")
    cold = worlds.make(f"{path}+cold")
    assert len(cold.base) < len(clean.base) and torch.equal(cold.rl.history, clean.rl.history)
    hidden = {tuple(sid) for sid in cold.test.wanted[torch.from_numpy(cold.test.segments["new"] > 0)][:, 0].tolist()}
    assert hidden and not hidden & {tuple(sid) for sid in cold.base.history.flatten(0, 1).tolist()}


@pytest.mark.parametrize("name", ["sparce", "next-5", "wrong"])
def test_no_such_world(name):
    with pytest.raises(ValueError, match=f"no world '{name}'"):
        worlds.make(name, USERS)


# ---- answers


TINY = Trie(np.array([[0, 0], [0, 1], [1, 0], [2, 2]]))
PROMPT = torch.tensor([[[0, 1], [2, 2]], [[-1, -1], [1, 0]]])


@pytest.fixture(scope="module")
def sets():
    policy = answers.Answers(named=3).policy(TINY, 2, 16, 0)
    with torch.no_grad():
        policy.heads.mul_(20)
    return policy


def test_a_set_never_names_an_sid_twice_and_its_answers_sum_to_one(sets):
    every = [list(itertools.chain(*order)) for order in itertools.permutations(TINY.sids.tolist(), 3)]
    responses = torch.tensor(every).expand(2, -1, -1)
    logps = sets.logps(PROMPT, responses)
    torch.testing.assert_close(logps.sum(dim=-1).exp().sum(dim=1), torch.ones(2))
    drawn = sets.sample(PROMPT, 200, torch.Generator().manual_seed(0))
    assert {tuple(r) for r in drawn.flatten(0, 1).tolist()} <= set(map(tuple, every))
    best = responses[0][logps[:, :, 0].argmax(dim=1), :1]  # the greedy answer begins with the likeliest first code
    assert torch.equal(sets.sample(PROMPT, 1)[:, 0, :1], best)
    repeated = torch.tensor([[[0, 0, 1, 0, 0, 0]]]).expand(2, -1, -1)
    assert sets.logps(PROMPT, repeated).sum(dim=-1).isneginf().all()


def test_samples_of_sets_follow_the_policy(sets):
    drawn = sets.sample(PROMPT[:1].expand(200, -1, -1), 50, torch.Generator().manual_seed(0)).flatten(0, 1)
    every = torch.tensor([list(itertools.chain(*order)) for order in itertools.permutations(TINY.sids.tolist(), 3)])
    share = (drawn[:, None] == every).all(dim=-1).float().mean(dim=0)
    expected = sets.logps(PROMPT[:1], every[None]).sum(dim=-1).exp()[0]
    assert (share - expected).abs().max() < 5 * (0.25 / 10_000) ** 0.5


def test_targets_of_a_set_differ():
    targets = torch.tensor([[[0, 0], [0, 0], [1, 0], [2, 2]]])
    for seed in range(20):
        named = answers.Answers(named=3).of_targets(targets, torch.Generator().manual_seed(seed))
        assert named.shape == (1, 1, 6) and len({tuple(s) for s in named.view(3, 2).tolist()}) == 3


def test_a_thought_hangs_the_catalogue_under_each_of_its_values():
    format = answers.Answers(thoughts=3)
    policy = format.policy(TINY, 2, 16, 0)
    history = format.prompts(PROMPT)
    assert history.tolist() == [[[0, 0, 1], [0, 2, 2]], [[-1, -1, -1], [0, 1, 0]]]
    every = torch.tensor([[t, *sid] for t in range(3) for sid in TINY.sids.tolist()])
    assert len(policy.trie) == 12
    total = policy.logps(history, every.expand(2, -1, -1)).sum(dim=-1).exp().sum(dim=1)
    torch.testing.assert_close(total, torch.ones(2))
    assert torch.equal(format.sids(every[None])[0, :, 0], every[:, 1:])
    assert format.of_targets(PROMPT[:1], None, torch.tensor([2])).tolist() == [[[2, 0, 1], [2, 2, 2]]]


# ---- outcomes


@given(st.lists(st.integers(0, 15), min_size=1, max_size=4, unique=True))
def test_a_ranking_without_shared_sids_is_the_textbook(places):
    """``places``: where each target stands among 16; beyond that are four that are not found."""
    found = torch.zeros(1, 16, len(places) + 1, dtype=torch.bool)
    for k, place in enumerate(places):
        found[0, place, k] = True
    wanted = torch.cat([torch.arange(len(places) + 1)[:, None] * torch.ones(1, 2, dtype=torch.int64)])[None]
    prompts = SimpleNamespace(wanted=wanted, worth=None)
    got = outcomes.ranking(found, torch.ones(1, 16, dtype=torch.int64), prompts)
    ideal = sum(1 / math.log2(i + 2) for i in range(len(places) + 1))
    assert got["pass@1"].item() == (0 in places)
    assert got["recall@10"].item() == pytest.approx(sum(p < 10 for p in places) / (len(places) + 1))
    assert got["ndcg@10"].item() == pytest.approx(sum(1 / math.log2(p + 2) for p in places if p < 10) / ideal)


def test_outcomes_by_brute_force(world):
    policy, prompts = policy_of(world), world.test[:5]
    got = outcomes.outcomes(policy, world, prompts)
    every = policy.logps(prompts.history, world.trie.sids.expand(5, -1, -1)).sum(dim=-1)
    right = (world.trie.sids == prompts.wanted).all(dim=-1)
    torch.testing.assert_close(got["sampled_p@1"], every.exp()[right].float())
    torch.testing.assert_close(got["pass@1"], (every.argmax(dim=1) == right.long().argmax(dim=1)).float())


def test_the_popular_row_names_the_most_popular_item_to_all(world):
    got = outcomes.popular(world, world.test)
    first = world.trie.sids[world.popularity.argmax()]
    assert got["pass@1"].mean().item() == pytest.approx(
        (world.test.wanted[:, 0] == first).all(dim=-1).float().mean().item()
    )
    assert (got["recall@10"] >= got["pass@1"]).all() and (got["ndcg@10"] <= got["recall@10"]).all()


def test_a_hit_is_worth_what_its_item_is_worth():
    value = worlds.make("value", USERS)
    named = value.answers.of_targets(value.test.shown[:8], None)
    torch.testing.assert_close(outcomes.rewards(value, value.test[:8], named), value.test.worth[:8])
    assert len(value.test.worth.unique()) > 8


# ---- what the arms follow


def batch_of(world, size=64, group_size=8, anchor="likeliest"):
    policy = policy_of(world)
    for parameter in policy.parameters():
        parameter.grad = None
    batch = Batch(world, policy, world.rl[:size], torch.Generator().manual_seed(0), anchor)
    return roll_out(batch, group_size)


def gradient(policy, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()))])


@pytest.mark.parametrize("name", ["grpo", "recast", "recast-branch", "repair"])
def test_arms_of_compare_follow_the_gradient_of_their_policy_loss(world, name):
    """Old log-probs are those of now: the loss of ``recast-ref compare`` without KL has the same gradient, whatever is left out."""
    batch = batch_of(worlds.make("judge", USERS))  # groups in every regime
    made = lab.ARMS[name].signal(batch.groups)
    logps = batch.policy.logps(batch.prompts.history[made.prompts], made.responses).flatten(0, 1)
    mask = torch.ones_like(logps, dtype=torch.bool)
    whole = reference.policy_loss(logps, logps.detach(), made.advantages.flatten(0, 1), mask).loss
    mine, tokens = surrogate(batch.policy, batch.prompts.history, ARMS[name].blocks(batch))
    assert (batch.groups.rewards > 0).any() and tokens > 0
    torch.testing.assert_close(gradient(batch.policy, mine), gradient(batch.policy, whole), atol=1e-6, rtol=1e-3)


def test_expected_follows_the_gradient_of_the_chance_of_a_hit(world, monkeypatch):
    monkeypatch.setattr(arms, "LARGEST", 1e9)  # no anchor is cut
    batch = Batch(world, policy_of(world), world.rl[:16], torch.Generator(), "likeliest")
    loss, _ = surrogate(batch.policy, batch.prompts.history, ARMS["expected"].blocks(batch))
    chance = batch.policy.logps(batch.prompts.history, batch.prompts.shown).sum(dim=-1).exp()
    mine, exact = gradient(batch.policy, loss), gradient(batch.policy, -chance.mean())
    torch.testing.assert_close(mine * 3 * chance.mean(), exact, rtol=1e-3, atol=1e-8)  # 3: the mean is over codes


def test_hybrid_reads_two_responses_of_a_group_without_a_hit_and_all_of_one_with():
    batch = batch_of(worlds.make("judge", USERS))
    whole, pairs = ARMS["hybrid"].blocks(batch)
    hit = (batch.groups.rewards > 0).any(dim=1)
    assert 0 < hit.sum() < len(hit)
    assert set(whole.prompts.tolist()) <= set(hit.nonzero()[:, 0].tolist()) and whole.responses.shape[1] == 8
    assert pairs.prompts.tolist() == (~hit).nonzero()[:, 0].tolist() and pairs.responses.shape[1] == 2
    assert torch.equal(pairs.responses[:, 0], batch.groups.targets[~hit])
    leaves = (pairs.responses[:, 0] != pairs.responses[:, 1]).long().argmax(dim=1)
    scaled = pairs.weights * 2 * 64 * 3
    torch.testing.assert_close(scaled[:, 0], torch.ones_like(scaled[:, 0]))
    torch.testing.assert_close(scaled[:, 1], -0.3 * (torch.arange(3) >= leaves[:, None]).float())


@pytest.mark.parametrize("anchor", ["likeliest", "nearest", "random"])
def test_the_anchor_is_a_target_that_the_log_shows(anchor):
    batch = batch_of(worlds.make("next-4", USERS), anchor=anchor)
    same = (batch.groups.targets[:, None] == batch.prompts.shown).all(dim=-1)
    assert same.any(dim=1).all()
    if anchor == "likeliest":
        logps = batch.policy.logps(batch.prompts.history, batch.prompts.shown).sum(dim=-1)
        torch.testing.assert_close(logps.masked_fill(~same, -torch.inf).amax(dim=1), logps.amax(dim=1))


FORMATS = ("sparse", "thought", "sets-2")  # every arm in one world of each format, some arms in the others
LEARNERS = [
    *((name, arm) for name in FORMATS for arm in ARMS if ARMS[arm].blocks),
    *((name, arm) for name in NAMES if name not in FORMATS for arm in ("grpo", "hybrid-sqrt", "sft-sqrt")),
]


@pytest.mark.parametrize("name, arm", LEARNERS)
def test_every_arm_learns_in_every_world(name, arm):
    made = worlds.make(name, USERS)
    policy = made.answers.policy(made.trie, worlds.HISTORY, 16, 0)
    before = policy.heads.detach().clone()
    run = cells.Run(cells.Cell(name, "94", arm, group_size=4, width=16, curve="coarse"), 0, 1e-3)
    found = training.train(made, run, policy, replace(SCALE, prompts=64))
    assert all(len(values) == 30 and values.isfinite().all() for values in found["test"].values())
    end = found["curve"][-1]
    assert end["rollouts"] == (64 * 4 if ARMS[arm].rolls_out else 0)
    if ARMS[arm].anchors or not ARMS[arm].rolls_out:  # the others may find no hit in so few groups
        assert end["actor_tokens"] > 0 and not torch.equal(before, policy.heads)


def test_dapo_updates_on_full_batches_of_groups_with_a_signal():
    made = worlds.make("judge", 2000)
    run = cells.Run(cells.Cell("judge", "94", "dapo", group_size=8), 0, 1e-4)
    seen = []
    policy = policy_of(made)
    state = training._State(made, run, policy, replace(SCALE, prompts=640))
    learn = state._learn
    state._learn = lambda optimizer, schedule, places, groups: (
        seen.append(groups.rewards),
        learn(optimizer, schedule, places, groups),
    )
    state.train()
    assert state.rollouts == 640 * 8  # it is charged for all that it sampled
    assert all((r.amax(dim=1) > r.amin(dim=1)).all() for r in seen)
    assert all(len(r) >= training.BATCH for r in seen[:-1]) and len(seen) < 10


# ---- bases


def test_a_base_stops_at_its_share_of_all_zero_groups():
    made = worlds.make("dense", USERS)
    policy, record = bases.train_base(made, "90", 4, 16, 0, 20)
    assert record["all_zero"] <= 0.9 and record["updates"] % regimes.PROBE_EARLY == 0
    assert outcomes.probe(policy, made, made.valid, 4)[0] == record["all_zero"]
    assert sum(record[name] for name in table.COMPOSITION) == pytest.approx(1)


def test_a_regime_that_is_out_of_reach(monkeypatch):
    monkeypatch.setattr(regimes, "MOST_UPDATES", 10)
    with pytest.raises(regimes.RegimeNotReached, match="after 10 updates .* are all-zero, not 1%"):
        bases.train_base(worlds.make("sparse", USERS), "1", 4, 16, 0, 20)


# ---- intervals


@given(st.integers(2, 4), st.integers(1, 30), st.randoms(use_true_random=False))
def test_an_interval_holds_the_mean_and_does_not_depend_on_the_order(seeds, prompts, random):
    values = np.array([[random.random() for _ in range(prompts)] for _ in range(seeds)])
    low, high = bootstrap.interval(values)
    assert values.min() - 1e-12 <= low <= high <= values.max() + 1e-12
    shifted = bootstrap.interval(values + 1)
    assert shifted == pytest.approx((low + 1, high + 1))


def test_an_interval_is_as_wide_as_the_noise():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 2000))
    low, high = bootstrap.interval(values)
    assert 0.5 < (high - low) / (2 * 1.96 * (1 / 10_000) ** 0.5) < 3  # both are resampled: no narrower than one of them
    covered = [lo <= 0 <= hi for lo, hi in (bootstrap.interval(rng.normal(size=(5, 50))) for _ in range(60))]
    assert np.mean(covered) > 0.8
    assert bootstrap.interval(np.full((3, 7), 0.25)) == pytest.approx((0.25, 0.25))
    assert bootstrap.interval(values[:1]) == (None, None)


@given(
    hnp.arrays(np.int64, st.integers(1, 40), elements=st.integers(0, 9)),
    hnp.arrays(np.int64, 20, elements=st.integers(-3, 12)),
)
def test_every_value_lies_in_one_quartile(train, test):
    found = table.quartiles(train, test)
    assert sum(in_train.astype(int) for _, in_train, _ in found).tolist() == [1] * len(train)
    assert sum(in_test.astype(int) for _, _, in_test in found).tolist() == [1] * 20
    for value in set(train.tolist()) & set(test.tolist()):  # where it lies does not depend on the split
        assert [in_train[train == value].all() for _, in_train, _ in found] == [
            t[test == value].all() for _, _, t in found
        ]


# ---- matched budget


def seed_points(arm, values):
    return [{"kind": "seed point", "arm": arm, "seed": seed, "step": i, "rollouts": 100 * i, "pass@1": value, "group_size": 8}
            for seed, curve in enumerate(values) for i, value in enumerate(curve)]  # fmt: skip


@pytest.mark.parametrize(
    "theirs, mine, expected",
    [
        # The best, not the last; the first that is as good.
        ([[0.1, 0.2, 0.3, 0.2]], [[0.1, 0.3, 0.2]], (1 / 3, None, None)),
        ([[0.1, 0.2, 0.3, 0.2]], [[0.1, 0.2, 0.2]], (math.inf, None, None)),
        ([[0.3, 0.2]], [[0.1, 0.2, 0.2]], (math.nan, None, None)),  # GRPO never beats the base
        ([[0.1, 0.3, 0.5]] * 2, [[0.1, 0.6, 0.2]] * 2, (0.5, 0.5, 0.5)),  # seeds that agree
        # Of the mean curve: 0.4, then 0.75.
        ([[0.1, 0.3, 0.5]] * 2, [[0.1, 0.6, 0.6], [0.1, 0.2, 0.9]], (1.0, 0.5, 1.0)),
    ],
)
def test_matched_budget_by_hand(theirs, mine, expected):
    rows = seed_points("grpo", theirs) + seed_points("recast", mine)
    got = matching.match(rows, "recast", "pass@1", group_size=8)
    assert got[0] == pytest.approx(expected[0], nan_ok=True) and got[1:] == expected[1:]
    assert matching.match(rows, "recast", "pass@1", group_size=4) is None
    assert matching.text((0.041, 0.02, math.inf)) == "4.1% [2.0%, never]"


# ---- tuning


def tuned(scores, scale, arm="sft"):
    """The rate chosen, and the runs done on the way, where a run's score is ``scores[rate]``."""
    results, cell = running.Results("nowhere", scale), cells.Cell("sparse", "94", arm)
    done = []
    while True:
        rate, missing = results.chosen(cell)
        if not missing:
            return rate, done
        for run in missing:
            results.scores[run] = scores[run.learning_rate] + 0.01 * run.seed
            done.append((run.learning_rate, run.seed))


@pytest.mark.parametrize(
    "scores, rate, tried",
    [
        ({1e-4: 0.1, 3e-4: 0.3, 1e-3: 0.2}, 3e-4, [1e-4, 3e-4, 1e-3]),  # inside: nothing beyond is tried
        ({1e-4: 0.1, 3e-4: 0.2, 1e-3: 0.3, 3e-3: 0.1}, 1e-3, [1e-4, 3e-4, 1e-3, 3e-3]),  # at the edge: one beyond
        ({1e-4: 0.3, 3e-4: 0.2, 1e-3: 0.1, 3e-5: 0.4}, 3e-5, [3e-5, 1e-4, 3e-4, 1e-3]),  # and no further than the last
        ({1e-4: 0.1, 3e-4: 0.2, 1e-3: -1}, 3e-4, [1e-4, 3e-4, 1e-3]),  # one diverged
    ],
)
def test_the_learning_rate_is_the_best_on_validation(scores, rate, tried):
    scale = replace(cells.Scale(), seeds=4)
    chosen, done = tuned(scores, scale)
    assert chosen == rate
    assert sorted(done) == sorted((r, s) for r in tried for s in range(4 if r == rate else 2))


def test_what_never_works_has_no_rate_and_what_is_not_trained_needs_none():
    assert tuned({1e-4: -1, 3e-4: -1, 1e-3: -1, 3e-5: -1}, replace(cells.Scale(), tuning_seeds=1))[0] is None
    assert tuned({0.0: 0.1}, cells.Scale(), "base") == (0.0, [(0.0, s) for s in range(5)])
    assert tuned({0.0: 0.1}, cells.Scale(), "popular")[1] == [(0.0, 0)]


def test_every_part_is_of_worlds_and_arms_that_exist_and_each_run_has_its_file():
    every = [cell for _, part in cells.parts(("a/toys",)).values() for cell in part]
    assert {cell.arm for cell in every} <= set(ARMS)
    for name in {cell.world for cell in every if "/" not in cell.world}:
        worlds.make(name, USERS)
    runs = {cells.Run(cell, 0, 1e-3) for cell in every}
    assert len({str(run) for run in runs}) == len(runs)
    quick = {cell for _, part in cells.quick_parts().values() for cell in part}
    assert quick <= set(every) | {cell for _, part in cells.parts().values() for cell in part}


# ---- kill, resume and report


SCRIPT = """
import os, signal, sys; sys.path.insert(0, {tests!r})
from test_study import PARTS, SCALE
from recast_ref.lab.study.console import write
from recast_ref.lab.study.running import run_cells
from pathlib import Path

ended = 0

def on_progress(done, total, line):
    global ended
    ended += line is not None
    if ended == {most}:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    results = run_cells([c for _, part in PARTS.values() for c in part], SCALE, {out!r}, {resume}, on_progress)
    write(PARTS, results, Path({out!r}))
"""
PARTS = {
    "map": ("?", tuple(cells.Cell("sparse", "99", arm, group_size=4, width=16) for arm in ("popular", "base", "grpo", "sft-sqrt"))),
    "whom": ("?", (cells.Cell("sparse", "99", "hybrid", group_size=4, width=16),)),
    "budget": ("?", tuple(cells.Cell("sparse", "99", arm, group_size=4, width=16, curve="fine") for arm in ("grpo", "recast"))),
}  # fmt: skip


def study(folder, out, resume=False, most=-1):
    path = folder / f"study-{out.name}-{resume}.py"
    path.write_text(SCRIPT.format(tests=os.path.dirname(__file__), out=str(out), resume=resume, most=most))
    return subprocess.run([sys.executable, str(path)], timeout=1800, check=False).returncode


def without_clock(path):
    return [{k: v for k, v in row.items() if k not in ("seconds", "cpu_seconds")} for row in table.read(path)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that was killed and went on, and one that was not."""
    folder = tmp_path_factory.mktemp("study")
    whole, killed = folder / "whole", folder / "killed"
    assert study(folder, whole) == 0
    assert study(folder, killed, most=9) == -signal.SIGKILL
    before = {path.name: path.stat().st_mtime_ns for path in (killed / "cells").glob("*.pt")}
    assert before and not (killed / "study.csv").exists()
    (killed / "cells" / ".run.pt.x.half").write_bytes(b"half")
    assert study(folder, killed, resume=True) == 0
    return whole, killed, before


def test_a_killed_study_goes_on_to_the_same_numbers_and_does_nothing_twice(finished):
    whole, killed, before = finished
    assert without_clock(whole / "study.csv") == without_clock(killed / "study.csv")
    after = {path.name: path.stat().st_mtime_ns for path in (killed / "cells").glob("*.pt")}
    assert before.items() <= after.items() and len(after) > len(before)
    assert not list(killed.rglob("*.half"))


def test_the_report_is_a_function_of_the_csv(finished, tmp_path):
    whole, _, _ = finished
    made = {path.name: path.read_bytes() for path in whole.iterdir() if path.suffix in (".md", ".svg")}
    assert {"study.md", "map.svg", "budget.svg", "whom.svg"} <= set(made)
    report.write(table.read(whole / "study.csv"), tmp_path)  # where there are no cells
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == made
    text = made["study.md"].decode()
    assert all("![" in text and f"]({name})" in text for name in made if name.endswith(".svg"))


def test_the_csv_is_read_as_it_was_written(finished, tmp_path):
    rows = table.read(finished[0] / "study.csv")
    table.save(tmp_path / "again.csv", rows)
    assert (tmp_path / "again.csv").read_bytes() == (finished[0] / "study.csv").read_bytes()
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="not a study.csv of this version, it has no column parts"):
        table.read(tmp_path / "other.csv")


def test_files_of_several_evenings_make_one(finished, tmp_path, capsys):
    """Of a cell that two files have, the first's rows count, and no row is lost or there twice."""
    rows = table.read(finished[0] / "study.csv")
    first = [{**row, "learning_rate": 7.0} for row in rows if row["arm"] in ("grpo", "popular")]
    merged = table.merge([first, rows])
    key = [sorted(map(str, row.items())) for row in merged]
    assert sorted(key) == sorted(
        sorted(map(str, row.items()))
        for row in [*first, *(row for row in rows if row["arm"] not in ("grpo", "popular"))]
    )
    for name, part in (("monday", first), ("tuesday", rows)):
        (tmp_path / name).mkdir()
        table.save(tmp_path / name / "study.csv", part)
    folders = [str(tmp_path / "monday"), str(tmp_path / "tuesday")]
    assert cli.main(["study", "--report", *folders, "--out", str(tmp_path / "both")]) == 0
    assert table.read(tmp_path / "both" / "study.csv") == merged and (tmp_path / "both" / "study.md").exists()
    with pytest.raises(SystemExit):
        cli.main(["study", "--report", *folders])
    assert "--report of several folders needs --out DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda text: text[:-1], "the file ends inside this line"),
        (lambda text: text.replace("popular,", "popular,,", 1), ":2: expected "),
        (lambda text: text.replace(",8,", ",eight,", 1), ":2: expected a number: "),
        (lambda text: text.replace("popular", '"popular', 1), "not a readable CSV file"),
        (lambda text: text.replace("popular", "popul\udce4r", 1), ":2: not UTF-8 text"),
    ],
)
def test_a_damaged_csv_of_a_study_is_named(tmp_path, change, words):
    path = tmp_path / "study.csv"
    table.save(
        path, [{"parts": "map", "kind": "run", "world": "sparse", "arm": "popular", "group_size": 8, "curve": ""}]
    )
    assert table.read(path)[0]["group_size"] == 8
    path.write_bytes(change(path.read_text()).encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=re.escape(str(path))) as caught:
        table.read(path)
    assert words in str(caught.value)


@pytest.mark.parametrize("world", [r"a$\\no$b", "x$", "books[bold red]"])
def test_a_figure_names_a_world_as_it_is_called(world):
    point = {**dict.fromkeys(table.SETTINGS, 0), "regime": "94", "arm": "grpo", "world": world, "curve": ""}
    rows = [{"kind": "mean", **point}, {"kind": "point", **point, "step": 0, "all_zero": 0.9}]
    file = io.BytesIO()
    figures.save(figures.over_training(rows, "budget"), file)
    assert f"<!-- {world}, 94 -->".encode() in file.getvalue()


def test_the_rows_of_a_study(finished):
    rows = table.read(finished[0] / "study.csv")
    with open(finished[0] / "study.csv", newline="") as file:
        assert next(csv.reader(file)) == list(table.COLUMNS)
    for row in rows:
        assert all(0 <= row[m] <= 1 for m in outcomes.METRICS if m in row and row["kind"] != "difference")
    for arm, seeds in (("popular", 1), ("base", 3), ("grpo", 3)):
        mine = report.only(rows, kind="run", arm=arm, curve="")
        assert len(mine) == seeds
        mean = report.one(rows, kind="mean", arm=arm, curve="")
        assert mean["pass@1"] == pytest.approx(np.mean([r["pass@1"] for r in mine]), abs=1e-6)
        assert mean["prompts_counted"] == 30
    one, other = (report.one(rows, kind="mean", arm=arm, curve="") for arm in ("sft-sqrt", "grpo"))
    difference = report.one(rows, kind="difference", arm="sft-sqrt", reference="grpo", curve="")
    for metric in outcomes.METRICS:
        assert difference[metric] == pytest.approx(one[metric] - other[metric], abs=1e-6)
        assert difference[f"{metric} low"] <= difference[metric] + 1e-6
        assert difference[metric] <= difference[f"{metric} high"] + 1e-6
    tuned_ = report.only(rows, kind="tuned", arm="grpo", curve="")
    assert {(r["learning_rate"], r["seed"]) for r in tuned_} == {(rate, s) for rate in SCALE.rates for s in (0, 1)}
    segments = report.only(rows, kind="segment", arm="hybrid")
    assert not any(row["segment"].startswith("new ") for row in segments)  # none is
    for name in ("item popularity", "category size"):
        counted = [r["prompts_counted"] for r in segments if r["segment"].startswith(name)]
        assert sum(counted) == 30
    assert (
        report.only(rows, kind="seed point") and report.one(rows, kind="mean", arm="popular").get("pass@1 low") is None
    )


def test_resume_refuses_what_it_cannot_go_on_with(tmp_path):
    out = tmp_path / "study"
    with pytest.raises(ExperimentError, match="holds no study to resume"):
        running.run_cells([], SCALE, out, resume=True)
    assert running.run_cells([], SCALE, out).scale == SCALE
    with pytest.raises(ExperimentError, match="already holds a study: add --resume"):
        running.run_cells([], SCALE, out)
    running.run_cells([], replace(SCALE, seeds=7), out, resume=True)  # more seeds of the same
    with pytest.raises(ExperimentError, match="it was started with prompts = 128, not 64"):
        running.run_cells([], replace(SCALE, prompts=64), out, resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ExperimentError, match="holds other files"):
        running.run_cells([], SCALE, tmp_path / "other")


def test_a_study_goes_on_from_another_folder_with_more_seeds_and_forgets_no_world(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    interactions(tmp_path / "toys.inter")
    out, one_seed = tmp_path / "study", replace(SCALE, seeds=1, tuning_seeds=1)
    monkeypatch.chdir(tmp_path)
    cell = cells.Cell("./toys.inter+cold", "94", "popular")
    running.run_cells([cell], one_seed, out, real=["./toys.inter"])
    monkeypatch.chdir(tmp_path / "deep")
    cell = replace(cell, world="../toys.inter+cold")
    assert not running.Results(out, SCALE).chosen(cell)[1]
    results = running.run_cells([cell], SCALE, out, resume=True, real=["../toys.inter"])
    made = list(table.rows({"elsewhere": ("?", (cell,))}, results))
    assert {row["world"] for row in made} == {"toys.inter+cold"}
    with pytest.raises(ExperimentError, match="has runs of toys.inter: give its --world again"):
        running.run_cells([], SCALE, out, resume=True)
    running.run_cells([], SCALE, out, resume=True, real=["../toys.inter", "others.inter"])


def test_two_worlds_of_one_name_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, folder in enumerate("ab"):
        interactions(Path(folder, "toys.inter"), seed)
    results = running.Results(tmp_path, SCALE)
    run = cells.Run(cells.Cell("a/toys.inter", "94", "sft"), 0, 1e-3)
    twin = cells.Run(cells.Cell("b/toys.inter", "94", "sft"), 0, 1e-3)
    results.save(run, {"failed": "?"})
    assert results.score(run) == -1
    with pytest.raises(checkpoints.CheckpointError, match="is of another run .data = "):
        results.score(twin)
    base = running.Base.of(run)
    results.save_base(base, {"failed": "?"})
    with pytest.raises(checkpoints.CheckpointError, match="is of another run .data = "):
        results.load_base(running.Base.of(twin))
    with pytest.raises(
        ExperimentError, match="a/toys.inter and b/toys.inter would have the same files: rename one of the worlds"
    ):
        running.run_cells([run.cell, twin.cell], SCALE, tmp_path / "study")


def test_a_study_does_not_go_on_with_other_data(tmp_path):
    path = tmp_path / "toys.inter"
    results = running.Results(tmp_path, SCALE)
    run = cells.Run(cells.Cell(f"{path}+wrong-30", "94", "sft"), 0, 1e-3)
    base = running.Base.of(run)

    def at_another_time(seed):
        interactions(path, seed)
        for kept in (worlds.fingerprint, worlds._load, worlds.make):
            kept.cache_clear()

    at_another_time(0)
    results.save(run, {"failed": "?"})
    results.save_base(base, {"failed": "?"})
    at_another_time(0)
    assert results.load(run) == results.load_base(base) == {"failed": "?"}
    at_another_time(1)
    for load, job in ((results.load, run), (results.load_base, base)):
        with pytest.raises(checkpoints.CheckpointError, match="is of another run .data = "):
            load(job)


def test_a_damaged_file_of_a_study_is_named_and_refused(tmp_path):
    results = running.Results(tmp_path, SCALE)
    run = cells.Run(cells.Cell("sparse", "94", "sft"), 0, 1e-3)
    base = running.Base.of(run)
    for path, save, load in (
        (results.path(run), lambda: results.save(run, {"failed": "?"}), lambda: results.load(run)),
        (results.base_path(base), lambda: results.save_base(base, {"failed": "?"}), lambda: results.load_base(base)),
    ):
        save()
        assert load() == {"failed": "?"}
        good = path.read_bytes()
        path.write_bytes(good[:-9] + bytes([good[-9] ^ 4]) + good[-8:])
        with pytest.raises(checkpoints.CheckpointError, match=re.escape(f"{path} is damaged")):
            load()
    other = running.Results(tmp_path / "other", replace(SCALE, prompts=64))
    results.save(run, {"failed": "?"})
    other.runs.mkdir(parents=True)
    other.path(run).write_bytes(results.path(run).read_bytes())
    with pytest.raises(checkpoints.CheckpointError, match="is of another run .study = "):
        other.load(run)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "study.json").write_bytes(b"")
    with pytest.raises(checkpoints.CheckpointError, match="study.json is damaged"):
        running.run_cells([], SCALE, tmp_path / "broken", resume=True)


def test_one_study_at_a_time(tmp_path):
    running.run_cells([], SCALE, tmp_path / "out")
    with locks.hold(tmp_path / "out"), pytest.raises(locks.Held, match="out is in use by process"):
        running.run_cells([], SCALE, tmp_path / "out", resume=True)


# ---- what users read


COMMITTED = Path(__file__).parents[1] / "tutorials" / "study"


@pytest.fixture(scope="module")
def found():
    return table.read(COMMITTED / "study.csv")


def test_the_tables_of_the_readme_are_those_of_the_study(found):
    readme = (COMMITTED.parents[1] / "README.md").read_text()
    saved = COMMITTED.parent / "saved"
    runs = {
        name: json.loads((saved / f"{name}.json").read_text()) for name in ("synthetic-g8", "amazon_industrial-g32")
    }
    for made in (findings.decisions(found), findings.claims(found, runs)):
        assert made.rows and "\n".join(report.markdown(made, "---")) in readme


def test_the_report_that_is_committed_is_that_of_its_csv(found, tmp_path):
    report.write(found, tmp_path)
    assert (tmp_path / "study.md").read_text() == (COMMITTED / "study.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} | {"study.csv"} == {path.name for path in COMMITTED.iterdir()}


def test_an_arm_is_said_to_lead_or_to_lose_only_where_the_interval_excludes_0(found):
    for decision in findings.DECISIONS:
        for seen in decision.evidence:
            row = findings.difference(found, seen)
            if row:
                low, high = row[f"{seen.metric} low"], row[f"{seen.metric} high"]
                assert (1 if low > 0 else -1 if high < 0 else 0) == seen.sign, (decision.see, seen)
