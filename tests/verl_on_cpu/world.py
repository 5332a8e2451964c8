"""A tiny Qwen3, its tokenizer, a catalogue and prompts with next items, made from nothing: no hub, no data.

A user's taste is the first code of the latest item, and each taste has one item that comes next. With random weights a
policy that keeps to the catalogue names it about once in 2048 answers, so that nearly every group of 8 is all-zero;
whoever is shown the item for each taste has learned the task.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SIDS = "<s_a_{}><s_b_{}><s_c_{}>"  # OpenOneRec's form
CODES = (8, 32, 32)  # of each level
ITEMS = 2048
RESPONSE_LENGTH = 4  # three codes and <|im_end|>
PROMPT_LENGTH = 32
CHAT = (
    "{% for m in messages %}<|im_start|><{{ m['role'] }}>{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|><assistant>{% endif %}"
)


def make_world(folder, prompts=2048, test_prompts=32, seed=0):
    """Write a world that verl can train in.

    Args:
        folder: is made where it is missing. Gets ``model/`` (weights, config, tokenizer), ``catalogue.txt`` (a SID a
            line), ``train.parquet`` and ``test.parquet``. Beside what verl reads, their rows have ``segment``, ``"new
            user"`` for histories of one or two items and else ``"regular"``.
        prompts: rows of ``train.parquet``; those of ``test.parquet`` are ``test_prompts`` others.
        seed: of the weights, the catalogue, the tastes and the histories.

    Returns:
        the folder as a :class:`pathlib.Path`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    every = np.stack(np.unravel_index(rng.permutation(np.prod(CODES))[:ITEMS], CODES), axis=1)
    catalogue = [SIDS.format(*codes) for codes in every]
    following = rng.permutation(ITEMS)[: CODES[0]]  # the item that comes next, for each taste

    def rows(number, split):
        for index in range(number):
            history = rng.integers(ITEMS, size=rng.integers(1, 5))
            target = catalogue[following[every[history[-1], 0]]]
            yield {
                "data_source": "next_item",
                "prompt": [{"role": "user", "content": "".join(catalogue[item] for item in history)}],
                "ability": "recommendation",
                "reward_model": {"style": "rule", "ground_truth": target},
                "extra_info": {"index": index, "split": split},
                "segment": "new user" if len(history) <= 2 else "regular",
            }

    (folder / "catalogue.txt").write_text("\n".join(catalogue) + "\n")
    pd.DataFrame(rows(prompts, "train")).to_parquet(folder / "train.parquet")
    pd.DataFrame(rows(test_prompts, "test")).to_parquet(folder / "test.parquet")
    _save_model(folder / "model", seed)
    return folder


def _save_model(folder, seed):
    codes = [f"<s_{level}_{code}>" for level, size in zip("abc", CODES) for code in range(size)]
    # verl's prompts for a Qwen3 end in <|im_end|>, and it wants "\n" to be one token: here it is <unk>.
    words = ["<pad>", "<|im_end|>", "<|im_start|>", "<unk>", "<user>", "<assistant>", *codes]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex("<[^>]*>"), "isolated")
    plain.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<|im_end|>", unk_token="<unk>", chat_template=CHAT
    )
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
