"""GRPO and ReCast in TRL's trainer, from the same weights: ``python -m recast_ref.trainers.trl_example``.

A tiny Qwen3 made from a config, a vocabulary of SID tokens, generation inside the catalogue. Nothing is downloaded.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

try:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
except ImportError as error:
    raise ImportError(
        f'recast_ref.trainers.trl_example: needs TRL: pip install -e ".[trl]" in the checkout ({error})'
    ) from error


def tokenizer_of(codes):
    """A tokenizer with one token for each code, such as ``<a_12>``, and for ``<pad>``, ``<eos>`` and ``<unk>``."""
    words = ["<pad>", "<eos>", "<unk>", *codes]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split(Regex("<[^>]*>"), "isolated")
    plain.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=plain, padding_side="left", **special)


def save_model(folder, tokenizer, seed, width=64, layers=2):
    """A tiny Qwen3 with random weights and its tokenizer, saved where TRL can load them from: its reference is loaded again."""
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
    return str(folder)
