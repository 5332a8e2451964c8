"""A small task for the tests of TRL's trainer: a user's taste is a first code, the next item that taste's favourite."""

import collections
import re

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback

from recast_ref.trainers.trl import ReCastGRPOConfig, ReCastGRPOTrainer
from recast_ref.trainers.trl_example import save_model, tokenizer_of

SHAPE = (8, 4, 4)
CODES = [f"<{level}_{code}>" for level, size in zip("abc", SHAPE) for code in range(size)]
MARKS = ["<think>", "</think>", "<|sid_begin|>", "<|sid_end|>"]
SIDS = ["".join(f"<{level}_{code}>" for level, code in zip("abc", codes)) for codes in np.ndindex(*SHAPE)]


def rows(number=256, history=4, noise=0.3, seed=0):
    """Prompts and targets. The favourites are the same for every seed."""
    favourite = [(a, (3 * a + 1) % SHAPE[1], (5 * a + 2) % SHAPE[2]) for a in range(SHAPE[0])]
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(number):
        taste = rng.integers(SHAPE[0])
        items = [taste if rng.random() > noise else rng.integers(SHAPE[0]) for _ in range(history - 1)] + [taste]
        prompt = "".join(_text((a, rng.integers(SHAPE[1]), rng.integers(SHAPE[2]))) for a in items)
        made.append({"prompt": prompt, "targets": [_text(favourite[taste])], "taste": f"taste {taste % 2}"})
    return made


def _text(codes):
    return "".join(f"<{level}_{code}>" for level, code in zip("abc", codes))


def make(
    folder,
    cls=ReCastGRPOTrainer,
    config=ReCastGRPOConfig,
    reward=None,
    data=None,
    words=CODES,
    model_seed=0,
    **options,
):
    """A trainer of the tiny model in ``folder`` (made on first use): 4 prompts x 8 answers, plain SGD."""
    path = folder / f"model{len(words)}"
    if not path.exists():
        save_model(path, tokenizer_of(words), seed=model_seed, width=32, layers=1)
    given = {name: options.pop(name) for name in list(options) if name in GIVEN}
    settings = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 32,
        "num_generations": 8,
        "max_completion_length": 4,
        "max_steps": 3,
        "learning_rate": 0.05,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "top_k": 0,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    data = Dataset.from_list(rows()) if data is None else data
    trainer = cls(
        str(path), reward, args=config(**{**settings, **options}), train_dataset=data,
        processing_class=given.pop("processing_class", tokenizer_of(words)), **given,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


GIVEN = ("catalogue", "rollout_func", "peft_config", "eval_dataset", "callbacks", "processing_class", "tools")


def parameters(trainer):
    model = trainer.accelerator.unwrap_model(trainer.model)
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def count_rows(trainer):
    """How many rows each forward pass of the model and of its reference saw, by kind of pass."""
    seen = collections.defaultdict(list)

    def before(kind):
        def hook(module, arguments, options):
            shape = options["input_ids"].shape
            is_scoring = (
                options.get("fused_lm_head") or "logits_to_keep" in options and options.get("use_cache") is False
            )
            passes = ("old", "actor")[torch.is_grad_enabled()] if is_scoring else "generate"
            seen["reference" if kind == "reference" else passes].append(shape[0])

        return hook

    model = trainer.accelerator.unwrap_model(trainer.model)
    model.register_forward_pre_hook(before("policy"), with_kwargs=True)
    if trainer.ref_model is not None:
        trainer.accelerator.unwrap_model(trainer.ref_model).register_forward_pre_hook(
            before("reference"), with_kwargs=True
        )
    return seen


def dictated(answers, words=CODES):
    """A ``rollout_func`` that samples nothing: ``answers(prompt, i)`` is the text of the i-th answer to a prompt."""
    tokenizer = tokenizer_of(words)

    def rollout(prompts, trainer):
        texts = [answers(prompt, row % trainer.num_generations) for row, prompt in enumerate(prompts)]
        return {
            "prompt_ids": tokenizer(prompts)["input_ids"],
            "completion_ids": tokenizer(texts)["input_ids"],
            "logprobs": None,
        }

    return rollout


def codes(text):
    return [tuple(map(int, found)) for found in re.findall(r"<a_(\d+)><b_(\d+)><c_(\d+)>", text)]
