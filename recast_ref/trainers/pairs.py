"""From the rows of any trainer to the rows that its update keeps: repair, then contrast (arXiv 2604.22169).

A trainer samples groups and holds them as flat rows. :func:`choose_pairs` says which rows to keep, which of them the
anchor overwrites with what, and what each weighs, for groups of any size whose rows come in any order::

    >>> groups = ["q1", "q1", "q1", "q2", "q2", "q2"]                  # the prompt of each row
    >>> named = [[(12, 7, 40)], [(30, 2, 11)], [(12, 9, 201)],         # q1: no hit
    ...          [(5, 1, 2)], [(5, 1, 3)], [(44, 0, 8)]]               # q2: the second row hits
    >>> targets = [[(12, 7, 201)]] * 3 + [[(5, 1, 3)]] * 3
    >>> rewards = torch.tensor([0.0, 0, 0, 0, 1, 0])
    >>> pairs = choose_pairs(groups, rewards, named, targets)
    >>> pairs.rows          # positive, negative, positive, negative
    [1, 0, 4, 3]
    >>> pairs.anchors       # row 1 becomes the ground truth; q2 is left alone
    {1: (12, 7, 201)}
    >>> pairs.advantages
    tensor([ 1., -1.,  1., -1.])

Overwrite the anchors' rows, keep ``rows``, and drop the others **before** old and reference log-probs are computed:
that is where the saving is. An anchor was not sampled, so its old log-probs come from one teacher-forced pass of the
old policy. The advantages go to the loss that you have, or to :func:`recast_ref.reference.logits_loss`::

    >>> from recast_ref.reference import logits_loss, token_logps
    >>> tokens = torch.tensor([[12, 7, 201], [12, 7, 40], [5, 1, 3], [5, 1, 2]])  # of the four rows that are kept
    >>> logits = torch.zeros(4, 3, 300, requires_grad=True)                       # your model's for them
    >>> old_logps = token_logps(logits, tokens).detach()                          # of the policy before the update
    >>> loss = logits_loss(logits, tokens, old_logps, pairs.advantages, mask=torch.ones(4, 3)).loss
    >>> loss.backward()     # a loss of 0, and a gradient that is not

With groups of one size and SIDs as tensors, :func:`recast_ref.reference.recast_from_sids` does it in one call.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import Arguments, refuse
from ..reference import branch_mask
from .sids import Sid, pad_sids

ARMS = ("recast", "repair", "contrast")


class Pairs(NamedTuple):
    """What an update keeps of the rows it was given. Rows are numbered as they came."""

    rows: list[int]  # kept rows, group by group in order of appearance; of a pair the positive first, then the negative
    anchors: dict[int, Sid]  # kept row -> the target SID that overwrites it
    advantages: Tensor  # (len(rows),): one for each kept row, in the dtype of the rewards
    every_advantage: Tensor  # (B,): the same for all rows, 0 for those that are dropped
    regimes: dict[Hashable, str]  # group id -> "all_zero", "single_hit" or "multi_hit", before repair
    repaired: list[Hashable]  # group ids
    skipped: list[Hashable]  # group ids, of those with nothing to learn from
    contradicted: list[Hashable]  # group ids, of those in which a miss names the very SIDs of the positive


def choose_pairs(
    groups: Sequence[Hashable],
    rewards: Tensor,
    named: Sequence[Sequence[Sid]],
    targets: Sequence[Sequence[Sid]],
    arm: str = "recast",
    weight: float = 1.0,
    negative_weight: float | None = None,
    tie_break: Tensor | None = None,
    normalize: bool = True,
    eps: float = 1e-6,
    functions: ModuleType | None = None,
) -> Pairs:
    """Choose what an update keeps of the groups in a batch.

    A miss that names the same SIDs as the group's positive (a format gate in the reward can give the exact target 0)
    is never its negative: it would be pushed up and down at once. The next hardest miss is, and without one the group
    is skipped. ``arm="repair"`` keeps such rows and only counts them.

    Args:
        groups: an id for each row, anything hashable; rows of one id are a group.
        rewards: floating ``(B,)``, finite. A hit is a reward above 0.
        named: for each row, a list of the SIDs in it: tuples of ``L`` codes.
        targets: for each row, a list of its prompt's target SIDs, the same for all rows of a group; the first is its
            anchor. A group without targets is not repaired.
        arm: ``"recast"``, ``"contrast"`` (without repair), or ``"repair"`` (without contrast: all rows of a group that
            is not skipped are kept, with :func:`~recast_ref.reference.group_advantages`).
        weight, negative_weight: advantages of a pair; the second defaults to the first, as published. Measured to be
            stable: a negative weight of 0.2.
        tie_break: floating ``(B,)``, random in training; ties go to the largest key, else to the row that comes first.
        normalize, eps: of :func:`~recast_ref.reference.group_advantages`, for ``arm="repair"``.
        functions: the module that selects, :mod:`recast_ref.reference` or :mod:`recast_ref.fast`; default
            :mod:`recast_ref.auto`, which is imported when first needed.

    Returns:
        :class:`Pairs`.

    Raises:
        TypeError, ValueError: an argument of another type, length or value, naming it.
    """
    _check(groups, rewards, named, targets, arm, tie_break)
    if functions is None:
        from .. import auto as functions
    rewards = rewards.detach()
    grpo = {"normalize": normalize, "eps": eps}

    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    every, kept, anchors, contradicted = torch.zeros_like(rewards), {}, {}, set()
    for size in sorted({len(rows) for rows in members.values()}):  # groups of one size at a time
        ids = [group for group, rows in members.items() if len(rows) == size]
        rows = torch.tensor([members[group] for group in ids], device=rewards.device)  # (Q, G)
        groups_of_size = _Groups(functions, rows, rewards, named, targets, tie_break)
        if arm != "contrast":
            groups_of_size.repair()
        if arm == "repair":
            found = groups_of_size.keep_all(grpo)
        else:
            found = groups_of_size.contrast(weight, negative_weight)
        every[rows] = found.advantages
        for q, group in enumerate(ids):
            if found.contradicted[q]:
                contradicted.add(group)
            if found.positive[q] >= 0:
                mine, at = members[group], groups_of_size.slot[q]
                kept[group] = mine if arm == "repair" else [mine[found.positive[q]], mine[found.negative[q]]]
                if at >= 0:
                    anchors[mine[at]] = tuple(targets[mine[0]][0])
    hits = Counter(group for group, reward in zip(groups, rewards.tolist()) if reward > 0)
    chosen = [row for group in members if group in kept for row in kept[group]]
    return Pairs(
        rows=chosen,
        anchors=anchors,
        advantages=every[chosen],
        every_advantage=every,
        regimes={group: ("all_zero", "single_hit", "multi_hit")[min(hits[group], 2)] for group in members},
        repaired=[group for group in members if group in kept and not anchors.keys().isdisjoint(kept[group])],
        skipped=[group for group in members if group not in kept],
        contradicted=[group for group in members if group in contradicted],
    )


def branch_advantages(advantages: Tensor, tokens: Tensor) -> Tensor:
    """Per-token advantages: a negative's counts only from the branch point, where it leaves its positive.

    Args:
        advantages: ``(2N,)``, a positive and its negative in turn, as in :attr:`Pairs.advantages`.
        tokens: int64 ``(2N, T)``, the answers that are kept, the anchors in place, padded alike.

    Returns:
        ``(2N, T)``.

    Example:
        >>> branch_advantages(torch.tensor([1.0, -1.0]), torch.tensor([[12, 7, 201], [12, 7, 40]]))
        tensor([[ 1.,  1.,  1.],
                [ 0.,  0., -1.]])

    Source: :func:`recast_ref.reference.branch_mask`.
    """
    positive, negative = tokens.unflatten(0, (-1, 2)).unbind(dim=1)
    counts = torch.stack([torch.ones_like(positive, dtype=torch.bool), branch_mask(positive, negative)], dim=1)
    return torch.where(counts.flatten(0, 1), advantages[:, None], 0)


class _Found(NamedTuple):
    positive: list  # (Q,), its column, -1 where the group is skipped
    negative: list  # (Q,)
    advantages: Tensor  # (Q, G)
    contradicted: list  # bool (Q,)


class _Groups:
    """Groups of one size: ``rows`` is int64 ``(Q, G)``."""

    def __init__(self, functions, rows, rewards, named, targets, tie_break):
        self.functions, flat = functions, rows.flatten().tolist()
        self.targets = [targets[row] for row in rows[:, 0].tolist()]
        self.rewards, self.keys = rewards[rows], None if tie_break is None else tie_break[rows]
        levels = next((len(sid) for row in (*named, *targets) for sid in row), 1)
        predictions = pad_sids([named[row] for row in flat], levels).unflatten(0, rows.shape).to(rows.device)
        self.scores = functions.structural_scores(predictions, pad_sids(self.targets, levels).to(rows.device))
        self.slot = [-1] * len(rows)
        sets = [frozenset(named[row]) for row in flat]
        self.sets = [sets[start : start + rows.shape[1]] for start in range(0, len(flat), rows.shape[1])]

    def repair(self):
        repairable = torch.tensor([len(sids) > 0 for sids in self.targets], device=self.rewards.device)
        slot, self.rewards, self.scores = self.functions.repair(self.rewards, self.scores, repairable, self.keys)
        self.slot = slot.tolist()
        for q, at in enumerate(self.slot):
            if at >= 0:
                self.sets[q][at] = frozenset(self.targets[q][:1])

    def keep_all(self, grpo):
        advantages = self.functions.group_advantages(self.rewards, **grpo)
        kept = (advantages != 0).any(dim=1).long() - 1
        same = self.contradictions(self.rewards > 0)
        return _Found(kept.tolist(), kept.tolist(), advantages, same.any(dim=1).tolist())

    def contrast(self, weight, negative_weight):
        options = (weight, negative_weight, self.keys)
        positive, negative, advantages = self.functions.contrast(self.rewards, self.scores, *options)
        column = torch.arange(self.rewards.shape[1], device=positive.device)
        same = self.contradictions(column == positive[:, None])
        if same.any():
            last = self.scores.masked_fill(same, -torch.inf)  # chosen only where there is no other miss
            positive, negative, advantages = self.functions.contrast(self.rewards, last, *options)
            alone = (negative >= 0) & same.gather(1, negative.clamp(min=0)[:, None])[:, 0]
            positive, negative = positive.masked_fill(alone, -1), negative.masked_fill(alone, -1)
            advantages = advantages.masked_fill(alone[:, None], 0)
        return _Found(positive.tolist(), negative.tolist(), advantages, same.any(dim=1).tolist())

    def contradictions(self, positive):
        """Which misses name the very SIDs of one of their group's positives: bool ``(Q, G)``, as the argument."""
        same = []
        for sets, is_positive in zip(self.sets, positive.tolist()):
            named = {sids for sids, is_so in zip(sets, is_positive) if is_so and sids}
            same.append([sids in named for sids in sets])
        return torch.tensor(same, device=self.rewards.device) & (self.rewards <= 0)


def _check(groups, rewards, named, targets, arm, tie_break):
    if arm not in ARMS:
        raise ValueError(f"arm: expected one of {', '.join(ARMS)}, got {arm!r}")
    arguments = Arguments()
    arguments.tensor("rewards", rewards, "B", "floating")
    refuse("rewards", ~rewards.isfinite(), rewards, "finite values")
    if tie_break is not None:
        arguments.tensor("tie_break", tie_break, "B", "floating")
    for name, rows in (("groups", groups), ("named", named), ("targets", targets)):
        if len(rows) != len(rewards):
            raise ValueError(f"{name}: expected one for each of the {len(rewards)} rewards, got {len(rows)}")
    levels = None
    for name, rows in (("named", named), ("targets", targets)):
        for row, sids in enumerate(rows):
            for sid in sids:
                levels = levels or len(sid)
                if len(sid) != levels or not levels:
                    raise ValueError(
                        f"{name}: expected SIDs of {levels} codes as the first has, got {sid} in row {row}"
                    )
    first = {}
    for row, (group, sids) in enumerate(zip(groups, targets)):
        if first.setdefault(group, sids) != sids:
            raise ValueError(f"targets: expected the same for all rows of group {group!r}, row {row} has {sids}")
