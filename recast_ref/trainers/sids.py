"""SIDs as a language model writes them, and the trie that keeps it inside a catalogue.

A SID in text is a template with a ``{}`` for each code: ``<s_a_{}><s_b_{}><s_c_{}>`` in OpenOneRec,
``<a_{}><b_{}><c_{}>`` in MiniOneRec, or one of your own with any number of levels. Token ids are read through their
text, so that a code may be one token or several.
"""

import re
from collections.abc import Collection, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

Sid = tuple[int, ...]  # its codes

CODE = r"<(?:s_)?([a-z])_(?:0|[1-9][0-9]*)>"  # OpenOneRec's and MiniOneRec's
NUMBER = "(0|[1-9][0-9]{0,17})"  # one way to write each number that int64 holds
THOUGHT = ("<think>", "</think>")


class Sids:
    """How SIDs are written. ``levels`` is the number of codes of one.

    Args:
        template: text with a ``{}`` for each code, and something that is no digit on both sides of each.

    Raises:
        ValueError: another template.

    Example:
        >>> sids = Sids("<a_{}><b_{}><c_{}>")
        >>> sids.read("you may like <|sid_begin|><a_12><b_7><c_201><|sid_end|>, and <a_3> no less")
        [(12, 7, 201)]
        >>> sids.write((12, 7, 201))
        '<a_12><b_7><c_201>'
    """

    def __init__(self, template: str) -> None:
        self.template, self._parts = template, template.split("{}")
        self.levels = len(self._parts) - 1
        sides = [self._parts[0][-1:], *(side for part in self._parts[1:-1] for side in (part[:1], part[-1:]))]
        sides.append(self._parts[-1][:1])
        if not self.levels or any(side == "" or side.isdigit() for side in sides):
            raise ValueError(
                "sid_template: expected text with a {} for each code, and something that is no digit on both sides of "
                f"each, such as '<a_{{}}><b_{{}}><c_{{}}>', got {template!r}"
            )
        # Some decoders put white space between tokens.
        self._pattern = re.compile(NUMBER.join(re.escape(part).replace("><", r">\s*<") for part in self._parts))

    @classmethod
    def like(cls, example: str) -> "Sids":
        """The form of a text that holds a SID in OpenOneRec's or MiniOneRec's form.

        Raises:
            ValueError: it holds neither.

        Example:
            >>> Sids.like("<s_a_12><s_b_7><s_c_201><s_a_1><s_b_2><s_c_3>").template
            '<s_a_{}><s_b_{}><s_c_{}>'
        """
        run = re.search(rf"{CODE}(?:\s*{CODE})*", example)
        if not run:
            raise ValueError(
                f"expected a SID such as <a_12><b_7><c_201> or <s_a_12><s_b_7><s_c_201>, got {example!r}; give "
                "sid_template if yours look otherwise"
            )
        codes = list(re.finditer(CODE, run[0]))
        again = [i for i, code in enumerate(codes) if i and code[1] == codes[0][1]]  # where the second SID begins
        return cls("".join(re.sub("[0-9]+", "{}", code[0]) for code in codes[: again[0] if again else None]))

    def read(self, text: str) -> list[Sid]:
        """The SIDs in a text, in order: a list of tuples of ``levels`` codes.

        A thought does not count: only what stands after the last ``</think>`` is read, and not what stands after a
        ``<think>`` that nothing ends.
        """
        answer = text.rpartition(THOUGHT[1])[2].partition(THOUGHT[0])[0]
        return [tuple(map(int, found.groups())) for found in self._pattern.finditer(answer)]

    def write(self, sid: Sid) -> str:
        """The text of a SID."""
        return self._parts[0] + "".join(f"{code}{part}" for code, part in zip(sid, self._parts[1:], strict=True))

    def read_ids(
        self, tokenizer: Any, rows: Sequence[Sequence[int]], thinking: Sequence[bool] | None = None
    ) -> list[list[Sid]]:
        """The SIDs in lists of token ids: a list of tuples for each row.

        Args:
            tokenizer: of transformers, or anything with its ``batch_decode``.
            rows: lists of token ids.
            thinking: bool for each row, whether it begins inside a thought, as :func:`in_thought` says of prompts.
                Default: none does.
        """
        texts = _decode(tokenizer, rows)
        if thinking is not None:
            texts = [THOUGHT[0] * is_so + text for is_so, text in zip(thinking, texts, strict=True)]
        return [self.read(text) for text in texts]

    def find(self, tokenizer: Any, ids: list[int], thinking: bool = False) -> tuple[int, int] | None:
        """Where the last SID in a list of token ids stands: ``(start, end)``, or ``None`` where there is none."""
        named = self.read_ids(tokenizer, [ids], [thinking])[0]
        return _last(ids, lambda part: self.read_ids(tokenizer, [part])[0] == named[-1:]) if named else None

    def overwrite(
        self, tokenizer: Any, answer: list[int], sid: Sid, ends: list[int], limit: int, thinking: bool = False
    ) -> list[int]:
        """An anchor in place of an answer: its last SID gives way to ``sid``, and what stands around that stays.

        * Without a SID, what stays is all to the end of the last thought. A thought that never ends does not stay; one
          that the prompt has opened is closed at once.
        * What follows the SID stays where it ends the answer and is no longer than the SID, such as ``<|sid_end|>``
          and EOS, or a line break and EOS; else the answer's own end follows, or ``ends[0]`` if it had none.
        * Where the text before and ``sid`` are longer than ``limit``, only ``sid`` and the end stay.

        Args:
            tokenizer: of transformers, or anything with its ``__call__`` and ``batch_decode``.
            answer: list of token ids.
            sid: tuple of codes.
            ends: list of the ids that may end an answer (EOS). Empty where the sampler ends none, as a beam search over
                codes does: then all that follows the SID stays, and nothing is added.
            limit: how long a sampled answer can be; what stands after the SID is cut there, as it would be.
            thinking: whether the answer begins inside a thought.

        Returns:
            list of token ids.
        """

        def encode(text):
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        target, opening = encode(self.write(sid)), encode(THOUGHT[1]) if thinking else []
        end = answer[-1:] if answer and answer[-1] in ends else ends[:1]
        before, named, after = opening, target, end
        found = self.find(tokenizer, answer, thinking)
        if found:
            start, stop = found
            # Its first and last token may hold characters around it, which stay.
            text = _decode(tokenizer, [answer[start:stop]])[0]
            old = list(self._pattern.finditer(text))[-1]
            before, named = answer[:start], encode(text[: old.start()] + self.write(sid) + text[old.end() :])
            rest = answer[stop:]
            short = rest and rest[-1] in ends and len(rest) <= len(target) + 1
            after = rest if short or not ends else end
        elif THOUGHT[1] in _decode(tokenizer, [answer])[0]:
            before = answer[: _last(answer, lambda part: THOUGHT[1] in _decode(tokenizer, [part])[0])[1]]
        if len(before) + len(named) > limit:
            before, named, after = opening, target, end
        return (before + named + after)[: max(limit, len(before) + len(named))]


def in_thought(tokenizer: Any, rows: Sequence[Sequence[int]]) -> list[bool]:
    """Whether lists of token ids, such as prompts of a template that opens ``<think>``, end inside a thought."""
    return [text.rfind(THOUGHT[0]) > text.rfind(THOUGHT[1]) for text in _decode(tokenizer, rows)]


def _last(ids, holds):
    """The shortest ``(start, end)`` from the right with ``holds(ids[start:end])``."""
    start = next(s for s in reversed(range(len(ids))) if holds(ids[s:]))
    return start, next(e for e in range(start + 1, len(ids) + 1) if holds(ids[start:e]))


def _decode(tokenizer, rows):
    return tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def pad_sids(rows: Sequence[Sequence[Sid]], levels: int) -> Tensor:
    """Lists of SIDs as int64 ``(N, M, levels)``, filled up with -1 as :mod:`recast_ref.reference` wants it.

    Example:
        >>> pad_sids([[(1, 2), (3, 4)], []], levels=2)
        tensor([[[ 1,  2],
                 [ 3,  4]],
        <BLANKLINE>
                [[-1, -1],
                 [-1, -1]]])
    """
    width = max(map(len, rows), default=0)
    padded = torch.full((len(rows), width, levels), -1, dtype=torch.int64)
    for row, sids in zip(padded, rows):
        if sids:
            row[: len(sids)] = torch.tensor(sids, dtype=torch.int64)
    return padded


class Trie:
    """Every answer that names an item of the catalogue, as token ids, each followed by ``end``.

    All of it is one sorted vector of edges, ``node * base + token``; edge ``e`` leads to node ``e + 1``, the root is
    node 0, and -1 is off the trie. A catalogue of 10^6 items of three codes takes 24 MB, whatever the size of the
    vocabulary.

    Args:
        answers: lists of token ids, none of them empty.
        end: the id that ends an answer (EOS).

    Raises:
        ValueError: no answers, or an empty one.
    """

    def __init__(self, answers: Collection[Sequence[int]], end: int) -> None:
        lengths = np.fromiter(map(len, answers), dtype=np.int64, count=len(answers))
        if len(lengths) == 0 or lengths.min() == 0:
            raise ValueError(f"catalogue: expected at least one item, and no empty one, got {len(lengths)} items")
        tokens = np.full((len(lengths), lengths.max() + 1), -1, dtype=np.int64)
        tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = np.fromiter(
            chain.from_iterable(answers), dtype=np.int64
        )
        tokens[np.arange(len(tokens)), lengths] = end
        self.end, self.base = end, int(tokens.max()) + 1
        self.depth = tokens.shape[1]  # of the longest answer with its end
        levels: list[np.ndarray] = []
        total = 0
        node = np.zeros(len(tokens), dtype=np.int64)
        for column in tokens.T:
            going = column >= 0
            edges, which = np.unique(node[going] * self.base + column[going], return_inverse=True)
            node[going] = total + which + 1
            levels.append(edges)
            total += len(edges)
        self.edges = torch.from_numpy(np.concatenate(levels))

    def step(self, nodes: Tensor, tokens: Tensor) -> Tensor:
        """The nodes that tokens lead to: int64, of the shape of both arguments."""
        edges = self._edges(nodes.device)
        wanted = nodes * self.base + tokens
        at = torch.searchsorted(edges, wanted).clamp(max=len(edges) - 1)
        known = (nodes >= 0) & (tokens >= 0) & (tokens < self.base) & (edges[at] == wanted)
        return torch.where(known, at + 1, -1)

    def paths(self, tokens: Tensor) -> Tensor:
        """The node before each token, and the one after the last: tokens int64 ``(N, T)``, nodes ``(N, T + 1)``."""
        nodes = [tokens.new_zeros(len(tokens))]
        for column in tokens.unbind(dim=1):
            nodes.append(self.step(nodes[-1], column))
        return torch.stack(nodes, dim=1)

    def allowed(self, nodes: Tensor, vocabulary: int) -> Tensor:
        """What may follow each node: nodes int64 ``(N,)`` -> bool ``(N, vocabulary)``.

        Where nothing may, because the answer has ended or has left the trie, only ``end`` does.
        """
        edges = self._edges(nodes.device)
        low = torch.searchsorted(edges, nodes * self.base)
        count = (torch.searchsorted(edges, (nodes + 1) * self.base) - low) * (nodes >= 0)
        row = torch.arange(len(nodes), device=nodes.device).repeat_interleave(count)
        edge = torch.arange(len(row), device=nodes.device) + (low - count.cumsum(0) + count)[row]
        mask = torch.zeros(len(nodes), vocabulary, dtype=torch.bool, device=nodes.device)
        mask[row, edges[edge] % self.base] = True
        mask[:, self.end] |= count == 0
        return mask

    def logps(
        self, logits: Tensor, nodes: Tensor, tokens: Tensor, entropy_gradient: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Log-probs of tokens, and entropies, under the softmax over what the trie allows.

        Args:
            logits: floating ``(N, V)``.
            nodes: int64 ``(N,)``, the node before each token.
            tokens: int64 ``(N,)``.
            entropy_gradient: whether the entropies carry a gradient too; without, memory is saved.

        Returns:
            two tensors ``(N,)``, float32 or wider, with a gradient to the logits.
        """
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        allowed = self.allowed(nodes, logits.shape[1])
        inside = logits.masked_fill(~allowed, -torch.inf)
        total = inside.logsumexp(dim=1)
        logps = inside.gather(1, tokens[:, None])[:, 0] - total
        with torch.set_grad_enabled(torch.is_grad_enabled() and entropy_gradient):
            # The entropy as log Z - E[logit]: p * log p would be 0 * inf at what is not allowed, and its gradient NaN.
            entropies = total - (inside.softmax(dim=1) * logits.masked_fill(~allowed, 0)).sum(dim=1)
        return logps, entropies

    def _edges(self, device):
        if self.edges.device != device:
            self.edges = self.edges.to(device)
        return self.edges


class OnlyTheTrie:
    """A logits processor for ``generate``: what the trie does not allow gets ``-inf``.

    Make one for each call: it takes the width that it sees first for the prompt's.
    """

    def __init__(self, trie: Trie) -> None:
        self.trie = trie
        self.prompt: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.prompt = input_ids.shape[1] if self.prompt is None else self.prompt
        nodes = self.trie.paths(input_ids[:, self.prompt :])[:, -1]
        return scores.masked_fill(~self.trie.allowed(nodes, scores.shape[1]), -torch.inf)
