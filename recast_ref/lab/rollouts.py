"""Rollouts: G responses per prompt, by sampling or by beam search, from the codes that lead to an item."""

from typing import NamedTuple

import torch


class Rollouts(NamedTuple):
    """Responses of a batch of prompts."""

    responses: torch.Tensor  # int64 (Q, G, L)
    logps: torch.Tensor  # (Q, G): log-prob of each whole response
    entropy: torch.Tensor  # (Q,): of the next code, mean over levels and responses, in nats


def _grow(policy, history, width, choose):
    """Decode level by level with a KV cache. ``choose(level, logps)`` maps the log-probs of every continuation,
    ``(Q, W, C)``, to the branch each new response continues and its code, both ``(Q, width)``."""
    read = policy.read(history)
    q = history.shape[0]
    hidden = read.last[:, None]
    nodes = torch.zeros(q, 1, dtype=torch.int64)
    responses = torch.empty(q, 1, 0, dtype=torch.int64)
    logps, entropy, past = torch.zeros(q, 1), [], None
    for level in range(policy.levels):
        step = policy.next_logits(hidden, level, nodes).log_softmax(dim=-1)
        entropy.append(-(step.exp() * step.masked_fill(step.isinf(), 0)).sum(dim=-1).mean(dim=1))
        parent, code = choose(level, logps, step)
        logps = (logps[..., None] + step).flatten(start_dim=1).gather(1, parent * policy.codes + code)
        responses = torch.cat([_take(responses, parent), code[..., None]], dim=2)
        nodes = policy.trie.children[level][nodes.gather(1, parent), code].clamp(min=0)  # dead beams go anywhere
        if level + 1 < policy.levels:
            if past is not None:
                past = [_reorder(kv, parent, level) for kv in past]
            hidden, past = policy.extend(read, code[..., None], past, depth=level)
            hidden = hidden[:, :, 0]
    return Rollouts(responses, logps, torch.stack(entropy).mean(dim=0))


def _take(branches, parent):
    return branches.gather(1, parent[..., None].expand(-1, -1, branches.shape[2]))


def _reorder(kv, parent, depth):
    """Keys and values of the branches that were continued."""

    def pick(x):
        q, heads, length, d = x.shape
        x = x.view(q, heads, depth, length // depth, d)
        index = parent[:, None, None, :, None].expand(-1, heads, depth, -1, d)
        return x.gather(3, index).flatten(start_dim=2, end_dim=3)

    return type(kv)(pick(kv.keys), pick(kv.values))


@torch.no_grad()
def sample(policy, history, group_size, generator):
    """``group_size`` independent samples per prompt at temperature 1. History: int64 ``(Q, P, L)``."""

    def choose(level, logps, step):
        if level == 0:
            code = torch.multinomial(step[:, 0].exp(), group_size, replacement=True, generator=generator)
            return torch.zeros_like(code), code
        code = torch.multinomial(step.exp().flatten(0, 1), 1, generator=generator).view(step.shape[:2])
        return torch.arange(group_size).expand_as(code), code

    return _grow(policy, history, group_size, choose)


@torch.no_grad()
def beam(policy, history, width):
    """The ``width`` most probable SIDs a beam search finds, best first. History: int64 ``(Q, P, L)``.

    Where the catalogue has fewer than ``width`` SIDs, the rest have log-prob ``-inf`` and SID -1.
    """

    def choose(level, logps, step):
        joint = (logps[..., None] + step).flatten(start_dim=1)
        best = joint.topk(min(width, joint.shape[1]), dim=1).indices
        return best // step.shape[2], best % step.shape[2]

    found = _grow(policy, history, width, choose)
    dead = found.logps.isneginf()
    responses, logps = found.responses.masked_fill(dead[..., None], -1), found.logps
    missing = width - responses.shape[1]
    if missing > 0:
        responses = torch.nn.functional.pad(responses, (0, 0, 0, missing), value=-1)
        logps = torch.nn.functional.pad(logps, (0, missing), value=float("-inf"))
    return Rollouts(responses, logps, found.entropy)
