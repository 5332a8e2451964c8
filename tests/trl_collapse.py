"""The catalogue for the sampler alone, and for both: ``python tests/trl_collapse.py 0 1 2`` prints a line for each run.

The numbers are seeds: of the weights, of the base's random items and of the trainer. From a base that knows the
format, but hits at chance, ReCast trains for 80 steps. ``test_trl.py`` runs the first seed.
"""

import sys
import tempfile
from pathlib import Path

import torch
import trl_tiny as tiny
from trl import GRPOTrainer

from recast_ref.trainers.sids import OnlyTheTrie
from recast_ref.trainers.trl import ReCastGRPOTrainer

LEARN = {
    "per_device_train_batch_size": 128,
    "max_steps": 80,
    "learning_rate": 3e-3,
    "optim": "adamw_torch",
    "max_grad_norm": 1.0,
    "beta": 0.001,
    "logging_steps": 10,
}


class SamplerOnly(ReCastGRPOTrainer):
    """The catalogue for the sampler alone, with log-probs over the whole vocabulary, as elsewhere."""

    def _get_per_token_logps_and_entropies(self, *arguments, **options):
        return GRPOTrainer._get_per_token_logps_and_entropies(self, *arguments, **options)


ARMS = {
    "sampler only, weights 1 and 1": (SamplerOnly, {}),
    "both, weights 1 and 1": (ReCastGRPOTrainer, {}),
    "both, weights 1 and 0.2": (ReCastGRPOTrainer, {"negative_weight": 0.2}),
}


def logs(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def greedy_hits(trainer, catalogue=None):
    """The share of 128 other prompts to which the likeliest answer is the target."""
    rows, tokenizer = tiny.rows(128, seed=1), trainer._tokenizer
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    enc = tokenizer([row["prompt"] for row in rows], return_tensors="pt")["input_ids"]
    extra = {"logits_processor": [OnlyTheTrie(trainer._trie)]} if catalogue else {}
    out = model.generate(input_ids=enc, attention_mask=torch.ones_like(enc), max_new_tokens=3, do_sample=False, **extra)
    model.train()
    texts = tokenizer.batch_decode(out[:, enc.shape[1] :])
    return sum(text == row["targets"][0] for text, row in zip(texts, rows)) / len(rows)


def knows_the_format(folder, seed=0):
    """The tiny model after a while of random histories followed by a random item and EOS: hits stay at chance."""
    trainer = tiny.make(folder, model_seed=seed)
    model, tokenizer = trainer.model.train(), tiny.tokenizer_of(tiny.CODES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(7 + seed)
    for _ in range(100):
        items = torch.randint(len(tiny.SIDS), (64, 5), generator=draw).tolist()
        ids = torch.tensor(tokenizer(["".join(tiny.SIDS[i] for i in row) + "<eos>" for row in items])["input_ids"])
        loss = model(input_ids=ids, labels=ids.clone().index_fill(1, torch.arange(12), -100)).loss
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    path = folder / f"format{seed}" / Path(model.config._name_or_path).name
    model.save_pretrained(path), tokenizer.save_pretrained(path)
    return folder / f"format{seed}"


def collapse(folder, seed):
    """Of each arm, the greedy hits after the last step and the largest KL that was logged."""
    base = knows_the_format(folder, seed)
    for name, (cls, options) in ARMS.items():
        trainer = tiny.make(base, cls, catalogue=tiny.SIDS, seed=seed, **LEARN, **options)
        trainer.train()
        yield name, greedy_hits(trainer, tiny.SIDS), max(logs(trainer, "kl"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for seed in map(int, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as folder:
            for name, hits, divergence in collapse(Path(folder), seed):
                print(f"seed {seed}  {name:30s} greedy hits {hits:.2f}  largest KL {divergence:.2g}", flush=True)
