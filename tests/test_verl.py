"""ReCast inside verl, through verl's own ``main_ppo`` on the CPU. Skipped where verl is not (extra ``verl``).

Four runs of it, each mostly the time that Ray's processes take to import verl; ``verl_on_cpu`` says how they work here.
"""

import collections
import json
import math
import re
import shlex
import statistics
from pathlib import Path

import pytest
import torch

pytest.importorskip("verl", reason="verl's trainer needs pip install -e '.[test,verl]'")

import pandas as pd
from transformers import AutoTokenizer
from verl_on_cpu.run import RECAST, Failed, reward_sampled, train
from verl_on_cpu.world import SIDS, make_world

from recast_ref import reference
from recast_ref.trainers.sids import Sids, pad_sids

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]
PASSES = ("old", "ref", "update")
STEPS, SAVED = 40, 38
NEGATIVE_WEIGHT = 0.2
VALIDATE = [f"trainer.test_freq={STEPS // 2}"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("verl"))


@pytest.fixture(scope="module")
def tokenizer(world):
    return AutoTokenizer.from_pretrained(world / "model")


@pytest.fixture(scope="module")
def catalogue(world):
    return (world / "catalogue.txt").read_text().split()


@pytest.fixture(scope="module")
def grpo(world):
    return Run(world, "grpo", VALIDATE, steps=STEPS)


@pytest.fixture(scope="module")
def recast(world):
    segments = ["+trainer.v1.sampler.sampler_kwargs.segment_key=segment"]
    return Run(world, "recast", [*VALIDATE, *segments, f"trainer.save_freq={SAVED}"], steps=STEPS)


@pytest.fixture(scope="module")
def resumed(world, recast):
    checkpoint = world / "checkpoints" / f"global_step_{SAVED}"
    resume = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={checkpoint}"]
    return Run(world, "recast", resume, steps=STEPS)


@pytest.fixture(scope="module")
def beams(world):
    """Two ranks, and the beams of a search in place of samples."""
    return Run(world, "recast", ["+actor_rollout_ref.rollout.custom.beams=8"], steps=2, ranks=2)


class Run:
    """What a run left behind, by step: ``metrics``; ``passes[kind]``, a list for each step of what each rank saw;
    ``groups``, the answers to each prompt of training by session; and ``greedy``, all of validation's.
    """

    def __init__(self, world, arm, overrides=(), steps=2, ranks=1):
        self.metrics, notes = train(world, arm, overrides, steps=steps, ranks=ranks)
        self.steps = sorted(self.metrics)
        self.passes = {}
        for kind in PASSES:
            its = [entry for entry in notes if entry["kind"] == kind]
            assert len(its) == ranks * len(self.steps)
            self.passes[kind] = {step: its[i * ranks : (i + 1) * ranks] for i, step in enumerate(self.steps)}
        self.groups, self.greedy = {step: collections.defaultdict(dict) for step in self.steps}, []
        for entry in notes:
            if entry["kind"] == "rollout" and entry["temperature"] == 0:
                self.greedy.append(entry)
            elif entry["kind"] == "rollout":
                # The weights of step s sample for step s + 1.
                self.groups[entry["step"] + 1][tuple(entry["prompt"])][entry["session"]] = entry["answer"]

    def seen(self, kind, step):
        """Rows that went into the model in this pass of this step, on any rank, in an order of their own."""
        return sorted((row for its in self.passes[kind][step] for row in its["seen"]), key=json.dumps)

    def curve(self):
        return [reward_sampled(self.metrics[step]) for step in self.steps]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


# ---- which rows


def test_only_pairs_reach_the_model(grpo, recast, beams):
    for name, run, ranks, rows in (("grpo", grpo, 1, 64), ("recast", recast, 1, 16), ("recast", beams, 2, 16)):
        for kind in PASSES:
            for step in run.steps:
                its = run.passes[kind][step]
                assert sorted(entry["rank"] for entry in its) == list(range(ranks))
                assert [entry["rows"] for entry in its] == [rows // ranks] * ranks
                seen = run.seen(kind, step)
                assert sum(entry["tokens"] for entry in its) == sum(len(r["prompt"]) + len(r["answer"]) for r in seen)
                # Where every answer of a group hits, verl fills up with rows that count for nothing.
                counted = [row for row in seen if row["counts"]]
                assert len(counted) == run.metrics[step].get("recast/rows_out", rows)
                assert set(collections.Counter(tuple(row["prompt"]) for row in counted).values()) == {rows // 8}
            tokens = mean(sum(entry["tokens"] for entry in run.passes[kind][step]) for step in run.steps)
            shape = " + ".join(str(entry["rows"]) for entry in run.passes[kind][run.steps[-1]])
            print(f"{name} on {ranks}: {kind} {shape} rows, {tokens:.0f} tokens a step")
        for part in ("gen", "old_log_prob", "ref", "update_actor", "step"):
            seconds = statistics.median(run.metrics[step][f"timing_s/{part}"] for step in run.steps)
            print(f"{name} on {ranks}: {part} {seconds:.3f} s, the median")


def targets_by_prompt(world, tokenizer):
    rows = pd.concat([pd.read_parquet(world / f"{split}.parquet") for split in ("train", "test")])
    prompts = [
        tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
        for prompt in rows["prompt"]
    ]
    return {
        tuple(tokenizer(prompt)["input_ids"]): (truth["ground_truth"], segment)
        for prompt, truth, segment in zip(prompts, rows["reward_model"], rows["segment"])
    }


@pytest.mark.parametrize("name", ["recast", "beams"])
def test_pairs_are_those_of_the_reference(name, request, world, tokenizer):
    """Of the groups that were sampled: their hits, who is repaired, and the pair that the update sees."""
    run, sids = request.getfixturevalue(name), Sids(SIDS)
    truth_of = targets_by_prompt(world, tokenizer)
    for step in run.steps:
        groups = run.groups[step]
        assert [sorted(answers) for answers in groups.values()] == [list(range(8))] * 8
        answers = [[group[i] for i in range(8)] for group in groups.values()]
        named = pad_sids([found for group in answers for found in sids.read_ids(tokenizer, group)], 3)
        truths = [truth_of[prompt] for prompt in groups]
        targets = pad_sids([sids.read(text) for text, _ in truths], 3)
        scores = reference.structural_scores(named.unflatten(0, (8, 8)), targets)
        rewards = (named.unflatten(0, (8, 8))[:, :, 0] == targets).all(dim=-1).float()
        slot, positive, negative, advantages = reference.recast(rewards, scores, negative_weight=NEGATIVE_WEIGHT)

        metrics = run.metrics[step]
        hits = rewards.sum(dim=1)
        for regime, share in (("all_zero", hits == 0), ("single_hit", hits == 1), ("multi_hit", hits > 1)):
            assert metrics[f"recast/{regime}"] == pytest.approx(share.float().mean().item())
        assert metrics["recast/reward_sampled"] == pytest.approx(rewards.mean().item())
        assert metrics["recast/repaired"] == pytest.approx((slot >= 0).float().mean().item())
        pairs = positive >= 0  # a group in which every answer hits has none: verl fills the batch up
        assert (metrics["recast/rows_in"], metrics["recast/rows_out"]) == (64, 2 * pairs.sum())
        if name == "recast":
            segments = [segment for _, segment in truths]
            for segment in set(segments):
                its = torch.tensor([own == segment for own in segments])
                share = (slot >= 0)[its].float().mean().item()
                assert metrics[f"recast/repaired/{segment}"] == pytest.approx(share)

        updated = collections.defaultdict(list)
        for row in run.seen("update", step):
            updated[tuple(row["prompt"])].append(row)
        for q, prompt in enumerate(groups):
            if not pairs[q]:
                assert prompt not in updated
                continue
            rows = sorted(updated[prompt], key=lambda row: row["advantages"][0])
            assert [row["counts"] for row in rows] == [len(row["answer"]) for row in rows]
            for row, member in zip(rows, (negative[q], positive[q])):
                assert torch.tensor(row["advantages"]).unique().tolist() == [advantages[q, member].item()]
            low, high = (row["answer"] for row in rows)
            own = tokenizer(truths[q][0])["input_ids"] + [tokenizer.eos_token_id]
            assert high == own and (slot[q] >= 0 or high in answers[q])
            # Which of several that score alike is left to the keys.
            alike = {tuple(answers[q][i]) for i in range(8) if scores[q, i] == scores[q, negative[q]]}
            assert tuple(low) in alike and low != own
        assert run.seen("old", step) == run.seen("ref", step)
        assert run.seen("old", step) == [row | {"advantages": None} for row in run.seen("update", step)]


def test_a_search_never_gives_the_same_answer_twice(beams, catalogue, tokenizer):
    every = {(*ids, tokenizer.eos_token_id) for ids in tokenizer(catalogue)["input_ids"]}
    for step in beams.steps:
        for answers in beams.groups[step].values():
            found = {tuple(answer) for answer in answers.values()}
            assert len(found) == 8 and found <= every
        assert beams.metrics[step]["recast/multi_hit"] == 0


# ---- what is learned


def test_all_zero_groups_teach_recast_and_not_grpo(grpo, recast, world, tokenizer):
    """From the same weights and the same prompts, GRPO's reward stays at chance, a hit in 2048 answers.

    In a plain loop over worlds 0 to 7, the mean of the last ten steps was 0.000 to 0.005 for GRPO, 0.17 to 0.43 for
    ReCast.
    """
    truth_of = targets_by_prompt(world, tokenizer)
    for name, run in (("grpo", grpo), ("recast", recast)):
        zero = [
            all(tokenizer.decode(answer[:-1]) != truth_of[prompt][0] for answer in group.values())
            for step in run.steps[:5]
            for prompt, group in run.groups[step].items()
        ]
        print(f"{name:>6s}  all-zero groups in the first five steps: {mean(zero):.2f}")
        print(f"{name:>6s}  sampled reward:", *(f"{mean(run.curve()[i : i + 4]):.3f}" for i in range(0, STEPS, 4)))
        assert mean(zero) > 0.8
    assert mean(grpo.curve()[-10:]) < 0.03
    assert mean(recast.curve()[-10:]) > 0.1


@pytest.mark.parametrize("path", ["README.md", "tutorials/10_in_your_trainer.md"])
def test_the_overrides_of_the_runs_are_those_that_are_printed(path):
    block = re.search(r"```\w+\n(trainer\.v1.*?)```", (Path(__file__).parents[1] / path).read_text(), re.S)[1]
    assert shlex.split(block) == RECAST


# ---- the platform


def test_sampler_and_engine_have_the_same_log_probs(grpo):
    """verl compares them itself: both are over the catalogue, or they would differ by far more than rounding."""
    differences = [grpo.metrics[step]["training/rollout_probs_diff_max"] for step in grpo.steps]
    print(f"rollout and old probabilities differ by at most {max(differences):.1e}")
    assert max(differences) < 1e-3
    # Of 2048 answers of four tokens. Over the whole vocabulary it would begin at log(78) a token.
    assert all(0 <= grpo.metrics[step]["actor/entropy"] <= math.log(2048) / 4 + 1e-3 for step in grpo.steps)


@pytest.mark.parametrize("name", ["grpo", "recast"])
def test_validation_is_greedy_and_not_cut(name, request, world, tokenizer):
    run, truth_of = request.getfixturevalue(name), targets_by_prompt(world, tokenizer)
    for step in (STEPS // 2, STEPS):
        asked = [entry for entry in run.greedy if entry["step"] == step]
        assert len(asked) == 32
        right = [tokenizer.decode(e["answer"][:-1]) == truth_of[tuple(e["prompt"])][0] for e in asked]
        assert run.metrics[step]["val-core/next_item/acc/mean@1"] == pytest.approx(mean(right))


def test_a_run_that_resumes_goes_on_as_if_it_had_not_stopped(recast, resumed):
    assert resumed.steps == list(range(SAVED + 1, STEPS + 1))
    for step in resumed.steps:
        assert resumed.groups[step] == recast.groups[step]
        for kind in PASSES:
            assert resumed.seen(kind, step) == recast.seen(kind, step)
        assert reward_sampled(resumed.metrics[step]) == reward_sampled(recast.metrics[step])


def test_a_run_that_fails_says_why(world):
    with pytest.raises(Failed, match="no_such_option"):
        train(world, "grpo", ["trainer.no_such_option=1"])
