"""How good a policy is at naming the next item, and how far it has moved."""

import torch

from . import backend
from .rollouts import beam, sample

BEAM = 32
BATCH = 128
METRICS = ("pass@1", "recall@10", "recall@32", "sampled_p@1", "entropy", "kl")


@torch.no_grad()
def evaluate(policy, base, history, targets):
    """Metrics over all prompts. They are of items, whatever SIDs they have.

    * ``pass@1``, ``recall@10``, ``recall@32``: the target is among the first 1, 10, 32 items of a beam search of width 32, see
      :func:`hits`.
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
