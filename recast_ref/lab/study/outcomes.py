"""What each prompt of a split comes to: kept pair by pair, so that arms can be compared on the same pairs."""

import math

import torch

from .. import backend
from ..evaluation import BATCH, hits, most_popular, ndcg
from ..rollouts import beam

METRICS = ("pass@1", "recall@10", "ndcg@10", "sampled_p@1")
BEAM = 16  # of which the first 10 items count; for each thought
DRAWN_SETS = 4  # samples that stand for the chance of a hit where an answer is a set
PROBED = 512  # groups of a probe


@torch.no_grad()
def outcomes(policy, world, prompts):
    """Each prompt's outcome, ``{metric: float32 (N,)}``. All are worth ``prompts.worth``, where that is given.

    * ``pass@1``: the first item of a beam search is a target (of several SIDs an answer: the likeliest answer hits);
    * ``recall@10``, ``ndcg@10``: of all targets, over the first 10 items; not there for several SIDs an answer;
    * ``sampled_p@1``: the probability that a sample hits (of several SIDs an answer: the share of 4 samples that hit).
    """
    generator = torch.Generator().manual_seed(0)  # the same draws for every policy
    parts = []
    for at in range(0, len(prompts), BATCH):
        part = prompts[slice(at, at + BATCH)]
        parts.append(_sets(policy, part, world, generator) if world.answers.named > 1 else _items(policy, part, world))
    return {name: torch.cat([part[name] for part in parts]).float() for name in parts[0]}


def _items(policy, prompts, world):
    found, items = _ranked(policy, prompts, world)
    return {**ranking(found, items, prompts), "sampled_p@1": _chance(policy, prompts, world)}


def _ranked(policy, prompts, world):
    """Which of the ranked SIDs is which target, bool ``(Q, W, K)``, and how many items have each, int64 ``(Q, W)``."""
    width = BEAM * max(world.answers.thoughts, 1)
    sids = world.answers.sids(beam(policy, prompts.history, width).responses)[:, :, 0]
    items = world.trie.items(sids)
    if world.answers.thoughts:  # an item that comes again after another thought takes no place
        again = (sids[:, :, None] == sids[:, None]).all(dim=-1).tril(diagonal=-1).any(dim=-1)
        items = items.masked_fill(again, 0)
    found = (sids[:, :, None] == prompts.wanted[:, None]).all(dim=-1) & _real(prompts)[:, None]
    return found & (items > 0)[..., None], items


def ranking(found, items, prompts):
    """``pass@1``, ``recall@10`` and ``ndcg@10`` of a ranking. Items that share a SID are in random order, see
    :func:`~recast_ref.lab.evaluation.hits`.

    Args:
        found: bool ``(Q, W, K)``.
        items: int64 ``(Q, W)``.
    """
    real = _real(prompts)
    worth = real.double() if prompts.worth is None else prompts.worth.double() * real
    targets = real.sum(dim=1).clamp(min=1)
    first, ten, gain = (
        torch.stack([measure(found[..., k], items, n) for k in range(found.shape[2])], dim=1)
        for measure, n in ((hits, 1), (hits, 10), (ndcg, 10))
    )
    discount = 1 / (torch.arange(10, dtype=torch.float64) + 2).log2()
    ideal = discount.cumsum(dim=0)[targets.clamp(max=10) - 1]
    return {
        "pass@1": (first * worth).sum(dim=1),
        "recall@10": (ten * worth).sum(dim=1) / targets,
        "ndcg@10": (gain * worth).sum(dim=1) / ideal,
    }


def _chance(policy, prompts, world):
    q, k, _ = prompts.wanted.shape
    thoughts = max(world.answers.thoughts, 1)
    real = _real(prompts)
    targets = prompts.wanted.where(real[..., None], world.trie.sids[0])  # the policy must be able to read padding
    if world.answers.thoughts:
        thought = torch.arange(thoughts).view(1, thoughts, 1, 1).expand(q, -1, k, -1)
        targets = torch.cat([thought, targets[:, None].expand(-1, thoughts, -1, -1)], dim=-1).flatten(1, 2)
    chance = policy.logps(prompts.history, targets).sum(dim=-1).exp().view(q, thoughts, k).sum(dim=1)
    chance = chance / world.trie.items(prompts.wanted).clamp(min=1) * real
    return (chance if prompts.worth is None else chance * prompts.worth).sum(dim=1)


def _sets(policy, prompts, world, generator):
    best = policy.sample(prompts.history, 1)
    drawn = policy.sample(prompts.history, DRAWN_SETS, generator)
    return {
        name: rewards(world, prompts, responses).mean(dim=1)
        for name, responses in (("pass@1", best), ("sampled_p@1", drawn))
    }


def popular(world, prompts):
    """The outcomes of naming the most popular items to everybody. A sample is an item by its share of the targets."""
    real = _real(prompts)
    each = [most_popular(world.trie, world.popularity, prompts.wanted[:, k]) for k in range(prompts.wanted.shape[1])]
    found = torch.stack([found for found, _, _ in each], dim=2) & real[:, None]
    chance = torch.stack([share for _, _, share in each], dim=1) * real
    worth = 1.0 if prompts.worth is None else prompts.worth
    result = {**ranking(found, each[0][1], prompts), "sampled_p@1": (chance * worth).sum(dim=1)}
    return {name: values.float() for name, values in result.items()}


def rewards(world, prompts, responses):
    """``r`` of responses ``(Q, G, T)``: 1 for a hit, or what the best target that it hits is worth."""
    predictions = world.answers.sids(responses)
    if prompts.worth is None:
        return backend.ops.hit_rewards(predictions, prompts.wanted)
    hit = (predictions[:, :, :, None] == prompts.wanted[:, None, None]).all(dim=-1) & _real(prompts)[:, None, None]
    return (hit * prompts.worth[:, None, None]).flatten(start_dim=2).amax(dim=2)


def composition(rewards):
    """Shares of all-zero, single-hit and multi-hit groups: three floats."""
    regimes = backend.ops.group_regimes(rewards).bincount(minlength=3)
    return (regimes / max(int(regimes.sum()), 1)).tolist()


@torch.no_grad()
def probe(policy, world, prompts, group_size):
    """The :func:`composition` of groups of the first 512 prompts, drawn the same way each time."""
    generator = torch.Generator().manual_seed(0)
    prompts = prompts[:PROBED]
    drawn = []
    for at in range(0, len(prompts), BATCH):
        part = prompts[slice(at, at + BATCH)]
        drawn.append(rewards(world, part, world.answers.sample(policy, part.history, group_size, generator)))
    return composition(torch.cat(drawn))


def mean(values):
    return math.fsum(values.tolist()) / len(values) if len(values) else None


def _real(prompts):
    return (prompts.wanted >= 0).all(dim=-1)
