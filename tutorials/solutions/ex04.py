"""Solutions of tutorial 4."""

import torch


def fresh_loss(weight, negative_weight, lengths, shared=None):
    # Every ratio is 1, so a token's loss is minus its advantage: no log-probability enters. A token without an advantage
    # still counts in the mean.
    positive, negative = lengths
    return (-weight * positive + negative_weight * (negative - (shared or 0))) / (positive + negative)


def chance_to_learn(p1, p2, g):
    # The hardest negative shares the longest prefix of the group, so a code is shared as soon as one answer shares it. The
    # answer that the anchor replaces has the lowest score: it never takes the last such answer away. On code 3 a miss
    # always differs or has left before.
    return (1 - p1) ** g, (1 - p1 * p2) ** g, 1.0


def mean_push(policy, g):
    # The likeliest of g draws is item i if none is before i and not all are after i. The push is policy - chosen.
    after = (1 - policy.cumsum(dim=0)).clamp(min=0)  # chance that one draw is after i
    before = torch.cat([torch.ones_like(after[:1]), after[:-1]])
    return policy - (before**g - after**g)
