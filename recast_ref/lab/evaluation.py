"""How good a policy is at naming the next item, and how far it has moved."""

import torch

from . import backend
from .rollouts import beam, sample

BEAM = 32
BATCH = 128
METRICS = ("pass@1", "recall@10", "recall@32", "sampled_p@1", "entropy", "kl")


@torch.no_grad()
def evaluate(policy, base, history, targets):
    """Metrics over all prompts.

    * ``pass@1``, ``recall@10``, ``recall@32``: the target is among the first 1, 10, 32 SIDs of a beam search of width 32.
    * ``sampled_p@1``: the probability that one sample is the target, which ranks policies differently from the beam.
    * ``entropy``: of the next code, in nats, averaged over levels and over one sample per prompt.
    * ``kl``: KL(policy || base) per token, exact over the next code, along the same samples.

    Args:
        policy, base: :class:`~recast_ref.lab.policy.Policy`.
        history: int64 ``(N, P, L)``.
        targets: int64 ``(N, L)``.

    Returns:
        dict of floats.
    """
    generator = torch.Generator().manual_seed(0)  # the same draws for every policy
    total = dict.fromkeys(METRICS, 0.0)
    for at in range(0, len(history), BATCH):
        prompts, target = history[at : at + BATCH], targets[at : at + BATCH, None]
        found = (beam(policy, prompts, BEAM).responses == target).all(dim=-1)
        drawn = sample(policy, prompts, 1, generator)
        both = torch.cat([target, drawn.responses], dim=1)
        logits = policy.logits(prompts, both)
        truth = backend.ops.token_logps(logits, both)[:, 0].sum(dim=-1)
        now = logits[:, 1:].log_softmax(dim=-1)
        then = base.logits(prompts, drawn.responses).log_softmax(dim=-1)
        gap = torch.where(now.isfinite(), now.exp() * (now - then), 0.0)
        for k, name in ((1, "pass@1"), (10, "recall@10"), (32, "recall@32")):
            total[name] += found[:, :k].any(dim=1).sum().item()
        total["sampled_p@1"] += truth.exp().sum().item()
        total["entropy"] += drawn.entropy.sum().item()
        total["kl"] += gap.sum(dim=-1).mean(dim=(1, 2)).sum().item()
    return {name: value / len(history) for name, value in total.items()}
