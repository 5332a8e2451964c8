"""How good a policy is at naming the next item, and how far it has moved."""

import numpy as np
import torch

from . import backend
from .rollouts import beam, sample
from .semantic_ids import Trie
from .worlds import as_sids

BEAM = 32
BATCH = 128
METRICS = ("pass@1", "recall@10", "recall@32", "ndcg@10", "sampled_p@1", "entropy", "kl")


@torch.no_grad()
def evaluate(policy, base, history, targets):
    """Metrics over all prompts. They are of items, whatever SIDs they have.

    * ``pass@1``, ``recall@10``, ``recall@32``: the target is among the first 1, 10, 32 items of a beam search of width 32, see
      :func:`hits`.
    * ``ndcg@10``: ``1 / log2(place + 1)`` where the target is among the first 10 of them, see :func:`ndcg`.
    * ``sampled_p@1``: the probability that one sample is the target, which ranks policies differently from the beam. A SID of
      ``n`` items is each of them with a chance of 1/n.
    * ``entropy``: of the next code, in nats, averaged over levels and over one sample per prompt.
    * ``kl``: KL(policy || base) per token, exact over the next code, along the same samples.

    Args:
        policy, base: :class:`~recast_ref.lab.policy.Policy`. The policy's trie knows how many items have a SID.
        history: int64 ``(N, P, L)``.
        targets: int64 ``(N, L)``.

    Returns:
        dict of floats.
    """
    generator = torch.Generator().manual_seed(0)  # the same draws for every policy
    total = dict.fromkeys(METRICS, 0.0)
    for at in range(0, len(history), BATCH):
        prompts, target = history[at : at + BATCH], targets[at : at + BATCH, None]
        ranked = beam(policy, prompts, BEAM).responses
        items, found = policy.trie.items(ranked), (ranked == target).all(dim=-1)
        drawn = sample(policy, prompts, 1, generator)
        both = torch.cat([target, drawn.responses], dim=1)
        logits = policy.logits(prompts, both)
        truth = backend.ops.token_logps(logits, both)[:, 0].sum(dim=-1)
        now = logits[:, 1:].log_softmax(dim=-1)
        then = base.logits(prompts, drawn.responses).log_softmax(dim=-1)
        gap = torch.where(now.isfinite(), now.exp() * (now - then), 0.0)
        for k, name in ((1, "pass@1"), (10, "recall@10"), (32, "recall@32")):
            total[name] += hits(found, items, k).sum().item()
        total["ndcg@10"] += ndcg(found, items, 10).sum().item()
        total["sampled_p@1"] += (truth.exp() / policy.trie.items(target[:, 0])).sum().item()
        total["entropy"] += drawn.entropy.sum().item()
        total["kl"] += gap.sum(dim=-1).mean(dim=(1, 2)).sum().item()
    return {name: value / len(history) for name, value in total.items()}


def hits(found, items, k):
    """Whether the target is among the first ``k`` items of a ranking of SIDs: where a SID has several, the chance that it is.

    A list of SIDs is a list of items, those that share a SID in random order: a SID takes as many places as it has items, and
    each of them is equally likely on each place. Nothing is drawn. A SID of ``n`` items that comes first is 1/n of a hit at
    ``k = 1``; where no two items share a SID, a hit is 0 or 1. A list of ``W`` SIDs is long enough for every ``k <= W``.

    Args:
        found: bool ``(Q, W)``: which of the ranked SIDs is the target's, at most one of each row.
        items: int64 ``(Q, W)``: how many items have that SID; 0 for padding.
        k: how many items are looked at.

    Returns:
        float64 ``(Q,)``, each in 0..1.
    """
    before = items.cumsum(dim=1) - items
    return ((k - before) / items.double()).clamp(0, 1).where(found, 0).sum(dim=1)


def ndcg(found, items, k):
    """``1 / log2(place + 1)`` for a target on one of the first ``k`` places, else 0: its mean, where items share a SID. The best a
    ranking can do with one target is 1.

    Arguments and result are those of :func:`hits`.
    """
    within = torch.stack([hits(found, items, place) for place in range(k + 1)], dim=1)
    discount = 1 / (torch.arange(k, dtype=torch.float64) + 2).log2()
    return (within.diff(dim=1) * discount).sum(dim=1)


def popular(world, pairs):
    """What naming the most popular items of the training pairs to everybody comes to: the metrics that need no policy.

    A sample is an item by its share of the training pairs.
    """
    trie = Trie(world.sids)
    counts = np.bincount(world.train.target, minlength=len(world.sids))
    found, items, chance = most_popular(trie, sid_counts(trie, world.sids, counts), as_sids(world, pairs)[1])
    ranked = {"pass@1": hits(found, items, 1), "ndcg@10": ndcg(found, items, 10), "sampled_p@1": chance}
    ranked |= {f"recall@{k}": hits(found, items, k) for k in (10, 32)}
    return {name: ranked[name].mean().item() for name in METRICS if name in ranked}


def sid_counts(trie, sids, counts):
    """Counts per item ``(items,)`` as counts per SID of the trie, float64."""
    node = trie.nodes(torch.from_numpy(sids))[:, -1]
    return torch.zeros(len(trie), dtype=torch.float64).index_add(0, node, torch.from_numpy(counts).double())


def most_popular(trie, counts, targets):
    """The same ranking for all: the SIDs with the largest counts.

    Returns:
        ``found`` and ``items`` as for :func:`hits`, and each target's share of the counts, float64 ``(Q,)``.
    """
    order = counts.argsort(descending=True, stable=True)[:BEAM]
    sids = trie.sids[order].expand(len(targets), -1, -1)
    node = trie.nodes(targets)[..., -1]
    share = (counts / counts.sum())[node.clamp(min=0)].where(node >= 0, 0) / trie.items(targets).clamp(min=1)
    return (sids == targets[:, None]).all(dim=-1), trie.items(sids), share
