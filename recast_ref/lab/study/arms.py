"""The arms of the study: all that ``recast-ref compare`` has, and ours.

An arm turns a batch of prompts into blocks of responses, each with a weight per code, and the update follows the gradient of
``sum weight * logp``. Every block of a group arm is divided by its number of codes, as a token mean is.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from ...reference.anchoring import anchor_weights, choose_anchor, nearness
from ...reference.mixing import hybrid
from .. import arms as lab
from .. import backend
from .outcomes import rewards

SFT_SHARE = 0.1  # of the supervised term in grpo+sft
LARGEST = 4.0  # weight of an anchor


class Batch(NamedTuple):
    """Prompts and, for arms that roll out, groups."""

    world: object
    policy: object
    prompts: object  # Prompts of Q prompts
    generator: torch.Generator
    anchor: str  # likeliest, nearest or random: which of several targets becomes the anchor
    groups: lab.Groups | None = None  # its targets are the anchors, as answers (Q, T)


class Block(NamedTuple):
    """Responses of some of the prompts."""

    prompts: torch.Tensor  # int64 (N,)
    responses: torch.Tensor  # int64 (N, W, T)
    weights: torch.Tensor  # (N, W, T)
    alpha: float = 0.0  # weigh by the anchor's probability to this power, see anchor_weights
    pair: bool = False  # the first response is the anchor and weighs the whole row; False: every response is one


@dataclass(frozen=True)
class Arm:
    """One way to learn."""

    name: str
    title: str
    blocks: Callable[[Batch], list] | None  # None: nothing is learned
    rolls_out: bool = True
    anchors: bool = False  # it puts anchors into all-zero groups
    dynamic: bool = False  # it goes on sampling until a batch of groups has a signal


def roll_out(batch, group_size):
    """The batch with groups: rewards of what is wanted, scores against what is shown, and an anchor for each prompt."""
    world, prompts, generator = batch.world, batch.prompts, batch.generator
    responses = world.answers.sample(batch.policy, prompts.history, group_size, generator)
    predictions = world.answers.sids(responses)
    return batch._replace(
        groups=lab.Groups(
            responses,
            rewards(world, prompts, responses),
            backend.ops.structural_scores(predictions, prompts.shown),
            _anchors(batch, responses, predictions),
            torch.rand(responses.shape[:2], generator=generator),
        )
    )


def _anchors(batch, responses, predictions):
    """The answer ``(Q, T)`` that the log would have given. It thinks as the first response of its group does."""
    world, shown, generator = batch.world, batch.prompts.shown, batch.generator
    thoughts = responses[:, 0, 0] if world.answers.thoughts else None
    answers = world.answers.of_targets(shown, generator, thoughts)
    if answers.shape[1] == 1:
        return answers[:, 0]
    if batch.anchor == "likeliest":
        with torch.no_grad():
            values = batch.policy.logps(batch.prompts.history, answers).sum(dim=-1)
    elif batch.anchor == "nearest":
        values = nearness(predictions, shown)
    else:
        values = torch.zeros(shown.shape[:2])
    chosen = choose_anchor(shown, values, torch.rand(values.shape, generator=generator))
    return answers[torch.arange(len(shown)), chosen]


def _from_lab(signal):
    """The blocks of an arm of ``recast-ref compare``, which sees groups only and averages over the codes that it kept."""

    def blocks(batch):
        made = signal(batch.groups)
        teaches = (made.advantages != 0).flatten(start_dim=1).any(dim=1)  # no group that counts for nothing is read
        weights = made.advantages / max(made.advantages.numel(), 1)
        return [Block(made.prompts[teaches], made.responses[teaches], weights[teaches])]

    return blocks


def dr_grpo(groups):
    """GRPO without the division by the deviation: a group whose hit is worth more counts for more."""
    whole = lab.grpo(groups)
    advantages = backend.ops.group_advantages(groups.rewards, normalize=False)
    return whole._replace(advantages=advantages[..., None].expand_as(whole.advantages))


def hybrid_blocks(alpha):
    """GRPO for groups with a hit; for the others +1 on the anchor and -0.3 on the negative from its branch point on. Both over
    the two responses a prompt that a pair has. Anchors weigh ``p^alpha``."""

    def blocks(batch):
        groups = batch.groups
        made = hybrid(groups.rewards, groups.scores, tie_break=groups.tie_break)
        responses = lab.place_anchor(groups.responses, made.slot, groups.targets)
        q, _, codes = responses.shape
        scale = 2 * q * codes
        teaches = (made.slot < 0) & (made.advantages != 0).any(dim=1)
        whole = made.advantages[teaches][..., None].expand(-1, -1, codes) / scale
        pairs = (made.positive >= 0).nonzero().squeeze(1)
        rows = torch.stack([made.positive, made.negative], dim=1)[pairs]
        two = responses[pairs[:, None], rows]
        advantages = made.advantages[pairs].gather(1, rows)[..., None].expand(-1, -1, codes)
        own = backend.ops.branch_mask(two[:, 0], two[:, 1])
        advantages = torch.stack([advantages[:, 0], advantages[:, 1] * own], dim=1) / scale
        return [
            Block(teaches.nonzero().squeeze(1), responses[teaches], whole),
            Block(pairs, two, advantages, alpha, pair=True),
        ]

    return blocks


def supervised_blocks(alpha):
    """Every target that the log shows, weighing ``p^alpha`` and what it is worth. A thought before it is the policy's own."""

    def blocks(batch):
        world, prompts = batch.world, batch.prompts
        thoughts = None
        if world.answers.thoughts:
            thoughts = world.answers.sample(batch.policy, prompts.history, 1, batch.generator)[:, 0, 0]
        answers = world.answers.of_targets(prompts.shown, batch.generator, thoughts)
        weights = torch.full(answers.shape, 1 / answers.numel())
        if prompts.worth is not None:
            weights = weights * prompts.worth[..., None]
        return [Block(torch.arange(len(answers)), answers, weights, alpha)]

    return blocks


def grpo_and_supervised(batch):
    """The GRPO loss, and a tenth of the supervised one."""
    (supervised,) = supervised_blocks(0.0)(batch)
    return [*_from_lab(lab.grpo)(batch), supervised._replace(weights=SFT_SHARE * supervised.weights)]


def surrogate(policy, history, blocks):
    """The loss of blocks, ``-sum weight * logp``. None if there is nothing to learn.

    Returns:
        the loss and the number of tokens that were read, prompts included.
    """
    loss, tokens = None, 0
    for block in blocks:
        if not len(block.prompts):
            continue
        logps = policy.logps(history[block.prompts], block.responses)
        weights = block.weights
        if block.alpha:
            whole = logps.detach().sum(dim=-1)
            whole = whole[:, :1] if block.pair else whole
            weights = weights * anchor_weights(whole.flatten(), block.alpha, LARGEST).view_as(whole)[..., None]
        part = -(weights * logps).sum()
        loss = part if loss is None else loss + part
        tokens += len(block.prompts) * policy.prompt_length + block.responses.numel()
    return loss, tokens


ARMS = {
    arm.name: arm
    for arm in (
        Arm("popular", "no policy: the most popular items, to everybody", None, rolls_out=False),
        Arm("base", "where every arm starts", None, rolls_out=False),
        *(
            Arm(name, arm.title, _from_lab(arm.signal), anchors=name.startswith("re"))
            for name, arm in lab.ARMS.items()
            if arm.signal
        ),
        Arm("drgrpo", "GRPO without dividing by the group's deviation", _from_lab(dr_grpo)),
        Arm("dapo", "GRPO on full batches: sampling goes on until a batch of groups has a signal", None, dynamic=True),
        Arm("grpo+sft", "GRPO, and 0.1 times the supervised loss of the same prompts", grpo_and_supervised),
        Arm("hybrid", "GRPO where there is a hit, else +1 on the anchor and -0.3 on a negative", hybrid_blocks(0.0), anchors=True),
        Arm("hybrid-sqrt", "hybrid, each anchor weighing the square root of its probability", hybrid_blocks(0.5), anchors=True),
        Arm("hybrid-1", "hybrid, each anchor weighing its probability", hybrid_blocks(1.0), anchors=True),
        *(
            Arm(name, f"no rollouts: the targets, each weighing its probability to the power {alpha:g}", supervised_blocks(alpha), rolls_out=False)
            for name, alpha in (("sft", 0.0), ("sft-0.25", 0.25), ("sft-sqrt", 0.5), ("sft-0.75", 0.75), ("expected", 1.0))
        ),
    )
}  # fmt: skip
ARMS["dapo"] = replace(ARMS["dapo"], blocks=ARMS["grpo"].blocks)
