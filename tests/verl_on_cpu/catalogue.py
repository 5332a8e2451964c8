"""The catalogue as a trie, for the sampler and for the engine."""

import functools

import torch

from recast_ref.trainers.sids import Trie

NEVER = -1e9  # a logit whose probability is 0, without the 0 * inf that -inf would make of an entropy


@functools.cache
def trie_of(path, tokenizer):
    """The trie of a file with a SID a line, each ended by the tokenizer's EOS."""
    with open(path) as lines:
        return Trie(tokenizer(lines.read().split(), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)


def only_the_catalogue(trie, logits, batch):
    """Logits with ``NEVER`` where the catalogue has no answer that goes on so.

    Args:
        trie: :class:`recast_ref.trainers.sids.Trie`.
        logits: ``(N, S, V)``, of prompts with their answers, padded on the right.
        batch: ``prompts``, ``responses`` and ``loss_mask`` as verl's engines get them (jagged). A row without a token
            that counts, such as verl's filler, stays as it is.

    Raises:
        ValueError: an answer is not in the catalogue.
    """
    forbidden = torch.zeros_like(logits, dtype=torch.bool)
    columns = [batch[name].unbind() for name in ("prompts", "responses", "loss_mask")]
    for row, (prompt, answer, counts) in enumerate(zip(*columns, strict=True)):
        if not counts.any():
            continue
        nodes = trie.paths(answer[None])[0]
        if (nodes < 0).any():
            raise ValueError(f"catalogue: none of its answers begins with the token ids {answer.tolist()}")
        first = len(prompt) - 1  # the logits that the answer's first token comes from
        forbidden[row, first : first + len(answer)] = ~trie.allowed(nodes[:-1], logits.shape[2])
    return logits.masked_fill(forbidden, NEVER)
