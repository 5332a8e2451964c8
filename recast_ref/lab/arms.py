"""The arms of the comparison: what each learns from the same rollouts.

An arm turns a batch of groups into a :class:`Signal`. All but ``sft`` then take the same update (``training.py``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from . import backend


class Groups(NamedTuple):
    """Rollouts of Q prompts and what they are worth."""

    responses: torch.Tensor  # int64 (Q, G, L)
    rewards: torch.Tensor  # (Q, G): r
    scores: torch.Tensor  # (Q, G): u
    targets: torch.Tensor  # int64 (Q, L): the ground truth
    tie_break: torch.Tensor  # (Q, G): random keys


class Signal(NamedTuple):
    """What enters the update. Responses that are not here cost nothing: no old, reference or actor pass sees them."""

    prompts: torch.Tensor  # int64 (N,): which of the Q prompts are updated on
    responses: torch.Tensor  # int64 (N, W, L): W_update responses of each
    advantages: torch.Tensor  # (N, W, L): per token
    repaired: torch.Tensor  # bool (Q,): which groups an anchor was put into


def score(responses, targets, tie_break):
    """Reward and rank rollouts that name one SID each.

    As published, r = 1 for the target's SID, also where other items have it: a policy cannot say which of them it means.
    What the table counts is items (``evaluation.py``).
    """
    predictions, wanted = responses[:, :, None], targets[:, None]
    return Groups(
        responses,
        backend.ops.hit_rewards(predictions, wanted),
        backend.ops.structural_scores(predictions, wanted),
        targets,
        tie_break,
    )


def grpo(groups):
    """OpenOneRec-RL: the whole group, normalised. An all-zero group has no advantage but still pays its KL."""
    return _whole(groups.responses, backend.ops.group_advantages(groups.rewards), slot=None)


def repair(groups):
    """Repair without contrast: the whole group, normalised, with an anchor where there was no hit."""
    fixed = backend.ops.repair(groups.rewards, groups.scores, tie_break=groups.tie_break)
    responses = place_anchor(groups.responses, fixed.slot, groups.targets)
    return _whole(responses, backend.ops.group_advantages(fixed.rewards), fixed.slot)


def contrast(groups):
    """Contrast without repair: the pair of each group that has a hit; all-zero groups are skipped.

    The loss is a mean over what is kept, so the few pairs of a sparse batch make a step of full size.
    """
    pair = backend.ops.contrast(groups.rewards, groups.scores, tie_break=groups.tie_break)
    return _pair(groups.responses, pair, slot=None)


def recast(groups):
    """ReCast as published: repair, then the pair with +1 and -1."""
    picked = backend.ops.recast(groups.rewards, groups.scores, tie_break=groups.tie_break)
    responses = place_anchor(groups.responses, picked.slot, groups.targets)
    return _pair(responses, picked, picked.slot)


def recast_branch(groups):
    """ReCast, with the negative counting only from the code where it leaves the positive."""
    signal = recast(groups)
    own = backend.ops.branch_mask(signal.responses[:, 0], signal.responses[:, 1])
    positive, negative = signal.advantages.unbind(dim=1)
    return signal._replace(advantages=torch.stack([positive, negative * own], dim=1))


def place_anchor(responses, slot, targets):
    """Responses ``(Q, G, L)`` with the ground truth ``(Q, L)`` at ``slot (Q,)``, where that is not -1."""
    is_slot = torch.arange(responses.shape[1]) == slot[:, None]
    return torch.where(is_slot[..., None], targets[:, None], responses)


def _whole(responses, advantages, slot):
    q, _, levels = responses.shape
    repaired = torch.zeros(q, dtype=torch.bool) if slot is None else slot >= 0
    return Signal(torch.arange(q), responses, advantages[..., None].expand(-1, -1, levels), repaired)


def _pair(responses, picked, slot):
    prompts = (picked.positive >= 0).nonzero().squeeze(1)  # skipped groups are dropped
    rows = torch.stack([picked.positive, picked.negative], dim=1)[prompts]
    advantages = picked.advantages[prompts].gather(1, rows)
    repaired = torch.zeros(len(responses), dtype=torch.bool) if slot is None else slot >= 0
    return Signal(
        prompts, responses[prompts[:, None], rows], advantages[..., None].expand(-1, -1, responses.shape[2]), repaired
    )


@dataclass(frozen=True)
class Arm:
    """One row of the table."""

    name: str
    title: str
    # Of 1e-4, 3e-4, 1e-3 and 3e-3, the best for this arm on the synthetic world at G = 8: pass@1 over validation pairs, mean
    # of the last three evaluations and of two seeds. Other worlds and group sizes take the same.
    learning_rate: float
    signal: Callable[[Groups], Signal] | None  # None: no rollouts, learn the ground truth


ARMS = {
    arm.name: arm
    for arm in (
        Arm("grpo", "GRPO as OpenOneRec-RL runs it: the whole group, normalised by its mean and deviation", 3e-4, grpo),
        Arm("recast", "ReCast as published: an anchor where there is no hit, then +1 and -1 on a pair", 1e-3, recast),
        Arm(
            "recast-branch",
            "ReCast, the negative counting only from the code where it leaves the positive",
            1e-3,
            recast_branch,
        ),
        Arm("repair", "an anchor where there is no hit, then the whole group as GRPO takes it", 1e-3, repair),
        Arm("contrast", "the pair of each group with a hit; groups without one are skipped", 3e-4, contrast),
        Arm("sft", "no rollouts: the ground truth of the same prompts, learned as in supervised training", 1e-3, None),
    )
}
