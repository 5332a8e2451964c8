"""GRPO and ReCast in TRL's trainer, from the same weights: ``python -m recast_ref.trainers.trl_example``.

A tiny Qwen3 made from a config, with a token for each code, learns to name the next item of the synthetic world or of
a folder in MiniOneRec's format. Nothing is downloaded. Both arms keep to the catalogue (one option, for the sampler
and for the log-probs), and ReCast takes the negative weight that was measured to be stable. What comes out: how often
the next item is among the ten likeliest answers to prompts that were held out, along both runs.
"""

import argparse
import os
import sys
import tempfile
import warnings
from functools import partial

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch

from ..lab.reading import DataError
from ..lab.worlds import load_world

try:
    import matplotlib
    from datasets import Dataset
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        LogitsProcessorList,
        PreTrainedTokenizerFast,
        PrinterCallback,
        Qwen3Config,
        Qwen3ForCausalLM,
        TrainerCallback,
        logging,
    )
except ImportError as error:
    raise ImportError(
        f'recast_ref.trainers.trl_example: needs TRL: pip install -e ".[trl]" in the checkout ({error})'
    ) from error

from .sids import OnlyTheTrie, Trie
from .trl import ReCastGRPOConfig, ReCastGRPOTrainer

LETTERS = "abcdefghijklmno"
ITEMS = 4  # of a history, in a prompt
HELD_OUT = 256  # prompts to measure with
BEST = 10
ARMS = {"grpo": {"arm": "grpo"}, "recast": {"arm": "recast", "negative_weight": 0.2}}


def tokenizer_of(codes):
    """A tokenizer with one token for each code, such as ``<a_12>``, and for ``<pad>``, ``<eos>`` and ``<unk>``."""
    words = ["<pad>", "<eos>", "<unk>", *codes]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex("<[^>]*>"), "isolated")
    plain.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=plain, padding_side="left", **special)


def save_model(folder, tokenizer, seed, width=64, layers=2):
    """A tiny Qwen3 with random weights and its tokenizer, saved: TRL loads its reference from there too."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=width // 4,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def as_rows(pairs, names):
    """Prompts and targets for TRL: the latest items of each history, and the next, as text."""
    return [
        {"prompt": "".join(names[item] for item in history[-ITEMS:] if item >= 0), "targets": [names[target]]}
        for history, target in zip(pairs.history.tolist(), pairs.target.tolist())
        if history[-1] >= 0
    ]


@torch.no_grad()
def recall(model, tokenizer, trie, rows):
    """The share of rows whose target is among the best answers, by beam search in the catalogue."""
    batch = tokenizer([row["prompt"] for row in rows], return_tensors="pt", padding=True)
    training = model.training
    model.eval()
    found = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        logits_processor=LogitsProcessorList([OnlyTheTrie(trie)]),
        num_beams=BEST,
        num_return_sequences=BEST,
        renormalize_logits=True,
        do_sample=False,
        max_new_tokens=trie.depth,
    )
    model.train(training)
    texts = tokenizer.batch_decode(found[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    hits = [row["targets"][0] in texts[BEST * i : BEST * (i + 1)] for i, row in enumerate(rows)]
    return sum(hits) / len(hits)


class Curve(TrainerCallback):
    """Measures along a run and moves the bar."""

    def __init__(self, measure, every, advance):
        self.measure, self.every, self.advance = measure, every, advance
        self.points = []

    def on_train_begin(self, args, state, control, model=None, **_):
        self.points.append((0, self.measure(model)))

    def on_step_end(self, args, state, control, model=None, **_):
        if state.global_step % self.every == 0:
            self.points.append((state.global_step, self.measure(model)))
        self.advance()


def train(arm, folder, rows, held_out, catalogue, options, advance):
    """One arm's curve: ``[(step, recall), ...]``."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    trie = Trie(tokenizer(catalogue)["input_ids"], tokenizer.eos_token_id)
    curve = Curve(lambda model: recall(model, tokenizer, trie, held_out), max(1, options.steps // 10), advance)
    args = ReCastGRPOConfig(
        f"{folder}/{arm}",
        **ARMS[arm],
        num_generations=options.group_size,
        per_device_train_batch_size=options.group_size * options.prompts,
        max_completion_length=trie.depth,
        max_steps=options.steps,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        seed=options.seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = ReCastGRPOTrainer(
        folder,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[curve],
        catalogue=catalogue,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return curve.points


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m recast_ref.trainers.trl_example", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--world", default="synthetic", help="'synthetic', or a folder in MiniOneRec's format")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--prompts", type=int, default=16, help="a step")
    parser.add_argument("--group-size", type=int, default=8, help="answers to a prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="trl_example.png", help="the picture")
    options = parser.parse_args(argv)
    try:
        world = load_world(options.world)
    except (FileNotFoundError, DataError) as error:
        parser.error(str(error))

    warnings.simplefilter("ignore", FutureWarning)  # of transformers, about options of TRL's
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # the fastest for a model as small as this
    console = Console(soft_wrap=True)
    names = ["".join(f"<{letter}_{code}>" for letter, code in zip(LETTERS, sid)) for sid in world.sids.tolist()]
    catalogue = list(dict.fromkeys(names))
    codes = sorted({f"<{letter}_{code}>" for sid in world.sids.tolist() for letter, code in zip(LETTERS, sid)})
    rows, held_out = as_rows(world.train, names), as_rows(world.test, names)[:HELD_OUT]
    console.print(world.describe(), highlight=False, markup=False)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), console=console
    )
    curves = {}
    with tempfile.TemporaryDirectory() as folder, bar:
        save_model(folder, tokenizer_of(codes), options.seed)
        for arm in ARMS:
            task = bar.add_task(arm, total=options.steps)
            curves[arm] = train(arm, folder, rows, held_out, catalogue, options, partial(bar.advance, task))
    for line in in_text(curves):
        console.print(line, highlight=False, markup=False)
    draw(curves, options, options.out)
    console.print(f"Wrote {options.out}", highlight=False, markup=False)
    return 0


def in_text(curves):
    """The curves as lines of text."""
    steps = [step for step, _ in next(iter(curves.values()))]
    yield f"recall@{BEST} in % on {HELD_OUT} held-out prompts"
    yield "  step" + "".join(f"{step:7d}" for step in steps)
    top = max(value for points in curves.values() for _, value in points) or 1
    for arm, points in curves.items():
        bars = "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * value / top))] for _, value in points)
        yield f"{arm:>6s}" + "".join(f"{100 * value:7.1f}" for _, value in points) + f"   {bars}"


def draw(curves, options, path):
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for arm, points in curves.items():
        axes.plot([step for step, _ in points], [100 * value for _, value in points], marker="o", label=arm)
    axes.set(
        xlabel=f"step of {options.prompts} prompts x {options.group_size} answers", ylabel=f"recall@{BEST}, %", ylim=0
    )
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    sys.exit(main())
