"""OpenOneRec's own ``fit()`` with their trainer and with ``ReCastTrainer``, and what reaches the workers.

For a maintainer, with a checkout of OpenOneRec, on CPU::

    python -m venv v
    v/bin/pip install torch==2.13.0 -e . ray hydra-core tensordict torchdata transformers datasets pandas peft \\
        accelerate codetiming wandb dill
    v/bin/python tests/onerec_seam.py path/to/OpenOneRec [--steps N]

A copy of ``verl_rl`` gets the ``main_recast.py`` and ``run_recast.sh`` that the docstring of
``recast_ref/trainers/onerec.py`` says how to make, and is run from its own settings. Theirs are the configuration,
``main``, dataset, two-stage rollout, reward, ``fit()`` and estimator; stubs stand for vLLM (thoughts and beams are
drawn at random), for the workers (they count rows) and for Ray. Prints the rows of each pass; exit code 0 if all holds,
else 1 with what does not.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock, patch

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", HF_DATASETS_DISABLE_PROGRESS_BARS="1")

import numpy as np
import pandas
import torch
from hydra import compose, initialize_config_dir
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from recast_ref import reference

GPUS, PROMPTS, BEAMS, CODES = 4, 8, 16, 6
KINDS = ("a near miss", "a hit", "two hits", "a thought cut off", "no target")
SETTINGS = [
    *("data.max_prompt_length=16", "data.max_response_length=40", f"data.train_batch_size={PROMPTS}"),
    *("data.dataloader_num_workers=0", "trainer.device=cpu", "trainer.logger=[console]", "trainer.resume_mode=disable"),
    *("trainer.val_before_train=False", "trainer.test_freq=-1", "trainer.save_freq=-1"),
]
MINI = f"actor_rollout_ref.actor.ppo_mini_batch_size={2 * PROMPTS}"
REFUSED = {  # override -> what the message must name
    "actor_rollout_ref.rollout.n=3": "set actor_rollout_ref.actor.ppo_mini_batch_size=6",
    "actor_rollout_ref.rollout.n=32": "make 2 * data.train_batch_size a multiple of rollout.n=32",
    "actor_rollout_ref.actor.ppo_mini_batch_size=32": "divided",
    "actor_rollout_ref.actor.use_dynamic_bsz=False": "set it to True",
    "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean": "NaN",
    "actor_rollout_ref.actor.strategy=megatron": "strategy=fsdp2",
    "actor_rollout_ref.rollout.calculate_log_probs=True": "calculate_log_probs=False",
    "algorithm.adv_estimator=rloo": "adv_estimator=grpo",
    "algorithm.adv_estimator=gae": "critic",
    "algorithm.use_kl_in_reward=True": "use_kl_loss=True",
    "data.train_batch_size=9": "multiple of 2",
    "reward_model.enable=True": "custom_reward_function",
    "trainer.balance_batch=False": "balance_batch=True",
    "+enable_sid_ppl_reward=True": "enable_sid_ppl_reward=False",
    "+recast.arm=grpo": "recast, repair, contrast",
    "+recast.arms=recast": "negative_weight",
}


def hold(condition, message):
    if not condition:
        sys.exit(f"does not hold: {message}")


def set_up(checkout, folder):
    """A copy of ``verl_rl`` with the two files of the docstring, first on the path; returns its folder."""
    root = folder / "verl_rl"
    shutil.copytree(checkout / "verl_rl", root)
    sys.path.insert(0, str(root))
    for name in ("", ".lora", ".lora.request", ".distributed", ".model_executor", ".worker", ".sampling_params"):
        sys.modules["vllm" + name] = MagicMock()
    for name in ("vllm.model_executor.sampling_metadata", "vllm.worker.worker_base", "zmq"):
        sys.modules[name] = MagicMock()
    options = ModuleType("vllm.sampling_params")
    options.BeamSearchParams = sys.modules["vllm"].SamplingParams = SimpleNamespace
    sys.modules["vllm.sampling_params"] = options
    metadata = folder / "vllm-0.8.5.dist-info" / "METADATA"  # their package asks for its version
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.8.5\n")
    sys.path.append(str(folder))

    from recast_ref.trainers import onerec

    commands = re.search(r"^    sed .*?(?=^\S)", onerec.__doc__, re.M | re.S)[0]
    subprocess.run(["bash", "-e", "-c", commands], cwd=root, check=True)
    return root


def arguments_of(script, folder, *overrides):
    """What ``run_grpo.sh``, or ours, gives to python: the module, and its overrides."""
    functions = folder / "functions.sh"
    functions.write_text(
        f'conda() {{ :; }}\npython() {{ echo "1 {GPUS}"; }}\npython3() {{ printf "%s\\n" "$@" > "$ARGUMENTS"; }}\n'
    )
    settings = {"BASE_MODEL": str(folder / "model"), "DATA_DIR": str(folder / "data"), "STAGE2_BEAM_SIZE": str(BEAMS)}
    environment = {**os.environ, **settings, "BASH_ENV": str(functions), "ARGUMENTS": str(folder / "arguments")}
    command = ["bash", str(script), *overrides]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    _, _, module, *given = (folder / "arguments").read_text().splitlines()
    return module, given


def make_model(folder):
    """A tokenizer in the form of Qwen3's: an end of turn, padding that also ends an answer, a chat template."""
    words = ["<|endoftext|>", "<|im_end|>", "<|im_start|>", "<unk>", "<think>", "</think>", "<|sid_begin|>"]
    words += ["<|sid_end|>", "\n", "hmm", *(f"q{i}" for i in range(100))]
    words += [f"<s_{level}_{code}>" for level in "abc" for code in range(CODES)]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex(r"<[^>]*>|\n|hmm|q[0-9]+"), "isolated")
    plain.decoder = decoders.Fuse()
    special = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, **special)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    tokenizer.save_pretrained(folder / "model")
    (folder / "model" / "config.json").write_text('{"model_type": "qwen3"}')


def sid_text(sid):
    return "".join(f"<s_{level}_{code}>" for level, code in zip("abc", sid))


def targets_of(prompt):
    """The targets of prompt ``q<prompt>``: none for the last of KINDS, two for some."""
    draw = np.random.default_rng(prompt)
    first = tuple(draw.integers(CODES, size=3).tolist())
    second = (*first[:2], (first[2] + 1) % CODES)
    return {"no target": [], "two hits": [first, second]}.get(kind_of(prompt), [first])


def kind_of(prompt):
    return KINDS[prompt % len(KINDS)]


def make_data(folder, rows):
    """Parquet files in the recipe's form."""
    data = []
    for i in range(rows):
        answer = "".join(f"<|sid_begin|>{sid_text(sid)}<|sid_end|>" for sid in targets_of(i)) or "hmm"
        turns = [("user", f"q{i}"), ("assistant", answer)]
        messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
        source = ("RecIF_VideoRec", "RecIF_AdRec")[i % 2]
        data.append({"source": source, "uuid": str(i), "messages": json.dumps(messages), "metadata": "{}"})
    (folder / "data").mkdir()
    for name in ("train", "test"):
        pandas.DataFrame(data).to_parquet(folder / "data" / f"{name}.parquet")


class Engine:
    """In vLLM's place: thoughts and beams drawn by prompt, and the same for every trainer."""

    def __init__(self, tokenizer):
        self.tokenizer, self.asked = tokenizer, {}

    def get_tokenizer(self):
        return self.tokenizer

    def prompt_of(self, ids):
        return int(re.search(r"q([0-9]+)", self.tokenizer.decode(ids))[1])

    def generate(self, prompts, **_):
        for prompt in prompts:
            thought = "<think>" + "hmm" * 4 + "</think>"
            if kind_of(self.prompt_of(prompt["prompt_token_ids"])) == "a thought cut off":
                thought = "<think>" + "hmm" * 9
            ids = self.tokenizer(thought, add_special_tokens=False)["input_ids"]
            yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids)])

    def beam_search(self, prompts, params):
        for prompt in prompts:
            ids = prompt["prompt_token_ids"]
            number = self.prompt_of(ids)
            self.asked[number] = self.asked.get(number, 0) + 1
            draw = np.random.default_rng((number, self.asked[number]))
            targets = targets_of(number)
            every = np.stack(np.unravel_index(draw.permutation(CODES**3), (CODES,) * 3), axis=1).tolist()
            sids = [tuple(sid) for sid in every if tuple(sid) not in targets][: params.beam_width]
            hits = {"a hit": 1, "two hits": 2, "a thought cut off": 1}.get(kind_of(number), 0)
            for place, target in zip(draw.permutation(len(sids)), targets[:hits]):
                sids[place] = target
            codes = [self.tokenizer(sid_text(sid), add_special_tokens=False)["input_ids"] for sid in sids]
            yield SimpleNamespace(sequences=[SimpleNamespace(tokens=ids + its) for its in codes])


class Workers:
    """In the place of the GPUs' workers: their rollout, and passes that only count."""

    world_size = GPUS

    def __init__(self, config, tokenizer):
        from recipe.onerec.onerec_vllm_rollout import OneRecvLLMRollout

        self.config, self.tokenizer = config.actor_rollout_ref, tokenizer
        self.rollout = OneRecvLLMRollout.__new__(OneRecvLLMRollout)
        self.rollout.config, self.rollout.lora_kwargs = self.config.rollout, {}
        self.rollout.pad_token_id, self.rollout.inference_engine = tokenizer.pad_token_id, Listed(Engine(tokenizer))
        self.sampled, self.passes, self.updates = [], [], []

    def generate_sequences(self, prompts):
        from verl import DataProto

        parts = prompts.chunk(GPUS)
        for part in parts:  # as in generation_config.json of Qwen3
            part.meta_info["eos_token_id"] = [self.tokenizer.eos_token_id, self.tokenizer.pad_token_id]
        batch = DataProto.concat([self.rollout.generate_sequences(part) for part in parts])
        self.sampled.append(batch.select(deepcopy=True))
        batch.meta_info["timing"] = {}
        return batch

    def _log_probs(self, name, batch):
        self.passes.append((name, len(batch), int(batch.batch["attention_mask"].sum())))
        return torch.full(batch.batch["responses"].shape, -2.0)

    def compute_log_prob(self, batch):
        from verl import DataProto

        logps = self._log_probs("old", batch)
        return DataProto.from_dict({"old_log_probs": logps, "entropys": -logps})

    def compute_ref_log_prob(self, batch):
        from verl import DataProto

        return DataProto.from_dict({"ref_log_prob": self._log_probs("ref", batch)})

    def update_actor(self, batch):
        from verl import DataProto

        self._log_probs("update", batch)
        self.updates.append(batch.select(deepcopy=True))
        return DataProto(meta_info={"metrics": {"actor/pg_loss": [0.0]}})

    def optimizer_steps(self, batch):
        """The rows of each, over all GPUs, as ``fsdp_workers.py`` and ``dp_actor.py`` cut a batch."""
        mini = self.config.actor.ppo_mini_batch_size * self.config.rollout.n // GPUS
        ranks = torch.arange(len(batch)).chunk(GPUS)
        return [torch.cat(rows).tolist() for rows in zip(*(rank.split(mini) for rank in ranks))]


class Listed:
    """vLLM answers with lists."""

    def __init__(self, engine):
        self.engine, self.get_tokenizer = engine, engine.get_tokenizer

    def generate(self, *arguments, **options):
        return list(self.engine.generate(*arguments, **options))

    def beam_search(self, *arguments, **options):
        return list(self.engine.beam_search(*arguments, **options))


class Run:
    """One training from ``main`` on."""

    def __init__(self, root, module, overrides):
        import verl.utils.tracking
        from recipe.onerec.onerec_ray_trainer import RayPPOTrainer

        self.logs = []

        class Tracking:  # in the place of the console and wandb
            def __init__(tracking, **_):
                pass

            def log(tracking, data, step):
                self.logs.append(data)

        def init_workers(trainer):
            self.trainer, self.workers = trainer, Workers(trainer.config, trainer.tokenizer)
            trainer.actor_rollout_wg = trainer.ref_policy_wg = self.workers
            trainer.async_rollout_mode = False

        verl.utils.tracking.Tracking, RayPPOTrainer.init_workers = Tracking, init_workers
        main = importlib.import_module(module)
        said = io.StringIO()
        try:
            with (
                contextlib.redirect_stdout(said),
                contextlib.redirect_stderr(said),
                patch("os.cpu_count", return_value=None),  # their dataset starts as many processes
            ):
                main.OneRecTaskRunner.__ray_metadata__.modified_class().run(configuration(root, overrides))
        except BaseException:
            print(said.getvalue()[-4000:])
            raise

    def describe(self, name):
        for step, update in enumerate(self.workers.updates):
            rows = ", ".join(f"{name} {rows} rows {tokens} tokens" for name, rows, tokens in self.passes(step))
            print(f"{name:14s} step {step + 1}: {rows}; {len(self.workers.optimizer_steps(update))} optimizer steps")

    def passes(self, step):
        return self.workers.passes[3 * step : 3 * step + 3]


def configuration(root, overrides):
    with initialize_config_dir(str(root / "verl" / "trainer" / "config"), version_base=None):
        return compose("ppo_trainer", overrides=overrides)


def check_pairs(run, weights, branch_point):
    """What each update of ours got, against :mod:`recast_ref.reference` on the groups that were sampled."""
    from recipe.onerec.onerec_recipe import compute_score

    tokenizer = run.trainer.tokenizer
    seen = dict.fromkeys(KINDS, 0)
    for sampled, update in zip(run.workers.sampled, run.workers.updates):
        groups = {}
        for row, prompt in enumerate(sampled.batch["prompts"].tolist()):
            groups.setdefault(tuple(prompt), []).append(row)
        kept = {}
        for row, prompt in enumerate(update.batch["prompts"].tolist()):
            kept.setdefault(tuple(prompt), []).append(row)
        hold(groups.keys() == kept.keys() and len(groups) == PROMPTS, "every prompt stays")
        for prompt, rows in groups.items():
            number = int(re.search(r"q([0-9]+)", tokenizer.decode(prompt))[1])
            its, kind, targets = kept[prompt], kind_of(number), targets_of(number)
            seen[kind] += 1
            hold(len(its) == 2, f"two rows for {kind}, got {len(its)}")
            truth = update.non_tensor_batch["reward_model"][its[0]]["ground_truth"]
            texts = [text_of(tokenizer, sampled, row) for row in rows]
            rewards = torch.tensor([[compute_score("", text, truth, {})["score"] for text in texts]])
            named = [sids_of(text) for text in texts]
            predictions = torch.tensor([[sids or [(-1,) * 3] for sids in named]])
            scores = reference.structural_scores(predictions, torch.tensor([targets or [(-1,) * 3]]))
            advantages = update.batch["advantages"] * update.batch["response_mask"]
            if kind == "no target":
                hold(not update.batch["response_mask"][its].any(), "a prompt without a pair counts no token")
                continue
            its.sort(key=lambda row: -advantages[row].sum())
            positive, negative = (int(update.non_tensor_batch["_beam_indices"][row]) for row in its)
            ties = torch.zeros(1, len(rows)).index_put(
                (torch.tensor([0, 0]), torch.tensor([positive, negative])), torch.tensor([2.0, 1.0])
            )
            slot, wanted, other, _ = reference.recast(rewards, scores, torch.tensor([True]), tie_break=ties)
            hold(
                (wanted.item(), other.item()) == (positive, negative),
                f"{kind}: the pair is {(positive, negative)}, and of reference.recast {(wanted.item(), other.item())}",
            )
            repaired = kind in ("a near miss", "a thought cut off")
            hold(repaired == (slot.item() >= 0), f"{kind}: repaired is {slot.item() >= 0}")
            answers = update.batch["responses"][its]
            width = answers.shape[1]
            counted = update.batch["attention_mask"][its, -width:].bool()
            if branch_point:
                counted[1] &= reference.branch_mask(answers[:1], answers[1:])[0]
            for row, beam, weight, wanted in zip(its, (positive, negative), weights, counted):
                counts = update.batch["response_mask"][row].bool()
                hold(torch.equal(counts, wanted), f"{kind}: the tokens that count")
                got = update.batch["advantages"][row][counts]
                hold(
                    len(got) and torch.allclose(got, torch.tensor(weight), atol=2e-6),
                    f"{kind}: advantages of {weight}, got {got.unique().tolist()}",
                )
                before, text = texts[beam], text_of(tokenizer, update, row)
                if row == its[0] and repaired:
                    head, mark, tail = before.rpartition("\n<|sid_begin|>")
                    if kind == "a thought cut off":
                        head = head.removesuffix("hmm") + "</think>"
                    hold(
                        text == head + mark + sid_text(targets[0]) + tail[len(sid_text(targets[0])) :],
                        f"{kind}: the anchor is {text!r} in place of {before!r}",
                    )
                    hold(compute_score("", text, truth, {})["score"] == 1, f"their reward of the anchor {text!r} is 1")
                else:
                    hold(text == before, f"{kind}: a row that is no anchor is {text!r}, was {before!r}")
                for name in ("attention_mask", "position_ids"):
                    hold(torch.equal(update.batch[name][row], sampled.batch[name][rows[beam]]), f"{name} stays")
                hold(
                    torch.equal(update.batch["input_ids"][row][-width:], update.batch["responses"][row]),
                    "input_ids end with the responses",
                )
        for step in run.workers.optimizer_steps(update):
            signs = {}
            for row in step:
                signs.setdefault(tuple(update.batch["prompts"][row].tolist()), []).append(
                    update.batch["advantages"][row].sum().sign().item()
                )
            hold(all(sorted(pair) in ([-1, 1], [0, 0]) for pair in signs.values()), "pairs meet in an optimizer step")
    hold(all(seen.values()), f"every kind of group came up: {seen}")
    return seen


def text_of(tokenizer, batch, row):
    width = batch.batch["responses"].shape[1]
    ids = batch.batch["responses"][row][batch.batch["attention_mask"][row, -width:].bool()]
    return tokenizer.decode(ids, skip_special_tokens=True)


def sids_of(text):
    """SIDs behind a thought that has ended."""
    found = re.findall(r"<s_a_(\d+)><s_b_(\d+)><s_c_(\d+)>", text.partition("</think>")[2])
    return [tuple(map(int, sid)) for sid in found]


def check_logs(plain, ours, width):
    """Rows left, shares of kinds of groups, and that the reward's means are those of their run on the same answers."""
    for theirs, mine, sampled in zip(plain.logs, ours.logs, ours.workers.sampled):
        prompts = {tuple(prompt) for prompt in sampled.batch["prompts"].tolist()}
        tokenizer = ours.trainer.tokenizer
        kinds = [kind_of(int(re.search(r"q([0-9]+)", tokenizer.decode(prompt))[1])) for prompt in prompts]
        share = {kind: kinds.count(kind) / PROMPTS for kind in KINDS}
        repaired = share["a near miss"] + share["a thought cut off"]
        wanted = {
            "rows_in": PROMPTS * BEAMS,
            "rows_out": width * PROMPTS,
            "repaired": repaired,
            "skipped": share["no target"],
            "all_zero": repaired + share["no target"],
            "single_hit": share["a hit"],
            "multi_hit": share["two hits"],
            "reward_sampled": theirs["reward/all/score/mean"],
        }
        for name, value in wanted.items():
            got = mine.get(f"recast/{name}")
            hold(got is not None and abs(got - value) < 1e-6, f"recast/{name} is {got}, expected {value}")
        means = {name: value for name, value in theirs.items() if re.fullmatch("reward/.*/mean", name)}
        hold(
            len(means) > 6 and all(abs(mine[name] - value) < 1e-6 for name, value in means.items()),
            "means of the reward are those of their run",
        )
        hold(any(name.startswith("recast/repaired/RecIF") for name in mine), "repaired groups are counted by source")


def check_refusals(root, given):
    from verl.trainer.ppo.core_algos import agg_loss

    from recast_ref.trainers.onerec import ReCastTrainer

    def refusal(*overrides):
        try:
            ReCastTrainer(configuration(root, [*given, *SETTINGS, *overrides]), None)
        except ValueError as error:
            return str(error)
        return "nothing"

    as_it_is = refusal()
    hold(f"set {MINI}" in as_it_is, f"the settings of run_grpo.sh are refused with {MINI}, got {as_it_is}")
    print("run_grpo.sh as it is:", as_it_is)
    for override, remedy in REFUSED.items():
        said = refusal(MINI, override)
        hold(remedy in said, f"{override} is refused with {remedy!r}, got {said}")
    nothing = torch.zeros(2, 3)
    hold(agg_loss(nothing, nothing, "seq-mean-token-mean").isnan(), "a row without a token is NaN in that mean")
    print(f"{len(REFUSED)} other settings are refused, each with its remedy")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    if not (options.checkout / "verl_rl" / "recipe" / "onerec").is_dir():
        parser.error(f"{options.checkout}: no verl_rl/recipe/onerec there")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = set_up(options.checkout.resolve(), folder)
        make_model(folder)
        make_data(folder, rows=PROMPTS * options.steps)
        settings = [*SETTINGS, f"trainer.total_training_steps={options.steps}"]
        scripts = root / "recipe" / "onerec"

        module, given = arguments_of(scripts / "run_grpo.sh", folder)
        hold(module == "recipe.onerec.main_onerec_ppo", f"run_grpo.sh starts {module}")
        check_refusals(root, given)
        plain = Run(root, module, [*given, *settings])
        plain.describe("RayPPOTrainer")
        for step in range(options.steps):
            hold([rows for _, rows, _ in plain.passes(step)] == [PROMPTS * BEAMS] * 3, "their passes see all beams")

        half = 0.5**0.5
        for options_of_ours, weights in (
            ([], (half, -half)),
            (["+recast.branch_point=True"], (half, -half)),
            (["+recast.branch_point=True", "+recast.negative_weight=0.2"], (1.0, -0.2)),
            (["+recast.arm=repair"], None),
        ):
            more = [*settings, MINI, "+recast.segment_key=source", *options_of_ours]
            module, given = arguments_of(scripts / "run_recast.sh", folder, *more)
            hold(module == "recipe.onerec.main_recast", f"run_recast.sh starts {module}")
            ours = Run(root, module, given)
            hold(type(ours.trainer).__name__ == "ReCastTrainer", f"main_recast.py makes a {type(ours.trainer)}")
            print(*options_of_ours)
            ours.describe("ReCastTrainer")
            width = 2 if weights else BEAMS
            for step in range(options.steps):
                hold([rows for _, rows, _ in ours.passes(step)] == [width * PROMPTS] * 3, "the rows of our passes")
            check_logs(plain, ours, width)
            if weights:
                seen = check_pairs(ours, weights, "+recast.branch_point=True" in options_of_ours)
                print(f"  as reference.recast has them, with advantages {weights[0]:.4f} and {weights[1]:.4f}: {seen}")
    print("All holds.")


if __name__ == "__main__":
    main()
