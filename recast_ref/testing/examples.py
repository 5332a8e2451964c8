"""Four variants to copy from, and what the kit says of each. ``recast-ref check recast_ref.testing.examples:NAME``."""

import torch
from torch import Tensor

from ..reference import ReCast, branch_mask, contrast, recast, recast_from_sids, repair
from .checking import breaks


def recast_by_sorting(
    rewards: Tensor, scores: Tensor, repairable: Tensor | None = None, tie_break: Tensor | None = None
) -> ReCast:
    """ReCast once more, one group at a time and by sorting: correct, so every law holds."""
    q, g = rewards.shape
    keys = torch.zeros(q, g) if tie_break is None else tie_break
    slot, positive, negative = (torch.full((q,), -1) for _ in range(3))
    advantages = torch.zeros_like(rewards, requires_grad=False)
    for p in range(q):
        r, u, key = rewards[p].tolist(), scores[p].tolist(), keys[p].tolist()
        if g and max(r) <= 0 and (repairable is None or repairable[p]):
            worst = sorted(range(g), key=lambda i: (u[i], -key[i]))[0]
            slot[p] = worst
            r[worst] = u[worst] = 1.0
        hits = sorted((i for i in range(g) if r[i] > 0), key=lambda i: (-r[i], -key[i]))
        misses = sorted((i for i in range(g) if r[i] <= 0), key=lambda i: (-u[i], -key[i]))
        if hits and misses:
            positive[p], negative[p] = hits[0], misses[0]
            advantages[p, hits[0]], advantages[p, misses[0]] = 1.0, -1.0
    return ReCast(slot, positive, negative, advantages)


@breaks("agreement", "by_hand", "zero_sum", because="on the shared codes the positive's +1 stands alone")
def branch_point(responses: Tensor, targets: Tensor, tie_break: Tensor | None = None) -> Tensor:
    """ReCast whose negative counts only from the code where it leaves the positive: advantages per code ``(Q, G, L)``."""
    picked = recast_from_sids(responses[:, :, None], targets[:, None], tie_break=tie_break)
    is_slot = torch.arange(responses.shape[1]) == picked.slot[:, None]
    tokens = torch.where(is_slot[..., None], targets[:, None], responses)
    is_positive = torch.arange(responses.shape[1]) == picked.positive[:, None]
    positive = (tokens * is_positive[..., None]).sum(dim=1, keepdim=True).expand_as(tokens)
    advantages = picked.advantages[..., None].expand(tokens.shape)
    return torch.where(advantages < 0, advantages * branch_mask(positive, tokens), advantages)


@breaks("agreement", "ties", because="ties go to the likeliest response, not to a random key")
def recast_by_logp(rewards: Tensor, scores: Tensor, logps: Tensor, repairable: Tensor | None = None) -> ReCast:
    """ReCast that gives every tie to the likeliest response.

    On the sorted rollouts of a beam search this is what "lowest index" does without saying so: of all responses that are
    equally wrong, the likeliest is replaced or pushed down, step after step, and the policy collapses. Hence random keys.
    """
    return recast(rewards, scores, repairable, tie_break=logps)


def recast_with_a_bug(
    rewards: Tensor, scores: Tensor, repairable: Tensor | None = None, tie_break: Tensor | None = None
) -> ReCast:
    """ReCast that counts hits by summing rewards: right for 0 and 1, but a graded hit of 0.5 is repaired away."""
    no_hit = rewards.sum(dim=1) < 1
    usable = no_hit if repairable is None else no_hit & repairable
    fixed = repair(torch.zeros_like(rewards), scores, usable, tie_break)
    rewards = torch.where(fixed.slot[:, None] < 0, rewards, fixed.rewards)
    return ReCast(fixed.slot, *contrast(rewards, fixed.scores, tie_break=tie_break))
