"""ReCast inside TRL's GRPOTrainer, through the real trainer on the CPU. Skipped where TRL is not (extra ``trl``)."""

import gc
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

trl = pytest.importorskip("trl", reason="TRL's trainer needs pip install -e '.[test,trl]'")

import trl_tiny as tiny  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from recast_ref import reference  # noqa: E402
from recast_ref.trainers.sids import pad_sids  # noqa: E402
from recast_ref.trainers.trl import ReCastGRPOConfig, ReCastGRPOTrainer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
PLAIN = {"cls": GRPOTrainer, "config": GRPOConfig}
HERE = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Where the tiny model lies. One thread is fastest for it, and what is there already need not be collected each time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield tmp_path_factory.mktemp("trl")
    gc.unfreeze()
    torch.set_num_threads(threads)


def logs(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def different(completion_ids, **_):
    """A reward that no all-zero group comes of."""
    return [len(set(ids)) + 0.01 * sum(ids) for ids in completion_ids]


# ---- which rows


def test_only_pairs_reach_the_model(folder):
    options = {"per_device_train_batch_size": 64, "beta": 0.01, "num_iterations": 2, "max_steps": 2}
    for arm, rows in (("recast", 16), ("grpo", 64)):
        trainer = tiny.make(folder, arm=arm, **options)
        seen = tiny.count_rows(trainer)
        trainer.train()
        assert {name: seen[name] for name in ("old", "reference", "actor")} == {
            "old": [rows],
            "reference": [rows],
            "actor": [rows, rows],
        }
        assert max(seen["generate"]) == 64
        assert logs(trainer, "recast/actor_rows") == ([16] if arm == "recast" else [])


class Recorded(ReCastGRPOTrainer):
    """Keeps what was sampled, what went on, and what each gradient was made of."""

    def __init__(self, *arguments, **options):
        self.batches, self.micro, self.gradients = [], [], []
        super().__init__(*arguments, **options)
        self.add_callback(_Gradients(self))

    def _generate(self, prompts):
        output = super()._generate(prompts)
        if self._batch is not None:
            self.batches[-1].update(kept=list(zip(output[0], output[1], output[2])), world=weights(self))
        return output

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.model.training and self._batch is not None and self._batch.rewards is None:
            step = self.state.global_step, self._step % self.args.gradient_accumulation_steps
            self.batches.append({"step": step, "inputs": inputs, "answers": completion_ids_list, "rewards": rewards[:, 0]})
        return rewards

    def compute_loss(self, model, inputs, *arguments, **options):
        if model.training:
            prompts = [ids[mask.bool()].tolist() for ids, mask in zip(inputs["prompt_ids"][:, 0], inputs["prompt_mask"][:, 0])]
            real = (inputs["tool_mask"] * inputs["completion_mask"]).flatten(1).any(dim=1).tolist()
            kept = [prompt for prompt, counts in zip(prompts, real) if counts]
            self.micro.append({"batch": self.batches[-1], "prompts": kept, "weights": weights(self), "inputs": inputs})
        return super().compute_loss(model, inputs, *arguments, **options)


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()}


class _Gradients(TrainerCallback):
    def __init__(self, trainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        found = [p.grad for p in model.parameters() if p.requires_grad]
        self.trainer.gradients.append((torch.cat([g.flatten().clone() for g in found]), len(self.trainer.micro)))


def expected_pairs(trainer, batch):
    """``{prompt ids: (positive, negative)}`` as token ids, by ``reference.recast``, and the advantages ``(Q, G)``."""
    tokenizer, width = tiny.tokenizer_of(tiny.CODES), trainer.num_generations
    texts = tokenizer.batch_decode(batch["answers"], skip_special_tokens=False)
    named = pad_sids([tiny.codes(text) for text in texts], 3).unflatten(0, (-1, width))
    targets = pad_sids([tiny.codes("".join(row["targets"])) for row in batch["inputs"][::width]], 3)
    seed = (trainer.args.seed * 1_000_003 + batch["step"][0]) * 1_009 + batch["step"][1]
    keys = torch.rand(len(texts), generator=torch.Generator().manual_seed(seed)).view(-1, width)
    rewards = batch["rewards"].view(-1, width)
    chosen = reference.recast(
        rewards, reference.structural_scores(named, targets), weight=trainer.args.weight,
        negative_weight=trainer.args.negative_weight, tie_break=keys,
    )  # fmt: skip
    pairs = {}
    for q, (slot, positive, negative) in enumerate(zip(*(x.tolist() for x in chosen[:3]))):
        if positive >= 0:
            answers = list(batch["answers"][q * width : (q + 1) * width])
            if slot >= 0:
                answers[slot] = tokenizer(batch["inputs"][q * width]["targets"][0] + "<eos>")["input_ids"]
            prompt = tokenizer(batch["inputs"][q * width]["prompt"])["input_ids"]
            pairs[tuple(prompt)] = (answers[positive], answers[negative])
    return pairs, chosen.advantages


@pytest.mark.parametrize("negative_weight", [None, 0.2])
def test_the_pairs_and_advantages_are_those_of_recast_to_the_bit(folder, negative_weight):
    trainer = tiny.make(folder, Recorded, negative_weight=negative_weight, weight=0.5, max_steps=3)
    trainer.train()
    assert len(trainer.batches) == 3
    for batch, micro in zip(trainer.batches, trainer.micro):
        pairs, advantages = expected_pairs(trainer, batch)
        assert [(tuple(p), ids) for p, ids, _ in batch["kept"]] == [(p, ids) for p in pairs for ids in pairs[p]]
        assert all(all(mask) for _, _, mask in batch["kept"])
        given = {tuple(p): a for p, a in zip(micro["prompts"], micro["inputs"]["advantages"].tolist())}
        one, other = torch.tensor(0.5), torch.tensor(-(0.5 if negative_weight is None else negative_weight))
        assert given == {p: [one.item(), other.item()] for p in pairs}
    assert list(trainer._logs["advantages"]) == advantages.flatten().tolist()  # of all answers, for the table
    assert sum(trainer._logs["extra"]["repaired"]) == 4
    assert list(trainer._logs["rewards"]["hit_reward"]) == [0.0] * 32  # as sampled


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.04, "num_iterations": 2},
        {"steps_per_generation": 4, "per_device_train_batch_size": 8, "loss_type": "grpo", "entropy_coef": 0.01},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 16, "loss_type": "bnpo", "mask_truncated_completions": True},
    ],
    ids=["kl", "steps", "accumulation"],
)
def test_the_grpo_arm_is_grpo_trainer_bit_for_bit(folder, options):
    options = {"optim": "adamw_torch", "learning_rate": 1e-3, "max_steps": 5, "reward": different, **options}
    plain = tiny.make(folder, **PLAIN, **options)  # making a trainer seeds what it samples from
    before = tiny.parameters(plain)
    plain.train()
    ours = tiny.make(folder, arm="grpo", **options)
    ours.train()
    assert torch.equal(tiny.parameters(plain), tiny.parameters(ours)) and not torch.equal(tiny.parameters(plain), before)
    times = ("step_time", "runtime", "per_second")
    for one, other in zip(plain.state.log_history, ours.state.log_history, strict=True):
        for name, value in one.items():
            assert name.endswith(times) or other[name] == value, name


# ---- the gradient


LOSSES = ["grpo", "dapo", "dr_grpo", "luspo", "cispo", "sapo", "vespo"]


def answers(prompt, i):
    """Four prompts in a generation batch: to every fourth of all prompts each answer hits, so that its group is skipped."""
    a, b, c = HIT[prompt]
    if sum(map(ord, prompt)) % 4 == 0:
        return f"<a_{a}><b_{b}><c_{c}><eos>"
    near = f"<a_{a}><b_{b}>" if i == 3 else f"<a_{(a + i) % 8}><b_{i % 4}>"
    return near + f"<c_{(c + 1 + i % 3) % 4}>" + "<eos>" * (i % 2)


HIT = {row["prompt"]: tiny.codes(row["targets"][0])[0] for row in tiny.rows()}


def logps_of(model, prompt, answer):
    ids = torch.tensor([prompt + answer])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(dim=-1).gather(1, torch.tensor(answer)[:, None])[:, 0]


def row_loss(loss_type, logps, old, ref, advantage, beta):
    """The losses of one row's tokens, as their papers have them."""
    ratio = (logps - old).exp()
    if loss_type == "luspo":
        ratio = (logps - old).mean().exp()  # one for the sequence
    if loss_type == "cispo":
        loss = -ratio.clamp(max=0.2).detach() * advantage * logps  # TRL takes epsilon for the bound itself
    elif loss_type == "sapo":
        temperature = torch.where(advantage > 0, 1.0, 1.05)
        loss = -4 / temperature * torch.sigmoid(temperature * (ratio - 1)) * advantage
    elif loss_type == "vespo":
        w, good = ratio.log().sum().clamp(math.log(1e-8), 20).exp(), advantage >= 0
        k, spread = torch.where(good, 2.0, 3.0), torch.where(good, 3.0, 2.0)
        loss = -(w**k * (spread * (1 - w)).exp()).detach() * advantage * logps
    else:
        loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    if beta:  # TRL's use_bias_correction_kl, on by default: the KL times the ratio, with its gradient
        loss = loss + beta * ((ref - logps).exp() - (ref - logps) - 1) * ratio
    return loss


def plain_gradient(trainer, model, micro_steps):
    """A loop over the pairs of one optimizer step, one row at a time; nothing is padded and nothing made up."""
    args = trainer.args
    model.zero_grad()
    for micro in micro_steps:
        batch = micro["batch"]
        pairs, _ = expected_pairs(trainer, batch)
        rows, tokens = 2 * len(pairs), sum(len(answer) for pair in pairs.values() for answer in pair)
        share = args.steps_per_generation / args.gradient_accumulation_steps  # of its generation batch, in a step
        kept = [(prompt, answer) for prompt in micro["prompts"] for answer in pairs[tuple(prompt)]]
        with torch.no_grad():
            model.load_state_dict(batch["world"])
            olds = [logps_of(model, *row) for row in kept]
            model.load_state_dict(micro["weights"])
            refs = [logps_of(trainer.ref_model, *row) if args.beta else None for row in kept]
        for i, ((prompt, answer), old, ref) in enumerate(zip(kept, olds, refs)):
            advantage = torch.tensor((1.0, -0.5)[i % 2])
            if args.branch_point and i % 2:
                positive = kept[i - 1][1]
                same = [positive[: t + 1] == answer[: t + 1] for t in range(len(answer))]
                advantage = advantage * ~torch.tensor(same)
            logps = logps_of(model, prompt, answer)
            if args.gradient_accumulation_steps % (args.steps_per_generation * args.num_iterations) == 0:
                old = logps.detach()
            loss = row_loss(args.loss_type, logps, old, ref, advantage, args.beta).expand(len(answer))
            if args.loss_type in ("grpo", "sapo"):
                loss = loss.mean() / rows
            elif args.loss_type == "dr_grpo":
                loss = loss.sum() / (rows * args.max_completion_length)
            elif args.loss_type == "luspo":
                loss = loss.sum() / rows
            else:
                loss = loss.sum() / tokens
            (loss * share).backward()
    return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("branch_point", [False, True], ids=["", "branch"])
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_gradient_of_a_step_is_that_of_a_loop_over_its_pairs(folder, loss_type, beta, branch_point):
    """With old log-probs and without, with groups that are skipped, and with filler. The rows are dictated."""
    skipped = 0
    for iterations in (1, 2):
        for steps, accumulation in ((1, 1), (2, 1), (1, 2), (2, 2)):
            trainer = tiny.make(
                folder, Recorded, rollout_func=tiny.dictated(answers), loss_type=loss_type, beta=beta, negative_weight=0.5,
                branch_point=branch_point, num_iterations=iterations, steps_per_generation=steps, learning_rate=0.5,
                gradient_accumulation_steps=accumulation, per_device_train_batch_size=32 // steps, max_steps=3,
                importance_sampling_level="sequence" if loss_type == "luspo" else "token", logging_steps=3,
            )  # fmt: skip
            trainer.train()
            model, first = trainer.accelerator.unwrap_model(trainer.model), 0
            for gradient, last in trainer.gradients:
                expected = plain_gradient(trainer, model, trainer.micro[first:last])
                error = (gradient - expected).norm() / expected.norm().clamp(min=1e-9)
                assert error < 1e-4, (iterations, steps, accumulation, error)
                first = last
            skipped += sum(share > 0 for share in logs(trainer, "recast/skipped"))
    assert skipped


@pytest.mark.parametrize("arm", ["recast", "repair"])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_filler_changes_nothing(folder, loss_type, arm):
    """The same generation batch as one batch without filler, and as sixteen of which some hold nothing else."""
    options = {"rollout_func": tiny.dictated(answers), "loss_type": loss_type, "beta": 0.1, "arm": arm, "max_steps": 2}
    whole = tiny.make(folder, Recorded, **options)
    whole.train()
    split = {"steps_per_generation": 16, "gradient_accumulation_steps": 16, "per_device_train_batch_size": 2}
    parts = tiny.make(folder, Recorded, **options, **split)
    seen = tiny.count_rows(parts)
    parts.train()
    for (one, _), (other, _) in zip(whole.gradients, parts.gradients, strict=True):
        assert (one - other).norm() < 1e-5 * one.norm()
    rows = logs(whole, "recast/actor_rows")
    assert rows == logs(parts, "recast/actor_rows") and sum(seen["actor"]) > sum(rows)  # there was filler


@pytest.mark.parametrize("loss_type", LOSSES)
def test_where_all_groups_are_skipped_no_parameter_moves(folder, loss_type):
    """At beta > 0, away from the reference: plain GRPO pays the KL there."""
    for arm in ("recast", "grpo"):
        trainer = tiny.make(
            folder, arm=arm, beta=1.0, loss_type=loss_type, optim="adamw_torch", max_steps=2,
            rollout_func=tiny.dictated(lambda prompt, i: "<a_{}><b_{}><c_{}>".format(*HIT[prompt])),
        )  # fmt: skip
        with torch.no_grad():
            for p in trainer.model.parameters():
                p.mul_(1.1)
        before = tiny.parameters(trainer)
        trainer.train()
        assert torch.equal(tiny.parameters(trainer), before) == (arm == "recast")
        assert arm == "grpo" or logs(trainer, "recast/skipped") == [1.0, 1.0]


def test_skipped_groups_count_in_no_denominator(folder):
    """Two prompts that teach something give the same step with two beside them that do not."""
    teach = [row for row in tiny.rows() if sum(map(ord, row["prompt"])) % 4]
    silent = [row for row in tiny.rows() if sum(map(ord, row["prompt"])) % 4 == 0]
    for loss_type in LOSSES:
        gradients = []
        for rows in (teach[:2], teach[:2] + silent[:2]):
            trainer = tiny.make(
                folder, Recorded, rollout_func=tiny.dictated(answers), data=Dataset.from_list(rows), loss_type=loss_type,
                per_device_train_batch_size=8 * len(rows), max_steps=1,
            )  # fmt: skip
            trainer.train()
            gradients.append(trainer.gradients[0][0])
        assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm(), loss_type


# ---- the catalogue


SOME = tiny.SIDS[:3] + tiny.SIDS[5:40:3] + tiny.SIDS[-2:]  # items that share prefixes


@pytest.mark.parametrize("catalogue", [SOME, SOME[:1]], ids=["some", "one"])
def test_nothing_outside_the_catalogue_is_named_in_ten_thousand_answers(folder, catalogue):
    named = []

    def reward(completion_ids, **_):
        named.extend(tiny.tokenizer_of(tiny.CODES).batch_decode(completion_ids))
        return [float(len(named) % 3 == i % 3) for i in range(len(completion_ids))]

    data = Dataset.from_list([{**row, "targets": catalogue[:1]} for row in tiny.rows()])
    trainer = tiny.make(
        folder, reward=reward, data=data, catalogue=catalogue, per_device_train_batch_size=2000, max_steps=5,
        negative_weight=0.2, max_completion_length=5, temperature=1.5,
    )  # fmt: skip
    trainer.train()
    assert len(named) == 10_000 and set(named) <= {f"{sid}<eos>" for sid in catalogue}
    assert len(set(named)) == len(catalogue)
    assert "generate" not in vars(trainer.model)


def trie_logps(model, prompt, answer, allowed):
    """Log-probs of an answer's tokens among those that the catalogue allows after each prefix."""
    ids = torch.tensor([prompt + answer])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, len(prompt) - 1 : -1]
    inside = [sorted({a[t] for a in allowed if a[:t] == answer[:t]}) for t in range(len(answer))]
    return torch.stack([row[inside[t]].log_softmax(0)[inside[t].index(answer[t])] for t, row in enumerate(logits)])


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_every_log_prob_is_under_the_trie(folder, beta):
    """Old, reference and actor: the gradient of a step is that of a loop with the softmax over what is allowed."""
    tokenizer = tiny.tokenizer_of(tiny.CODES)
    allowed = tokenizer([f"{sid}<eos>" for sid in tiny.SIDS])["input_ids"]
    trainer = tiny.make(folder, Recorded, catalogue=tiny.SIDS, beta=beta, num_iterations=2, max_steps=4, temperature=0.8)
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model)
    for (gradient, last), micro in zip(trainer.gradients, trainer.micro):
        batch, inputs = micro["batch"], micro["inputs"]
        model.zero_grad()
        tokens = sum(len(answer) for _, answer, _ in batch["kept"])
        for i, (prompt, answer, _) in enumerate(batch["kept"]):
            with torch.no_grad():
                model.load_state_dict(batch["world"])
                old = scaled(trie_logps, model, prompt, answer, allowed)
                model.load_state_dict(micro["weights"])
                ref = scaled(trie_logps, trainer.ref_model, prompt, answer, allowed) if beta else None
            logps = scaled(trie_logps, model, prompt, answer, allowed)
            (row_loss("dapo", logps, old, ref, torch.tensor((1.0, -1.0)[i % 2]), beta).sum() / tokens).backward()
            assert answer in allowed
        expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        assert (gradient - expected).norm() < 1e-4 * expected.norm()
        assert inputs["old_per_token_logps"].max() <= 0


def scaled(logps, model, *row):
    """At the temperature of the test above."""

    class Scaled:
        def __call__(self, **inputs):
            output = model(**inputs)
            output.logits = output.logits / 0.8
            return output

    return logps(Scaled(), *row)


def test_beam_groups_are_different_answers(folder):
    """TRL's own num_beams gives as many equal rows; an eval batch is searched alike."""
    for catalogue in (None, SOME):
        seen = []

        def reward(completion_ids, **_):
            seen.append([tuple(ids) for ids in completion_ids])
            return [float(i % 8 == 1) for i in range(len(completion_ids))]

        data = Dataset.from_list([{**row, "targets": SOME[:1]} for row in tiny.rows()])
        trainer = tiny.make(
            folder, reward=reward, data=data, catalogue=catalogue, beam_groups=True, max_steps=2, eval_dataset=data.select(range(4)),
            eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=8,
        )  # fmt: skip
        trainer.train()
        assert len(seen) == 2 + 4
        for batch in seen:
            assert [len(set(batch[start : start + 8])) for start in range(0, len(batch), 8)] == [8] * (len(batch) // 8)
        if catalogue:  # the likeliest first, under the trie
            model, tokenizer = trainer.accelerator.unwrap_model(trainer.model), tiny.tokenizer_of(tiny.CODES)
            allowed = tokenizer([f"{sid}<eos>" for sid in SOME])["input_ids"]
            prompt = tokenizer(tiny.rows()[0]["prompt"])["input_ids"]
            ranked = sorted(allowed, key=lambda a: -trie_logps(model, prompt, a, allowed).sum())
            found = trainer._generate_single_turn([prompt] * 8, None, {}, 8)[0]
            assert found[0] == ranked[0]


# ---- learning


def greedy_hits(trainer, catalogue=None):
    """The share of 128 other prompts to which the likeliest answer is the target."""
    rows, tokenizer = tiny.rows(128, seed=1), tiny.tokenizer_of(tiny.CODES)
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    enc = tokenizer([row["prompt"] for row in rows], return_tensors="pt")["input_ids"]
    from recast_ref.trainers.sids import OnlyTheTrie

    extra = {"logits_processor": [OnlyTheTrie(trainer._trie)]} if catalogue else {}
    out = model.generate(input_ids=enc, attention_mask=torch.ones_like(enc), max_new_tokens=3, do_sample=False, **extra)
    model.train()
    texts = tokenizer.batch_decode(out[:, enc.shape[1] :])
    return sum(text == row["targets"][0] for text, row in zip(texts, rows)) / len(rows)


LEARN = {
    "per_device_train_batch_size": 128, "max_steps": 80, "learning_rate": 3e-3, "optim": "adamw_torch", "max_grad_norm": 1.0,
    "beta": 0.001, "logging_steps": 10,
}  # fmt: skip


def test_an_all_zero_start_becomes_learnable(folder):
    """From random weights: no answer of GRPO's hits, so it stays where it is."""
    recast, grpo = (tiny.make(folder, arm=arm, negative_weight=0.2, **LEARN) for arm in ("recast", "grpo"))
    before = tiny.parameters(grpo)
    grpo.train()
    recast.train()
    print("mean reward along the run: recast", logs(recast, "reward"), "grpo", logs(grpo, "reward"))
    assert logs(recast, "recast/all_zero")[0] > 0.95
    assert greedy_hits(grpo) < 0.1 and sum(logs(grpo, "reward")[-3:]) < 0.1
    assert greedy_hits(recast) > 0.4


class SamplerOnly(ReCastGRPOTrainer):
    """The catalogue for the sampler alone, with log-probs over the whole vocabulary, as elsewhere."""

    def _get_per_token_logps_and_entropies(self, *arguments, **options):
        return GRPOTrainer._get_per_token_logps_and_entropies(self, *arguments, **options)


def knows_the_format(folder):
    """The tiny model after a while of random histories followed by a random item and EOS: hits stay at chance."""
    trainer = tiny.make(folder)
    model, tokenizer = trainer.model.train(), tiny.tokenizer_of(tiny.CODES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(7)
    for _ in range(100):
        items = torch.randint(len(tiny.SIDS), (64, 5), generator=draw).tolist()
        ids = torch.tensor(tokenizer(["".join(tiny.SIDS[i] for i in row) + "<eos>" for row in items])["input_ids"])
        loss = model(input_ids=ids, labels=ids.clone().index_fill(1, torch.arange(12), -100)).loss
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    (folder / "format").mkdir(exist_ok=True)
    model.save_pretrained(folder / "format" / "model")
    tokenizer.save_pretrained(folder / "format" / "model")
    return folder / "format"


def test_a_catalogue_for_the_sampler_alone_collapses_and_for_both_it_does_not(folder):
    """80 steps from a base that knows the format, at the published weights; with a negative weight of 0.2 it learns."""
    base = knows_the_format(folder)
    found = {}
    for name, cls, options in (
        ("sampler only", SamplerOnly, {}),
        ("both, 0.2", ReCastGRPOTrainer, {"negative_weight": 0.2}),
    ):
        trainer = tiny.make(base, cls, catalogue=tiny.SIDS, **LEARN, **options)
        trainer.train()
        found[name] = greedy_hits(trainer, tiny.SIDS), max(logs(trainer, "kl"))
    print("greedy hits and largest KL:", found)
    assert found["sampler only"][0] < 0.2 and found["sampler only"][1] > 100
    assert found["both, 0.2"][0] > 0.6 and found["both, 0.2"][1] < 20
