"""The policy: a small decoder-only transformer over SID tokens, which can only say items that exist.

A prompt is read once; its keys and values then serve every response of the group, in rollouts (token by token) and in
log-prob passes (all tokens at once, in branches that cannot see each other). That is the same model as one sequence
per response, at a fraction of the cost: :meth:`Policy.logits` takes either layout, and a test holds them equal.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from . import backend


class KV(NamedTuple):
    """Keys and values of one layer, ``(N, heads, length, width / heads)``."""

    keys: torch.Tensor
    values: torch.Tensor

    def then(self, other):
        return KV(torch.cat([self.keys, other.keys], dim=2), torch.cat([self.values, other.values], dim=2))


class Read(NamedTuple):
    """A batch of prompts, read."""

    last: torch.Tensor  # (Q, d): hidden state after the prompt, from which the first code is predicted
    cache: list  # one KV per layer
    visible: torch.Tensor  # bool (Q, P): which prompt positions are not padding


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, x, mask, past=None):
        """``x (N, S, d)`` attends, where ``mask`` allows, to ``past`` followed by itself. Returns ``x`` and its own KV."""
        n, s, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, s, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        own = KV(k, v)
        keys, values = own if past is None else past.then(own)
        seen = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        x = x + self.out(seen.transpose(1, 2).reshape(n, s, d))
        return x + self.mlp(self.norm2(x)), own


class Policy(nn.Module):
    """Log-probs of a SID given a history of SIDs, constrained to the catalogue.

    Args:
        trie: the :class:`~recast_ref.lab.semantic_ids.Trie` of items that may be said.
        prompt_items: history length in items; a prompt is ``prompt_items * L`` tokens, padded on the left.
        width, layers, heads: size of the transformer. The default has about 200k parameters at 256 codes a level.
    """

    def __init__(self, trie, prompt_items, width=64, layers=2, heads=4):
        super().__init__()
        self.trie = trie
        self.levels, self.codes = trie.levels, trie.codes
        self.prompt_length = prompt_items * self.levels + 1  # and a token that opens the response
        vocabulary = self.levels * self.codes + 1
        self.start = vocabulary - 1
        self.tokens = nn.Embedding(vocabulary, width)
        # A prompt ends at the same position whatever its length, so that positions count from the response.
        self.positions = nn.Embedding(self.prompt_length + self.levels - 1, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.heads = nn.Parameter(torch.empty(self.levels, self.codes, width))  # one output head per level
        for weight in (self.tokens.weight, self.positions.weight, self.heads):
            nn.init.normal_(weight, std=0.02)

    def read(self, history):
        """Read prompts: int64 ``(Q, P, L)`` SIDs of the last P items, oldest first, -1 where there is none."""
        q = history.shape[0]
        level = torch.arange(self.levels) * self.codes
        tokens = (history + level).flatten(start_dim=1)
        tokens = torch.cat([tokens, tokens.new_full((q, 1), self.start)], dim=1)
        visible = torch.cat([(history >= 0).flatten(start_dim=1), history.new_ones((q, 1), dtype=torch.bool)], dim=1)
        length = tokens.shape[1]
        x = self.tokens(tokens.clamp(min=0)) + self.positions.weight[self.prompt_length - length : self.prompt_length]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        mask = causal & visible[:, None, :] | torch.eye(length, dtype=torch.bool)  # padding sees itself, or it is NaN
        cache = []
        for block in self.blocks:
            x, kv = block(x, mask[:, None])
            cache.append(kv)
        return Read(self.norm(x[:, -1]), cache, visible)

    def extend(self, read, codes, past=None, depth=0):
        """Hidden states after each of the codes, for ``W`` branches of each prompt.

        Args:
            read: what :meth:`read` returned for the ``Q`` prompts.
            codes: int64 ``(Q, W, S)``: codes of levels ``depth .. depth + S - 1`` of each branch.
            past: per layer, the KV of the branches' earlier codes, ``(Q, heads, W * depth, .)`` level by level.

        Returns:
            ``(Q, W, S, d)`` and the grown ``past``.
        """
        q, w, s = codes.shape
        steps = torch.arange(depth, depth + s)
        x = self.tokens(codes + steps * self.codes) + self.positions.weight[self.prompt_length + steps]
        x = x.transpose(1, 2).flatten(1, 2)  # level by level, so that a longer past is a prefix

        branch = torch.arange(w)
        row_step, row_branch = steps.repeat_interleave(w), branch.repeat(s)
        key_step, key_branch = torch.arange(depth + s).repeat_interleave(w), branch.repeat(depth + s)
        own = (row_branch[:, None] == key_branch) & (row_step[:, None] >= key_step)
        mask = torch.cat([read.visible[:, None, :].expand(-1, s * w, -1), own.expand(q, -1, -1)], dim=2)
        grown = []
        for i, block in enumerate(self.blocks):
            seen = read.cache[i] if past is None else read.cache[i].then(past[i])
            x, kv = block(x, mask[:, None], seen)
            grown.append(kv if past is None else past[i].then(kv))
        return self.norm(x).view(q, s, w, x.shape[-1]).transpose(1, 2), grown

    def next_logits(self, hidden, level, nodes):
        """Logits of the next code, ``(..., C)``, with ``-inf`` for codes that lead to no item.

        Args:
            hidden: ``(..., d)`` after the codes so far.
            level: which code comes next.
            nodes: int64 ``(...,)``, trie nodes of the codes so far.
        """
        logits = hidden @ self.heads[level].T
        return logits.masked_fill(self.trie.children[level][nodes] < 0, float("-inf"))

    def logits(self, history, responses, share_prompt=True):
        """Teacher-forced logits of whole responses.

        Args:
            history: int64 ``(Q, P, L)``.
            responses: int64 ``(Q, W, L)``, SIDs in the catalogue.
            share_prompt: read each prompt once for its ``W`` responses; False repeats it, one sequence per response, as
                general-purpose trainers do. Same result.

        Returns:
            ``(Q, W, L, C)``.
        """
        q, w, levels = responses.shape
        if not share_prompt:
            flat = self.logits(history.repeat_interleave(w, dim=0), responses.reshape(q * w, 1, levels))
            return flat.view(q, w, levels, -1)
        read = self.read(history)
        first = read.last[:, None, None].expand(-1, w, 1, -1)
        later, _ = self.extend(read, responses[:, :, :-1])
        hidden = torch.cat([first, later], dim=2)
        nodes = self.trie.path(responses)
        return torch.stack([self.next_logits(hidden[:, :, i], i, nodes[..., i]) for i in range(levels)], dim=2)

    def logps(self, history, responses, share_prompt=True):
        """Token log-probs ``(Q, W, L)`` of whole responses; arguments as for :meth:`logits`."""
        return backend.ops.token_logps(self.logits(history, responses, share_prompt), responses)
