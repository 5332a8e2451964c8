"""ReCast inside TRL's GRPOTrainer, through the real trainer on the CPU. Skipped where TRL is not (extra ``trl``)."""

import gc
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

trl = pytest.importorskip("trl", reason="TRL's trainer needs pip install -e '.[test,trl]'")

import trl_tiny as tiny  # noqa: E402
from datasets import Dataset, IterableDataset  # noqa: E402
from transformers import TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402
from trl_collapse import LEARN, collapse, greedy_hits, logs  # noqa: E402

from recast_ref import reference  # noqa: E402
from recast_ref.trainers.sids import pad_sids  # noqa: E402
from recast_ref.trainers.trl import ReCastGRPOConfig, ReCastGRPOTrainer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
PLAIN = {"cls": GRPOTrainer, "config": GRPOConfig}
HERE = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Where the tiny model lies. One thread is fastest for it, and what is there need not be collected each time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield tmp_path_factory.mktemp("trl")
    gc.unfreeze()
    torch.set_num_threads(threads)


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
            self.batches.append(
                {"step": step, "inputs": inputs, "answers": completion_ids_list, "rewards": rewards[:, 0]}
            )
        return rewards

    def compute_loss(self, model, inputs, *arguments, **options):
        if model.training:
            prompts = [
                ids[mask.bool()].tolist() for ids, mask in zip(inputs["prompt_ids"][:, 0], inputs["prompt_mask"][:, 0])
            ]
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
        {
            "gradient_accumulation_steps": 2,
            "per_device_train_batch_size": 16,
            "loss_type": "bnpo",
            "mask_truncated_completions": True,
        },
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
    assert torch.equal(tiny.parameters(plain), tiny.parameters(ours)) and not torch.equal(
        tiny.parameters(plain), before
    )
    times = ("step_time", "runtime", "per_second")
    for one, other in zip(plain.state.log_history, ours.state.log_history, strict=True):
        for name, value in one.items():
            assert name.endswith(times) or other[name] == value, name


# ---- the gradient


LOSSES = ["grpo", "dapo", "dr_grpo", "luspo", "cispo", "sapo", "vespo"]


def answers(prompt, i):
    """Four prompts in a generation batch: to every fourth prompt each answer hits: its group is skipped."""
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
                folder, Recorded, rollout_func=tiny.dictated(answers), loss_type=loss_type, beta=beta,
                negative_weight=0.5, branch_point=branch_point, num_iterations=iterations, steps_per_generation=steps,
                learning_rate=0.5, gradient_accumulation_steps=accumulation, per_device_train_batch_size=32 // steps,
                max_steps=3, importance_sampling_level="sequence" if loss_type == "luspo" else "token", logging_steps=3,
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
                folder, Recorded, rollout_func=tiny.dictated(answers), data=Dataset.from_list(rows),
                loss_type=loss_type, per_device_train_batch_size=8 * len(rows), max_steps=1,
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
    trainer = tiny.make(
        folder, Recorded, catalogue=tiny.SIDS, beta=beta, num_iterations=2, max_steps=4, temperature=0.8
    )
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model)
    for (gradient, _), micro in zip(trainer.gradients, trainer.micro):
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

        def reward(completion_ids, seen=seen, **_):
            seen.append([tuple(ids) for ids in completion_ids])
            return [float(i % 8 == 1) for i in range(len(completion_ids))]

        data = Dataset.from_list([{**row, "targets": SOME[:1]} for row in tiny.rows()])
        trainer = tiny.make(
            folder, reward=reward, data=data, catalogue=catalogue, beam_groups=True, max_steps=2,
            eval_dataset=data.select(range(4)), eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=8,
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


def test_an_all_zero_start_becomes_learnable(folder):
    """From random weights, in a vocabulary where an answer hits by chance once in 10^7, GRPO stays where it is."""
    words = tiny.CODES + [f"<z_{i}>" for i in range(200)]
    hits = {}
    for arm in ("grpo", "recast"):
        trainer = tiny.make(folder, arm=arm, negative_weight=0.2, words=words, **LEARN)
        before = tiny.parameters(trainer)
        trainer.train()
        hits[arm] = greedy_hits(trainer)
        print(arm, "mean reward along the run", logs(trainer, "reward"), "greedy hits", hits[arm])
        assert torch.equal(tiny.parameters(trainer), before) == (arm == "grpo")
    assert hits["grpo"] == 0 and hits["recast"] > 0.4


def test_a_catalogue_for_the_sampler_alone_collapses_and_for_both_it_does_not(folder):
    """``python tests/trl_collapse.py`` has more seeds."""
    found = {name: (hits, divergence) for name, hits, divergence in collapse(folder, seed=0)}
    print("greedy hits and largest KL:", found)
    hits, divergence = zip(*found.values())  # sampler only; both at 1 and 1; both at 1 and 0.2
    assert min(hits[1:]) > hits[0] + 0.1
    assert divergence[0] > 50 and max(divergence[1:]) < 10


# ---- several processes, LoRA, resuming


def test_two_processes_have_the_pairs_and_gradients_of_one(folder, tmp_path):
    """Over gloo. ``accelerate launch --cpu --num_processes 2`` starts one, so workers assert how many they are."""
    tiny.make(folder)  # the model is there before two processes look for it
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    found = {}
    for world in (1, 2):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"]
        command = [*launch, str(HERE / "trl_two_processes.py"), str(world), str(folder), str(tmp_path / f"{world}.pt")]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        found[world] = torch.load(tmp_path / f"{world}.pt", weights_only=True)
    assert found[1].keys() == found[2].keys()
    for name, one in found[1].items():
        two = found[2][name]
        assert one["pairs"] == two["pairs"] and one["shares"] == pytest.approx(two["shares"]), name
        for mine, other in zip(one["gradients"], two["gradients"], strict=True):
            assert (mine - other).norm() <= 1e-4 * mine.norm(), name
        assert any(mine.norm() > 0 for mine in one["gradients"])
        assert two["rows"][0] == two["rows"][1], name  # each process runs as many
    uneven = [counts for run in found[2].values() for counts in run["kept"] if counts[0] != counts[1]]
    assert uneven and any(0 in counts for counts in uneven)


def test_lora(folder):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    trainer = tiny.make(folder, peft_config=config, beta=0.01, num_iterations=2, catalogue=tiny.SIDS)
    seen, before = tiny.count_rows(trainer), weights(trainer)
    trainer.train()
    assert seen["old"] == [8, 8] * 2 and seen["actor"] == [8] * 3  # old, and the reference with the adapter off
    moved = {name for name, p in weights(trainer).items() if not torch.equal(p, before[name])}
    assert moved and all("lora_" in name for name in moved)
    assert all(math.isfinite(loss) for loss in logs(trainer, "grad_norm"))


def test_resuming_is_as_exact_as_in_trl(folder, tmp_path):
    """To the bit where a generation batch begins; inside one, TRL begins another, and so do we."""
    options = {"save_strategy": "steps", "optim": "adamw_torch", "learning_rate": 1e-3, "max_steps": 4}
    for cls, more in ((PLAIN, {"reward": different}), ({}, {}), ({}, {"catalogue": tiny.SIDS})):
        out = tmp_path / f"{len(more)}{len(cls)}"
        straight = tiny.make(folder, **cls, **options, **more, save_steps=2, output_dir=str(out))
        straight.train()
        resumed = tiny.make(folder, **cls, **options, **more, output_dir=str(out / "again"))
        resumed.train(resume_from_checkpoint=str(out / "checkpoint-2"))
        assert torch.equal(tiny.parameters(straight), tiny.parameters(resumed))
    inside = {"steps_per_generation": 4, "per_device_train_batch_size": 8, "save_steps": 2}
    tiny.make(folder, **options, **inside, output_dir=str(tmp_path / "inside")).train()
    resumed = tiny.make(folder, **options, **inside, output_dir=str(tmp_path / "more"))
    seen = tiny.count_rows(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "inside" / "checkpoint-2"))
    assert seen["old"] == [8] and seen["actor"] == [2, 2]


# ---- anchors, logs, data


@pytest.mark.parametrize(
    "answer, anchor",
    [
        ("<a_1><b_1><c_1><eos>", "{}<eos>"),
        ("<a_1><b_1><c_1><a_2>", "{}<eos>"),
        ("<a_1><a_2>", "{}<eos>"),  # no SID
        (
            "<think><a_1></think><|sid_begin|><a_1><b_1><c_1><|sid_end|><eos>",
            "<think><a_1></think><|sid_begin|>{}<|sid_end|><eos>",
        ),
        ("<a_3><b_1><c_1><a_1><b_1><c_1><eos>", "<a_3><b_1><c_1>{}<eos>"),  # the last of several
        ("<think></think><a_1><b_1><c_1>", "<think></think>{}<eos>"),
        ("<think><a_1><b_1><c_1><a_2><b_2><c_2><a_1>", "{}<eos>"),  # a thought without an answer
        ("<think><a_1></think><|sid_begin|><eos>", "<think><a_1></think>{}<eos>"),  # a thought, and no SID
        ("<a_1><b_1><c_1><|sid_end|><eos>", "{}<|sid_end|><eos>"),  # as MiniOneRec's line break
        ("<a_1><b_1><c_1><|sid_end|>", "{}<eos>"),  # it was cut
        ("<a_1><b_1><c_1><a_1><a_1><a_1><a_1><eos>", "{}<eos>"),  # longer than a SID
        # As long as allowed.
        (f"{5 * '<think>'}</think><a_1><b_1><c_1>", f"{5 * '<think>'}</think>{{}}"),
    ],
)
def test_the_anchor_is_the_target_in_place_of_the_last_sid(folder, answer, anchor):
    words, target = tiny.CODES + tiny.MARKS, "<a_7><b_3><c_0>"
    data = Dataset.from_list(
        [{"prompt": row["prompt"], "targets": [target, "<a_0><b_0><c_0>"]} for row in tiny.rows(8)]
    )
    options = {"words": words, "data": data, "max_completion_length": 9, "max_steps": 1}
    trainer = tiny.make(folder, Recorded, rollout_func=tiny.dictated(lambda p, i: answer, words), **options)
    if tiny.codes(answer.rpartition("</think>")[2]) == [] and "<think>" in answer:
        assert trainer._sids.find(trainer._tokenizer, trainer._encode([answer])[0]) is None
    trainer.train()
    texts = [tiny.tokenizer_of(words).decode(ids) for _, ids, mask in trainer.batches[0]["kept"] if all(mask)]
    assert texts == [anchor.format(target), answer] * 4


def kept_texts(trainer, words):
    """Of the first generation batch, the rows that count: positives and negatives in turn."""
    return [tiny.tokenizer_of(words).decode(ids) for _, ids, mask in trainer.batches[0]["kept"] if all(mask)]


def test_the_anchor_ends_as_the_answer_did(folder):
    """A model may have several ends; TRL takes them from its generation_config."""
    words = tiny.CODES + tiny.MARKS
    for answer, end in (("<a_1><b_1><c_1><|sid_end|>", "<|sid_end|>"), ("<a_1><b_1><c_1><|sid_begin|>", "<eos>")):
        dictated = tiny.dictated(lambda *_, answer=answer: answer, words)
        trainer = tiny.make(folder, Recorded, words=words, rollout_func=dictated)
        trainer.eos_token_ids = [*trainer._encode(["<|sid_end|>"])[0], *trainer.eos_token_ids]
        trainer.train()
        targets = [row["targets"][0] for row in trainer.batches[0]["inputs"][::8]]
        assert kept_texts(trainer, words)[::2] == [target + end for target in targets]


def test_a_thought_that_the_prompt_opens_goes_on_in_the_answer(folder):
    """As in chat templates that end in <think>: only what stands after </think> counts, in reward and in choosing."""
    words, truth = tiny.CODES + tiny.MARKS, "<a_7><b_3><c_0>"
    data = Dataset.from_list([{"prompt": row["prompt"] + "<think>", "targets": [truth]} for row in tiny.rows(8)])
    thought = {0: f"{truth}<eos>", 1: f"{truth}</think><a_1><b_1><c_1><eos>"}
    trainer = tiny.make(
        folder, Recorded, words=words, data=data, max_completion_length=8, max_steps=1, eval_dataset=data,
        rollout_func=tiny.dictated(lambda p, i: thought[i % 2], words), per_device_eval_batch_size=8,
    )  # fmt: skip
    trainer.train()
    assert not trainer.batches[0]["rewards"].any() and logs(trainer, "recast/contradicted") == [0.0]
    texts = kept_texts(trainer, words)
    assert set(texts[::2]) <= {f"</think>{truth}<eos>", f"{truth}</think>{truth}<eos>"}
    assert set(texts[1::2]) <= set(thought.values())
    assert trainer.evaluate()["eval_reward"] == 0
    thought[0] = f"</think>{truth}<eos>"
    assert trainer.evaluate()["eval_reward"] == 0.5


def test_an_anchor_under_a_catalogue_is_the_items_own_answer(folder):
    """With text around the SID, and as long as an answer may be."""
    words = tiny.CODES + tiny.MARKS
    for before, after, length in (("", "<|sid_end|>", 5), ("<|sid_begin|>", "<|sid_end|>", 6), ("", "", 3)):
        catalogue = [before + sid + after for sid in tiny.SIDS]
        options = {"words": words, "catalogue": catalogue, "max_completion_length": length, "max_steps": 1}
        trainer = tiny.make(folder, Recorded, **options)
        trainer.train()
        answers = {sid + "<eos>" * (length > 3) for sid in catalogue}
        kept = kept_texts(trainer, words)
        assert len(kept) == 8 and set(kept) <= answers and logs(trainer, "recast/repaired")[0] > 0


def test_an_anchor_of_the_users_own_gets_its_end(folder):
    data = Dataset.from_list([{**row, "truth": row["targets"][0]} for row in tiny.rows()])
    for length, end in ((4, "<eos>"), (3, "")):
        trainer = tiny.make(
            folder, Recorded, data=data, anchor_column="truth", max_completion_length=length, max_steps=1,
            rollout_func=tiny.dictated(lambda p, i: "<a_0><b_0><c_3>"),
        )  # fmt: skip
        trainer.train()
        truths = [row["truth"] + end for row in trainer.batches[0]["inputs"][::8]]
        assert kept_texts(trainer, tiny.CODES)[::2] == truths


def test_an_anchor_of_the_users_own(folder):
    rows = [{**row, "truth": f"<|sid_begin|>{row['targets'][0]}<|sid_end|><eos>"} for row in tiny.rows()]
    options = {"words": tiny.CODES + tiny.MARKS, "anchor_column": "truth", "max_steps": 1}
    trainer = tiny.make(folder, Recorded, data=Dataset.from_list(rows), max_completion_length=6, **options)
    trainer.train()
    kept = trainer.batches[0]["kept"]
    truths = {row["prompt"]: row["truth"] for row in rows}
    tokenizer = tiny.tokenizer_of(options["words"])
    assert [tokenizer.decode(ids) for _, ids, _ in kept[::2]] == [
        truths[tokenizer.decode(ids)] for ids, _, _ in kept[::2]
    ]
    for length, truth, words in (
        (5, None, "has 6 tokens, and max_completion_length=5"),
        (6, "<a_0><b_0><c_0>", "truth: expected an"),
    ):
        data = Dataset.from_list([{**row, "truth": truth or row["truth"]} for row in rows])
        with pytest.raises(ValueError, match=words):
            tiny.make(folder, data=data, max_completion_length=length, **options).train()


def test_the_logs(folder):
    trainer = tiny.make(
        folder, Recorded, rollout_func=tiny.dictated(answers), segment_column="taste", per_device_train_batch_size=64
    )
    trainer.train()
    for i, batch in enumerate(trainer.batches):
        hits = (batch["rewards"].view(-1, 8) > 0).sum(dim=1)
        pairs, _ = expected_pairs(trainer, batch)
        share = {
            "all_zero": hits == 0,
            "single_hit": hits == 1,
            "multi_hit": hits > 1,
            "repaired": hits == 0,
            "skipped": hits == 8,
        }
        for name, is_so in share.items():
            assert logs(trainer, f"recast/{name}")[i] == is_so.float().mean().item()
        assert logs(trainer, "recast/actor_rows")[i] == 2 * len(pairs)
        assert logs(trainer, "recast/contradicted")[i] == 0
        assert logs(trainer, "reward")[i] == batch["rewards"].mean().item()  # of all answers, before repair
        of = [row["taste"] for row in batch["inputs"][::8]]
        for name in set(of):
            mine = [bool(zero) for zero, segment in zip(hits == 0, of) if segment == name]
            assert trainer.state.log_history[i][f"recast/repaired/{name}"] == sum(mine) / len(mine)


def test_the_rows_that_run_are_logged(folder):
    for rows in (2, 32):
        trainer = tiny.make(
            folder, per_device_train_batch_size=rows, gradient_accumulation_steps=32 // rows, max_steps=1
        )
        seen = tiny.count_rows(trainer)
        trainer.train()
        assert logs(trainer, "recast/rows_run") == [sum(seen["actor"])] and logs(trainer, "recast/actor_rows") == [8]


def test_the_table_of_completions_marks_the_rows_that_were_repaired(folder):
    """Beside rows of an evaluation, which are in the same table."""
    trainer = tiny.make(
        folder, eval_dataset=Dataset.from_list(tiny.rows(2)), per_device_eval_batch_size=8, eval_strategy="steps",
        eval_steps=1, max_steps=2, rollout_func=tiny.dictated(lambda p, i: "<a_0><b_0><c_3>"),
    )  # fmt: skip
    trainer.train()
    advantages, repaired = trainer._logs["advantages"], trainer._logs["extra"]["repaired"]
    assert len(advantages) == len(repaired) and sum(repaired) > 0
    assert list(repaired) == [advantage > 0 for advantage in advantages]


def test_a_format_gate_is_seen(folder):
    """A reward that gives the exact target 0: the answer is never the negative of the anchor that names the same."""
    target = {row["prompt"]: row["targets"][0] for row in tiny.rows()}
    trainer = tiny.make(
        folder, Recorded, reward=lambda completions, **_: [0.0] * len(completions), max_steps=1,
        rollout_func=tiny.dictated(lambda prompt, i: (target[prompt] if i < 6 else "<a_0><b_0><c_3>") + "<eos>"),
    )  # fmt: skip
    trainer.train()
    assert logs(trainer, "recast/contradicted") == [1.0]
    texts = [tiny.tokenizer_of(tiny.CODES).decode(ids) for _, ids, _ in trainer.batches[0]["kept"]]
    assert texts[1::2] == ["<a_0><b_0><c_3><eos>"] * 4 and all(a != b for a, b in zip(texts[::2], texts[1::2]))


def test_streams_conversations_and_text_cells(folder):
    stream = Dataset.from_list(tiny.rows()).to_iterable_dataset()
    trainer = tiny.make(folder, data=stream, max_steps=2)
    trainer.train()
    assert logs(trainer, "recast/actor_rows") == [8, 8]
    tokenizer = tiny.tokenizer_of(tiny.CODES)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    talk = [
        {"prompt": [{"role": "user", "content": r["prompt"]}], "targets": " or ".join(r["targets"] * 2)}
        for r in tiny.rows()
    ]
    trainer = tiny.make(folder, data=Dataset.from_list(talk), processing_class=tokenizer, max_steps=2)
    trainer.train()
    assert logs(trainer, "recast/actor_rows") == [8, 8]


def test_a_row_without_targets_is_skipped(folder):
    data = Dataset.from_list(
        [{**row, "targets": row["targets"] if i % 2 else []} for i, row in enumerate(tiny.rows(4))]
    )
    trainer = tiny.make(folder, data=data, max_steps=1)
    trainer.train()
    assert logs(trainer, "recast/skipped") == [0.5] and logs(trainer, "recast/actor_rows") == [4]


def with_targets(*texts):
    return Dataset.from_list([{**row, "targets": list(texts)} for row in tiny.rows(8)])


CHAT = Dataset.from_list([{**r, "truth": [{"role": "assistant", "content": r["targets"][0]}]} for r in tiny.rows(8)])


@pytest.mark.parametrize(
    "options, words",
    [
        (
            {"data": Dataset.from_list([{"prompt": "<a_0>"}])},
            "targets_column: no column 'targets' in the train_dataset, only ['prompt']",
        ),
        ({"data": with_targets("B00001")}, "expected a SID such as"),
        ({"data": with_targets()}, "expected a SID such as"),
        (
            {"data": with_targets("B00001"), "sid_template": "<a_{}><b_{}><c_{}>"},
            "targets: expected SIDs such as <a_1><b_1><c_1>",
        ),
        ({"processing_class": tiny.tokenizer_of([])}, "comes back from the tokenizer as '<unk><unk><unk>'"),
        ({"processing_class": tiny.tokenizer_of(tiny.CODES[:-1])}, "add the code tokens to its vocabulary"),
        ({"max_completion_length": 2}, "has 3 tokens, and max_completion_length=2"),
        ({"data": Dataset.from_list([{"prompt": "<a_0>", "targets": [1, 2, 3]}])}, "targets: expected SIDs as text"),
        ({"segment_column": "tast"}, "segment_column: no column 'tast' in the train_dataset"),
        ({"anchor_column": "truth"}, "anchor_column: no column 'truth' in the train_dataset"),
        ({"data": CHAT, "anchor_column": "truth"}, "truth: expected the whole answer as one text, no chat messages"),
        (
            {"eval_dataset": Dataset.from_list([{"prompt": "<a_0>"}])},
            "targets_column: no column 'targets' in the eval_dataset",
        ),
        ({"max_completion_length": None}, "max_completion_length: expected a number"),
        ({"catalogue": tiny.SIDS[0]}, "catalogue: expected a list of texts"),
        ({"catalogue": [(1, 2, 3)]}, "catalogue: expected a list of texts"),
        (
            {"catalogue": [*tiny.SIDS, "<|sid_begin|>" + tiny.SIDS[0]], "words": tiny.CODES + tiny.MARKS},
            "catalogue: '<a_0><b_0><c_0>' and '<|sid_begin|><a_0><b_0><c_0>' name the same SID",
        ),
        ({"catalogue": [tiny.SIDS[0] * 2], "max_completion_length": 8}, "catalogue: expected texts that name one SID"),
        ({"catalogue": tiny.SIDS, "repetition_penalty": 1.2}, "['repetition_penalty'] (of args"),
        ({"catalogue": tiny.SIDS, "generation_kwargs": {"min_new_tokens": 4}}, "['min_new_tokens'] (of args"),
        ({"catalogue": []}, "catalogue: expected at least one item"),
        ({"catalogue": tiny.SIDS[:3]}, "is not in the catalogue, so it can never be named"),
        ({"catalogue": tiny.SIDS + ["<a_1>"]}, "catalogue: '<a_1>' comes back"),
        (
            {"catalogue": tiny.SIDS[:3], "beam_groups": True, "data": with_targets(tiny.SIDS[0])},
            "8 different beams need as many items",
        ),
        ({"catalogue": tiny.SIDS, "rollout_func": tiny.dictated(answers)}, "rollout_func: it samples by itself"),
        ({"data": with_targets(tiny.SIDS[0]).add_column("image", [None] * 8)}, "images: rows with images"),
        (
            {"reward": lambda completions, **_: [math.nan] * len(completions)},
            "every function answered None or NaN for answer 0",
        ),
        (
            {"reward": lambda completions, **_: [None] * len(completions)},
            "every function answered None or NaN for answer 0",
        ),
        (
            {"reward": lambda completions, **_: [math.inf] * len(completions)},
            "rewards: expected finite values, got inf",
        ),
    ],
)
def test_bad_data_is_named(folder, options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        tiny.make(folder, max_steps=1, **options).train()


def test_a_reward_function_that_does_not_apply_counts_as_nothing(folder):
    both = [lambda completions, **_: [None] * len(completions), lambda completions, **_: [0.0] * len(completions)]
    trainer = tiny.make(folder, reward=both, max_steps=1)
    trainer.train()
    assert logs(trainer, "recast/repaired") == [1.0]


@pytest.mark.parametrize(
    "bad, options, words",
    [
        ({"targets": ["B00001"]}, {}, "targets: expected SIDs such as .* got"),
        ({"targets": tiny.SIDS[:1]}, {"catalogue": tiny.SIDS[1:]}, "targets: <a_0><b_0><c_0> is not in the catalogue"),
        ({"taste": 5}, {"anchor_column": "taste"}, "taste: expected the whole answer as one text"),
    ],
)
def test_a_bad_row_of_a_stream_is_named_when_it_comes_up(folder, bad, options, words):
    rows = [{**row, "taste": row["targets"][0]} for row in tiny.rows(8)]
    rows[5].update(bad)
    stream = IterableDataset.from_generator(lambda: iter(rows))
    with pytest.raises(ValueError, match=words):
        tiny.make(folder, data=stream, max_steps=8, shuffle_dataset=False, **options).train()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"arm": "both"}, "arm: expected one of recast, repair, contrast, grpo"),
        ({"loss_type": "bnpo"}, "loss_type='bnpo': it averages over the tokens of each micro-batch"),
        ({"mask_truncated_completions": True}, "mask_truncated_completions: it would mask"),
        ({"entropy_coef": 0.01}, "entropy_coef, use_adaptive_entropy: the bonus averages"),
        ({"scale_rewards": "batch"}, "scale_rewards='batch'"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "a pair is chosen by the sum of the rewards"),
        ({"arm": "repair", "branch_point": True}, "branch_point: needs pairs"),
        ({"generation_kwargs": {"num_beams": 8}}, "groups by beam search are beam_groups=True"),
        ({"weight": 0.0}, "weight, negative_weight: expected finite numbers"),
        ({"negative_weight": -1.0}, "weight, negative_weight: expected finite numbers"),
        ({"generation_kwargs": {"allowed_token_ids": [3]}}, "give the trainer catalogue=, which is for both"),
        ({"beam_groups": True, "temperature": 0.8}, "beams are ranked at temperature=1, got 0.8"),
        ({"generation_kwargs": {"suppress_tokens": [3]}}, "give the trainer catalogue=, which is for both"),
        (
            {"beam_groups": True, "use_transformers_continuous_batching": True},
            "only transformers' own generate searches beams",
        ),
    ],
)
def test_options_that_cannot_work_say_so_at_the_start(tmp_path, options, words):
    settings = {"per_device_train_batch_size": 8, "num_generations": 8, "use_cpu": True, "bf16": False, **options}
    with pytest.raises(ValueError, match=re.escape(words)):
        ReCastGRPOConfig(str(tmp_path), **settings)
    if "arm" not in options and "beam_groups" not in options:
        ReCastGRPOConfig(str(tmp_path), **settings, arm="grpo")  # TRL's own trainer takes it


def test_generation_that_is_constrained_in_another_way_is_refused(folder):
    data = Dataset.from_list(tiny.rows())
    args = ReCastGRPOConfig(
        str(folder / "out"), per_device_train_batch_size=8, num_generations=8, use_cpu=True, bf16=False
    )
    options = {"args": args, "train_dataset": data, "processing_class": tiny.tokenizer_of(tiny.CODES)}
    replaced, told = tiny.make(folder).model, tiny.make(folder).model
    replaced.generate = replaced.generate
    with pytest.raises(ValueError, match="model.generate was replaced: an option of the sampler alone"):
        ReCastGRPOTrainer(replaced, **options)
    told.generation_config.update(suppress_tokens=[5], guidance_scale=1.0, bad_words_ids=[])
    with pytest.raises(ValueError, match=re.escape("model.generation_config: ['suppress_tokens']: an option of")):
        ReCastGRPOTrainer(told, **options)
    told.generation_config.update(suppress_tokens=None, min_length=9)
    ReCastGRPOTrainer(told, **options)
    with pytest.raises(ValueError, match=re.escape("['min_length'] (of args, generation_kwargs or model")):
        ReCastGRPOTrainer(told, **options, catalogue=tiny.SIDS)


def test_an_evaluation_in_which_a_group_does_not_fit_is_refused(folder):
    rows = Dataset.from_list(tiny.rows(8))
    trainer = tiny.make(folder, beam_groups=True, num_generations=16, per_device_eval_batch_size=8, eval_dataset=rows)
    with pytest.raises(ValueError, match="beam_groups: expected whole groups of 16 in a process, got 8 rows"):
        trainer.evaluate()


def test_log_probs_under_the_trie_are_divided_by_the_temperature_in_float32(folder):
    """As the sampler does."""
    trainer = tiny.make(folder, catalogue=tiny.SIDS, temperature=0.7)
    ids = torch.tensor(trainer._encode([tiny.SIDS[9] + tiny.SIDS[35] + "<eos>"]))
    logits = 12 * torch.randn(1, 5, len(trainer._tokenizer), generator=torch.Generator().manual_seed(0)).bfloat16()
    found = []
    for given in (logits, logits.float()):

        def model(given=given, **_):
            return SimpleNamespace(logits=given)

        mask = torch.ones_like(ids)
        found.append(trainer._get_per_token_logps_and_entropies(model, ids, mask, 4, compute_entropy=True)[0])
    assert torch.equal(*found)


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1800, check=False)


def test_importing_names_the_extra_and_the_tested_range_and_compiles_nothing():
    missing = python("import sys; sys.modules['trl'] = None; import recast_ref.trainers.trl")
    assert 'pip install -e ".[trl]"' in missing.stderr.splitlines()[-1]
    other = python("import trl; trl.__version__ = '1.15.0'; import recast_ref.trainers.trl")
    assert "tested with trl>=1.16.0,<1.17.0, this is 1.15.0" in other.stderr.splitlines()[-1]
    plain = python(
        "import sys, recast_ref.trainers.trl; assert not {'recast_ref.fast', 'recast_ref.auto'} & set(sys.modules)"
    )
    assert plain.returncode == 0, plain.stderr


def test_the_example_draws_both_curves(tmp_path, capsys):
    from recast_ref.trainers import trl_example

    assert trl_example.main(["--steps", "3", "--prompts", "2", "--out", str(tmp_path / "curves.png")]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "curves.png").stat().st_size > 1000
    for arm in ("grpo", "recast"):
        assert re.search(rf"^ *{arm}( +\d+\.\d){{4}}   [▁▂▃▄▅▆▇█]{{4}}$", printed, re.M), printed
    with pytest.raises(SystemExit):
        trl_example.main(["--world", str(tmp_path / "nowhere")])
    assert "no world at" in capsys.readouterr().err


def test_the_lines_in_the_readme_train(folder, tmp_path, monkeypatch):
    """As printed, but on the CPU, with a model, a dataset, a tokenizer and a catalogue."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (HERE.parent / "README.md").read_text(), re.M | re.S)
    lines = [block for block in blocks if "ReCastGRPOTrainer" in block]
    assert len(lines) == 1
    monkeypatch.chdir(tmp_path)
    tiny.make(folder)
    model = str(next(folder.glob("model*")))
    given = {
        "model": model,
        "dataset": Dataset.from_list(tiny.rows(8)),
        "tokenizer": tiny.tokenizer_of(tiny.CODES),
        "sids": tiny.SIDS,
    }
    exec(lines[0].replace('"out"', '"out", use_cpu=True'), given)
    assert list((tmp_path / "out").glob("checkpoint-*"))
