"""The lab's parts: policy, trie, rollouts, memory, audit, and a run that is stopped and continued."""

import dataclasses
import io
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rich.console import Console

from recast_ref.lab import console as terminal
from recast_ref.lab import experiment, regimes, report, summary, training
from recast_ref.lab.arms import ARMS, place_anchor, score
from recast_ref.lab.audit import audit, segments
from recast_ref.lab.evaluation import METRICS, evaluate, hits, ndcg, popular
from recast_ref.lab.memory import PeakBytes
from recast_ref.lab.policy import Policy
from recast_ref.lab.rollouts import beam, sample
from recast_ref.lab.semantic_ids import Trie, collisions, residual_kmeans
from recast_ref.lab.worlds import Pairs, World, as_sids, split_last

TINY = {"prompts": 64, "batch": 16, "valid_prompts": 16, "test_prompts": 32, "group_size": 4}


def tiny_world(levels=3):
    rng = np.random.default_rng(0)
    sids = np.array(list(itertools.product(range(4), range(3), range(3))))[::2]
    if levels != 3:
        sids = np.stack([np.arange(18) // 3**level % (18 if levels == 1 else 5) for level in range(levels)], axis=1)
    timelines = [rng.integers(len(sids), size=rng.integers(4, 9)).tolist() for _ in range(60)]
    train, valid, test, _ = split_last(timelines)
    return World("tiny", sids, train, valid, test, base_pairs=32)


@pytest.fixture(scope="module")
def world():
    return tiny_world()


@pytest.fixture(scope="module")
def policy(world):
    policy = training.new_policy(world, 0)
    with torch.no_grad():
        policy.heads.mul_(20)  # an untrained policy is close to uniform: make it choose
    return policy


@pytest.fixture(scope="module")
def history(world):
    return as_sids(world, world.train[:8])[0]


# ---- the policy


def test_reading_the_prompt_once_changes_nothing(policy, history):
    responses = sample(policy, history, 5, torch.Generator().manual_seed(0)).responses
    shared, repeated = (policy.logits(history, responses, share) for share in (True, False))
    torch.testing.assert_close(shared, repeated, rtol=1e-5, atol=1e-5)


def test_branches_do_not_see_each_other(policy, history):
    responses = sample(policy, history, 5, torch.Generator().manual_seed(0)).responses
    alone = torch.cat([policy.logits(history, responses[:, [i]]) for i in range(5)], dim=1)
    torch.testing.assert_close(policy.logits(history, responses), alone, rtol=1e-5, atol=1e-5)


def test_padding_on_the_left_changes_nothing(policy, history):
    history = history[:, -3:]
    padded = torch.cat([torch.full_like(history, -1), history], dim=1)
    responses = sample(policy, history, 2, torch.Generator().manual_seed(0)).responses
    torch.testing.assert_close(
        policy.logits(padded, responses), policy.logits(history, responses), rtol=1e-5, atol=1e-5
    )


def test_a_response_does_not_see_its_own_future(policy, history):
    responses = sample(policy, history, 1, torch.Generator().manual_seed(0)).responses
    other = torch.from_numpy(tiny_world().sids)[torch.randint(18, (8,), generator=torch.Generator().manual_seed(1))][
        :, None
    ]
    other[..., 0] = responses[..., 0]
    legal = (torch.from_numpy(tiny_world().sids) == other).all(dim=-1).any(dim=-1)
    one, two = policy.logits(history[legal], responses[legal]), policy.logits(history[legal], other[legal])
    assert legal.any()
    torch.testing.assert_close(one[:, :, :2], two[:, :, :2], rtol=1e-5, atol=1e-5)


def test_probabilities_of_the_whole_catalogue_sum_to_one(policy, history):
    every = policy.trie.sids.expand(len(history), -1, -1)
    total = policy.logps(history, every).sum(dim=-1).exp().sum(dim=-1)
    torch.testing.assert_close(total, torch.ones(len(history)))


@pytest.mark.parametrize("make", ["sample", "beam"])
def test_rollouts_are_items_with_the_log_probs_they_claim(policy, history, make):
    found = (
        sample(policy, history, 6, torch.Generator().manual_seed(3)) if make == "sample" else beam(policy, history, 6)
    )
    catalogue = set(map(tuple, policy.trie.sids.tolist()))
    assert {tuple(sid) for group in found.responses.tolist() for sid in group} <= catalogue
    claimed = policy.logps(history, found.responses).sum(dim=-1)
    torch.testing.assert_close(found.logps, claimed, rtol=1e-4, atol=1e-4)


def test_a_wide_beam_ranks_the_whole_catalogue(policy, history):
    items = len(policy.trie)
    found = beam(policy, history, items + 3)
    assert (found.responses[:, items:] == -1).all() and found.logps[:, items:].isneginf().all()
    every = policy.trie.sids.expand(len(history), -1, -1)
    best = policy.logps(history, every).sum(dim=-1).sort(dim=1, descending=True).values
    torch.testing.assert_close(found.logps[:, :items], best, rtol=1e-4, atol=1e-4)
    for group in found.responses[:, :items].tolist():
        assert len({tuple(sid) for sid in group}) == items


def test_samples_follow_the_policy(policy, history):
    prompt = history[:1].expand(400, -1, -1)
    draws = sample(policy, prompt, 50, torch.Generator().manual_seed(0)).responses.flatten(0, 1)
    share = (draws[:, None] == policy.trie.sids).all(dim=-1).float().mean(dim=0)
    expected = policy.logps(history[:1], policy.trie.sids[None]).sum(dim=-1).exp()[0]
    assert (share - expected).abs().max() < 5 * (0.25 / 20_000) ** 0.5


# ---- evaluation


@pytest.mark.parametrize("copies", [0, 6, 18])
def test_evaluation_by_brute_force(copies):
    """With items that have a SID of their own, and with the first ``copies`` of 18 SIDs given to a second item as well."""
    world = tiny_world()
    world = dataclasses.replace(world, sids=np.concatenate([world.sids, world.sids[:copies]]))
    policy, base = training.new_policy(world, 0), training.new_policy(world, 1)
    with torch.no_grad():
        policy.heads.mul_(20)
    history, targets = as_sids(world, world.test[:40])
    got = evaluate(policy, base, history, targets)
    items = torch.from_numpy(world.sids).expand(len(history), -1, -1)
    logps = policy.logps(history, items).sum(dim=-1)
    same = (items == targets[:, None]).all(dim=-1)
    truth = logps.masked_fill(~same, -torch.inf).max(dim=1).values
    better, shared = (logps > truth[:, None] + 1e-5).sum(dim=1), same.sum(dim=1)
    assert set(shared.tolist()) == {0: {1}, 6: {1, 2}, 18: {2}}[copies]
    for k, name in ((1, "pass@1"), (10, "recall@10"), (32, "recall@32")):
        # One of the items with the target's SID is the target: on place better, better + 1, ... with the same chance.
        hit = [sum(place < k for place in range(b, b + n)) / n for b, n in zip(better.tolist(), shared.tolist())]
        assert got[name] == pytest.approx(np.mean(hit)), name
    places = [range(b, min(b + n, 10)) for b, n in zip(better.tolist(), shared.tolist())]
    gain = [sum(1 / np.log2(place + 2) for place in own) / n for own, n in zip(places, shared.tolist())]
    assert got["ndcg@10"] == pytest.approx(np.mean(gain))
    assert got["sampled_p@1"] == pytest.approx((truth.exp() / shared).mean().item(), rel=1e-4)
    assert got["kl"] > 0 and evaluate(policy, policy, history, targets)["kl"] == pytest.approx(0, abs=1e-6)


def test_an_index_in_which_all_items_share_one_sid():
    rng = np.random.default_rng(0)
    train, valid, test, _ = split_last([rng.integers(3686, size=5).tolist() for _ in range(40)])
    world = World("collapsed", np.zeros((3686, 3), dtype=np.int64), train, valid, test, base_pairs=32)
    assert "3,686 items as 3 codes (3,686 share their SID with another item)" in world.describe()
    policy = training.new_policy(world, 0)
    got = evaluate(policy, policy, *as_sids(world, world.test))
    for k, name in ((1, "pass@1"), (10, "recall@10"), (32, "recall@32"), (1, "sampled_p@1")):
        assert got[name] == pytest.approx(k / 3686), name


@st.composite
def rankings(draw, most):
    """How many items each ranked SID has, with padding at the end, and which of them the target's is: none, or one."""
    items = draw(st.lists(st.integers(1, most), max_size=4))
    target = draw(st.none() | st.integers(0, len(items) - 1)) if items else None
    padding = draw(st.integers(0 if items else 1, 2))
    found = [i == target for i in range(len(items) + padding)]
    return torch.tensor([found]), torch.tensor([items + [0] * padding])


@given(rankings(most=3), st.integers(1, 16))
def test_hits_are_the_mean_over_every_order_of_the_items_of_a_sid(ranking, k):
    found, items = ranking
    orders = [itertools.permutations([(sid, i) for i in range(n)]) for sid, n in enumerate(items[0].tolist())]
    target = (found[0].long().argmax().item(), 0) if found.any() else None
    firsts = [list(itertools.chain(*order))[:k] for order in itertools.product(*orders)]
    assert hits(found, items, k).item() == pytest.approx(np.mean([target in first for first in firsts]))


@given(rankings(most=3), st.integers(1, 16))
def test_ndcg_is_the_mean_over_every_order_of_the_items_of_a_sid(ranking, k):
    found, items = ranking
    orders = [itertools.permutations([(sid, i) for i in range(n)]) for sid, n in enumerate(items[0].tolist())]
    target = (found[0].long().argmax().item(), 0) if found.any() else None
    lists = [list(itertools.chain(*order))[:k] for order in itertools.product(*orders)]
    gains = [1 / np.log2(one.index(target) + 2) if target in one else 0.0 for one in lists]
    assert ndcg(found, items, k).item() == pytest.approx(np.mean(gains))


@given(rankings(most=1), st.integers(1, 8))
def test_hits_where_no_two_items_share_a_sid_are_exactly_0_or_1(ranking, k):
    found, items = ranking
    assert torch.equal(hits(found, items, k), found[:, :k].any(dim=1).double())


@pytest.mark.parametrize("copies", [0, 6])
def test_the_popular_row_by_brute_force(copies):
    world = tiny_world()
    world = dataclasses.replace(world, sids=np.concatenate([world.sids, world.sids[:copies]]))
    got = popular(world, world.test)
    counts = np.bincount(world.train.target, minlength=len(world.sids))
    of_sid = {}
    for sid, count in zip(map(tuple, world.sids.tolist()), counts):
        of_sid[sid] = of_sid.get(sid, 0) + count
    ranked = sorted(sorted(of_sid), key=lambda sid: -of_sid[sid])
    items = [[tuple(s) for s in world.sids.tolist()].count(sid) for sid in ranked]
    hit, chance = [], []
    for target in world.test.target:
        place = ranked.index(tuple(world.sids[target]))
        before, own = sum(items[:place]), items[place]
        hit.append([min(max(k - before, 0), own) / own for k in (1, 10)])
        chance.append(of_sid[ranked[place]] / counts.sum() / own)
    assert [got["pass@1"], got["recall@10"]] == pytest.approx(np.mean(hit, axis=0))
    assert got["sampled_p@1"] == pytest.approx(np.mean(chance))
    assert set(got) == {*METRICS} - {"entropy", "kl"}


# ---- SIDs


@given(hnp.arrays(np.int64, st.tuples(st.integers(1, 30), st.integers(1, 4)), elements=st.integers(0, 3)))
def test_the_trie_holds_the_catalogue_and_nothing_else(sids):
    trie = Trie(sids, codes=4)
    catalogue = set(map(tuple, sids.tolist()))
    assert len(trie) == len(catalogue)
    every = list(itertools.product(range(-1, 5), repeat=sids.shape[1]))
    assert trie.items(torch.tensor(every)).tolist() == [sids.tolist().count(list(sid)) for sid in every]
    for sid in itertools.product(range(4), repeat=sids.shape[1]):
        if sid in catalogue:
            trie.path(torch.tensor(sid))
        else:
            with pytest.raises(ValueError, match="expected SIDs of the catalogue"):
                trie.path(torch.tensor(sid))
    assert collisions(sids) == sum(sids.tolist().count(sid) > 1 for sid in sids.tolist())


def test_residual_kmeans_is_coarse_to_fine():
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]])
    vectors = np.concatenate([c + rng.normal(size=(20, 2)) for c in centres])
    sids = residual_kmeans(vectors, levels=2, codes=3)
    assert sids.shape == (60, 2) and sids.dtype == np.int64
    for blob in range(3):
        assert len(set(sids[20 * blob : 20 * blob + 20, 0])) == 1  # the first code tells the blobs apart
    assert np.array_equal(sids, residual_kmeans(vectors, levels=2, codes=3))


# ---- arms


def groups_of(policy, history, targets, size=6):
    responses = sample(policy, history, size, torch.Generator().manual_seed(0)).responses
    return score(responses, targets, torch.rand(len(history), size, generator=torch.Generator().manual_seed(1)))


def test_pair_arms_keep_two_responses_and_put_the_truth_first(world, policy):
    history, targets = as_sids(world, world.train[:64])
    groups = groups_of(policy, history, targets)
    hit = groups.rewards.sum(dim=1)
    assert 0 < (hit == 0).sum() < 64
    for name in ("recast", "recast-branch", "contrast"):
        signal = ARMS[name].signal(groups)
        kept = (hit < 6) & ((hit > 0) | (name != "contrast"))
        assert signal.prompts.tolist() == kept.nonzero()[:, 0].tolist()
        assert signal.responses.shape == (len(signal.prompts), 2, 3)
        assert (signal.responses[:, 0] == targets[signal.prompts]).all()
        assert not (signal.responses[:, 1] == targets[signal.prompts]).all(dim=-1).any()
        assert (signal.advantages[:, 0] == 1).all()
        assert torch.equal(signal.repaired, hit == 0) == (name != "contrast")
        if name == "recast-branch":
            leaves = (signal.responses[:, 0] != signal.responses[:, 1]).long().argmax(dim=1)
            assert (signal.advantages[:, 1] == -(torch.arange(3) >= leaves[:, None]).float()).all()
        else:
            assert (signal.advantages[:, 1] == -1).all()


def test_whole_group_arms(world, policy):
    history, targets = as_sids(world, world.train[:64])
    groups = groups_of(policy, history, targets)
    hit = groups.rewards.sum(dim=1) > 0
    grpo, repair = ARMS["grpo"].signal(groups), ARMS["repair"].signal(groups)
    assert (grpo.advantages[~hit] == 0).all() and torch.equal(grpo.responses, groups.responses)
    assert torch.equal(grpo.advantages[hit], repair.advantages[hit])
    assert ((repair.responses == targets[:, None]).all(dim=-1).any(dim=1)).all()
    assert ((repair.responses != groups.responses).any(dim=-1).sum(dim=1) == (~hit).long()).all()


def test_place_anchor():
    responses, targets = torch.zeros(2, 3, 3, dtype=torch.int64), torch.tensor([[1, 2, 3], [4, 5, 6]])
    placed = place_anchor(responses, torch.tensor([-1, 2]), targets)
    assert placed.tolist() == [[[0, 0, 0]] * 3, [[0, 0, 0], [0, 0, 0], [4, 5, 6]]]


def test_only_the_pair_enters_the_passes(world, policy, monkeypatch):
    """Physically filtered: no forward pass sees a response outside the pair, nor the prompt of a skipped group."""
    history, targets = as_sids(world, world.train[:64])
    signal = ARMS["contrast"].signal(groups_of(policy, history, targets))
    seen = []
    original = Policy.logits
    monkeypatch.setattr(
        Policy, "logits", lambda self, h, r, *a: seen.append((len(h), r.shape[1])) or original(self, h, r, *a)
    )
    trained, base = training.new_policy(world, 0), training.new_policy(world, 0)
    training.policy_update(trained, *training.new_optimizer(trained, 1e-3), history, signal, base)
    assert 0 < len(signal.prompts) < 64
    assert [width for _, width in seen] == [2] * len(seen)
    old, ref, *minibatches = [rows for rows, _ in seen]
    assert old == ref == sum(minibatches) == len(signal.prompts)


# ---- memory and audit


def test_peak_bytes_by_hand():
    before = torch.zeros(10)
    with PeakBytes() as memory:
        x = torch.zeros(1000)  # 4,000 bytes
        y = x + 1  # 8,000
        del x  # 4,000
        z = torch.zeros(500)  # 6,000
        view = y[:10], before[:5]  # no bytes of their own
        z.add_(1)
    assert (memory.peak, memory.alive) == (8000, 6000)
    del view, y, z
    assert memory.alive == 0


@given(hnp.arrays(np.int64, st.integers(1, 40), elements=st.integers(0, 6)))
def test_segments_partition_and_never_split_equal_values(values):
    quartile, labels = segments(values)
    assert sorted(set(quartile)) == list(range(len(labels))) and len(labels) <= 4
    for value in set(values.tolist()):
        assert len(set(quartile[values == value])) == 1
    for q, label in enumerate(labels):
        low, _, high = label.partition("-")
        assert values[quartile == q].min() == int(low) and values[quartile == q].max() == int(high or low)


def test_audit_counts_every_group_once(world):
    rows = np.arange(50)
    repaired = world.train.target[rows] % 2 == 0
    result = audit(world, rows, repaired)
    for segments_ in (result["user_activity"], result["item_popularity"]):
        assert sum(row["groups"] for row in segments_) == 50
        assert sum(row["groups"] * (row["repaired"] or 0) for row in segments_) == pytest.approx(repaired.sum())


# ---- a run


def without_timings(record):
    """All that must be the same again: everything but what a clock measured."""
    if isinstance(record, dict):
        return {
            k: without_timings(v) for k, v in record.items() if k not in ("actor_update_seconds", "cost", "versions")
        }
    return [without_timings(v) for v in record] if isinstance(record, list) else record


class Killed(Exception):
    pass


@pytest.mark.parametrize("arm", ["recast-branch", "grpo", "sft"])
def test_a_run_stopped_anywhere_continues_to_the_same_numbers(world, tmp_path, arm):
    settings = experiment.Settings(**TINY)
    base = tmp_path / "base.pt"
    training.train_base(world, settings, 0, base, lambda share: None)
    whole = training.Run(world, settings, arm, 0, base).train(tmp_path / "whole.pt", lambda share: None)
    assert [point["step"] for point in whole["curve"]] == [0, 2, 4]
    steps_done = 0

    def stop_at(limit):
        def on_progress(share):
            nonlocal steps_done
            steps_done += 1
            if steps_done == limit:
                raise Killed

        return on_progress

    for limit in (1, 3):  # before the first evaluation that follows the base's, and between two
        steps_done = 0
        with pytest.raises(Killed):
            training.Run(world, settings, arm, 0, base).train(tmp_path / "parts.pt", stop_at(limit))
    again = training.Run(world, settings, arm, 0, base).train(tmp_path / "parts.pt", lambda share: None)
    assert without_timings(again) == without_timings(whole)


@pytest.mark.parametrize(
    "changes, settings, words",
    [
        ({"valid": Pairs.of([])}, {}, "tiny is too small: it has 0 validation pairs"),
        ({"base_pairs": 10_000}, {}, "tiny is too small: it has 0 training pairs for the arms"),
        ({}, {"rollout": "beam", "group_size": 19}, "a beam of --group-size 19 needs as many SIDs; tiny has 18"),
    ],
)
def test_a_world_that_is_too_small(world, tmp_path, changes, settings, words):
    parts = {name: getattr(world, name) for name in ("name", "sids", "train", "valid", "test", "base_pairs")}
    with pytest.raises(experiment.ExperimentError, match=words):
        experiment.compare(World(**{**parts, **changes}), experiment.Settings(**{**TINY, **settings}), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rollout", ["sample", "beam"])
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_any_number_of_levels(tmp_path, levels, rollout):
    world = tiny_world(levels)
    settings = experiment.Settings(**{**TINY, "group_size": 2}, rollout=rollout)
    training.train_base(world, settings, 0, tmp_path / "base.pt", lambda share: None)
    for arm in ARMS:
        record = training.Run(world, settings, arm, 0, tmp_path / "base.pt").train(
            tmp_path / f"{arm}.pt", lambda share: None
        )
        assert 0 <= record["final"]["pass@1"] <= record["final"]["recall@10"] <= record["final"]["recall@32"] <= 1


@pytest.mark.parametrize("rollout", ["sample", "beam"])
def test_a_base_of_a_regime(world, tmp_path, rollout):
    """The share is reached and recorded, a checkpoint keeps it, and what cannot be reached is an error that says how far it got."""
    settings = experiment.Settings(**TINY, rollout=rollout, all_zero="75")
    first = training.train_base(world, settings, 0, tmp_path / "base.pt", lambda share: None)
    assert first["regime"]["all_zero"] <= 0.75 and first["regime"]["updates"] % 5 == 0
    assert training.train_base(world, settings, 0, tmp_path / "base.pt", lambda share: None) == first
    assert sum(first["regime"][name] for name in ("all_zero", "single_hit", "multi_hit")) == pytest.approx(1)
    converged = dataclasses.replace(settings, all_zero="converged")
    assert training.base_of_regime(world, converged, 0)[1]["updates"] == 4  # 32 pairs are one batch


def test_an_experiment_from_a_base_of_a_regime(world, tmp_path):
    settings = experiment.Settings(**TINY, seeds=1, arms=("grpo",), all_zero="90")
    results = experiment.compare(world, settings, tmp_path)
    regime, pairs = results["base"]["0"]["regime"], len(world.train) // 2
    assert regime["all_zero"] <= 0.9 and results["world"]["base_pairs"] == pairs
    assert results["world"]["rl_prompts"] == min(64, len(world.train) - pairs)
    headers, (popular_, base, grpo) = summary.table(results)
    first, last = headers.index("groups at first"), headers.index("groups at last")
    assert base[first].startswith(f"{100 * regime['all_zero']:.0f}/") and base[last] == ""
    assert all(sum(map(int, grpo[i].split("/"))) in (99, 100, 101) for i in (first, last))
    assert popular_[0] == "popular" and popular_[first] == ""


def test_a_regime_out_of_reach_is_an_error_that_says_how_far_it_got(world, tmp_path, monkeypatch):
    monkeypatch.setattr(regimes, "MOST_UPDATES", 10)
    with pytest.raises(regimes.RegimeNotReached, match=r"after 10 updates of the base policy \d+% .* not 1%"):
        training.base_of_regime(world, experiment.Settings(**TINY, all_zero="1"), 0)


def test_divergence_is_an_error_that_says_where(world, tmp_path, monkeypatch):
    settings = experiment.Settings(**TINY)
    training.train_base(world, settings, 0, tmp_path / "base.pt", lambda share: None)
    run = training.Run(world, settings, "sft", 0, tmp_path / "base.pt")
    monkeypatch.setattr(run, "_evaluate", lambda path: None)
    with torch.no_grad():
        run.policy.heads.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="sft, seed 0, step 0: gradient norms"):
        run.train(tmp_path / "run.pt", lambda share: None)
    assert not (tmp_path / "run.pt").exists()


def synthetic_results(arms, **final):
    """Results as ``compare`` returns them, with a window in which nothing was learned."""
    curve = [
        {"step": step, "rollouts": 8 * step, "regimes": {"all_zero": 0.9, "single_hit": 0.1, "multi_hit": 0.0}, "grad_norm": norm,
         **dict.fromkeys(METRICS, 0.1 * (step + 1))}
        for step, norm in ((0, None), (2, 0.5), (4, None))
    ]  # fmt: skip
    done = {**curve[-1], "actor_update_seconds": 0.2, "peak_update_bytes": 3_000_000, "skipped_groups": 5, **final}
    records = {arm: {"0": {"final": done, "curve": curve, "audit": None}} for arm in arms}
    cells = [{"layout": layout, "update": u, "responses": r, "seconds": s, "peak_bytes": b}
             for layout in ("one sequence per response", "shared prompt") for u, r, s, b in (("group", 8, 4.0, 80), ("pair", 2, 1.0, 20))]  # fmt: skip
    return {
        "settings": {"group_size": 8, "seeds": 1, "batch": 4, "test_prompts": None}, "training": {}, "versions": {}, "cost": cells, "arms": records,
        "world": {"name": "w", "description": "d", "notes": [], "base_pairs": 1, "rl_prompts": 10},
        "base": {"0": {"final": dict.fromkeys(summary.QUALITY, 0.05)}}, "matched_budget": summary.matched_budget(records),
    }  # fmt: skip


@pytest.mark.parametrize("arms", [["grpo"], ["recast", "contrast"], list(ARMS)])
def test_the_report_of_any_choice_of_arms(arms, recwarn):
    results = synthetic_results(arms)
    html = report.render(results)
    assert all(f"<td>{arm}</td>" in html for arm in ["base", *arms]) and html.count("<img") == 5
    assert not list(recwarn)


def test_the_table_by_hand():
    results = synthetic_results(["grpo", "recast"])
    assert summary.table(results)[0] == list(summary.HEADERS)
    base, grpo, recast = summary.rows(results)
    assert base == ["base", "5.00", "-90%", "5.00", "-90%", *["5.00"] * 3, *[""] * 6]
    assert grpo[:3] == ["grpo", "50.00", ""] and recast[2] == "+0%"
    assert recast[8:] == ["90/10/0", "90/10/0", "200", "3.0", "50%", "100.0%"]
    for record in (results["base"], *results["arms"].values()):
        record["0"]["final"].pop("ndcg@10", None)  # an older version's
    assert "ndcg@10" not in summary.table(results)[0]
    assert "the pair is 4.0x faster than the group of 8 and needs 4.0x less memory" in summary.legend(results)[-1]


def test_matched_budget_is_the_first_evaluation_as_good():
    def arm(values, rollouts=(0, 10, 20)):
        return {"0": {"curve": [{"rollouts": r, "pass@1": v, "recall@10": v} for r, v in zip(rollouts, values)]}}

    budget = summary.matched_budget(
        {
            "grpo": arm([0.1, 0.2, 0.3]),
            "fast": arm([0.1, 0.3, 0.2]),
            "never": arm([0, 0, 0]),
            "sft": arm([1, 1, 1], (0, 0, 0)),
        }
    )["pass@1"]
    shares = {name: (row["share"], row["at_most"]) for name, row in budget.items()}
    assert shares == {"grpo": (1.0, False), "fast": (0.5, True), "never": (None, False)}
    assert summary.matched_budget({"grpo": arm([0.3, 0.2, 0.1])})["pass@1"] == {}


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_fits_the_terminal(width):
    console = Console(width=width, file=io.StringIO())
    console.print(terminal.table(synthetic_results(list(ARMS)), console))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    assert all(word in text for word in ("recast-branch", "pass", "recall", "50.00"))


def test_the_table_prints_the_name_of_a_world_as_it_is():
    results = synthetic_results(["grpo"])
    results["world"]["name"] = "books[bold red]x[/]"
    console = Console(width=120, file=io.StringIO())
    console.print(terminal.table(results, console))
    assert "books[bold red]x[/], G = 8" in console.file.getvalue()
