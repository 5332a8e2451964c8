"""One group of eight rollouts, step by step: ``recast-ref explain``."""

import torch

from . import reference

TARGET = (12, 7, 201)
ROLLOUTS = (
    (12, 7, 40),
    (30, 2, 11),
    (12, 9, 201),
    (12, 7, 88),
    (5, 7, 201),
    (12, 1, 3),
    (30, 2, 96),
    (44, 0, 8),
)


def explain():
    """The text that ``recast-ref explain`` prints. The table is computed by ``recast_ref.reference``."""
    responses = torch.tensor(ROLLOUTS)
    predictions, targets = responses[None, :, None], torch.tensor(TARGET)[None, None]  # (1, 8, 1, 3), (1, 1, 3)
    rewards = reference.hit_rewards(predictions, targets)
    scores = reference.structural_scores(predictions, targets)
    grpo = reference.group_advantages(rewards)
    regime = ("all-zero", "single-hit", "multi-hit")[reference.group_regimes(rewards)]
    slot, repaired, repaired_scores = reference.repair(rewards, scores)
    positive, negative, advantages = reference.contrast(repaired, repaired_scores)
    slot, positive, negative = (int(index) for index in (slot, positive, negative))
    own = reference.branch_mask(torch.tensor(TARGET), responses[negative])
    normalised = reference.group_advantages(repaired)[0]

    lines = [
        f"The user's next item is {_sid(TARGET)}. The policy sampled a group of G = {len(ROLLOUTS)} responses.",
        "",
        "                       sampled         |   repaired   |",
        "  i  response        r     u    GRPO A |  r     u     |  ReCast A",
    ]
    for i, response in enumerate(ROLLOUTS):
        mark = {slot: f"  now the anchor {_sid(TARGET)}", negative: "  the hardest negative"}.get(i, "")
        row = f"  {i}  {_sid(response)}   {rewards[0, i]:.0f}   {scores[0, i]:.2f}   {_signed(grpo[0, i])}  |"
        row += f"  {repaired[0, i]:.0f}   {repaired_scores[0, i]:.2f}   |   {_signed(advantages[0, i])}{mark}"
        lines.append(row)
    lines += [
        "",
        f"1 Rewards    r is 1 for a response that is the target: {rewards[0].sum():.0f} of {len(ROLLOUTS)}.",
        f"2 GRPO       A = (r - mean) / (std + 1e-6). The group is {regime}: every A is {grpo.abs().max():.0f}, so nothing is learned.",
        "3 Structure  u sees near misses: 0.1 for two leading codes, 0.01 for one. It ranks; it is never a reward.",
        f"4 Repair     no hit, so an anchor, the ground truth, replaces the response with the lowest u: number {slot}",
        "             (of several; the lowest index here, a random key in training). There r and u become 1.",
        f"5 Contrast   strongest positive {positive}, hardest negative {negative}: A = +1 and -1, and 0 for all others.",
        f"6 Update     2 responses of {len(ROLLOUTS)} enter the old, reference and actor passes.",
        "",
        "Beside it:",
        f"  repair alone, normalised as GRPO does: {_signed(normalised[positive])} for the anchor, "
        f"{_signed(normalised[negative])} for each other response",
        f"  branch point (an option): the negative leaves the positive at code {int(own.long().argmax()) + 1}, so its "
        f"A per code is {', '.join(_signed(-a) for a in own.float())}",
    ]
    return "\n".join(lines)


def _sid(codes):
    return "({:>2}, {:>1}, {:>3})".format(*codes)


def _signed(value):
    value = float(value)
    return " 0.00" if value == 0 else f"{value:+.2f}"
