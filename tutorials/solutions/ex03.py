"""Solutions of tutorial 3."""

import torch


def add_gt(rewards):
    q, g = rewards.shape
    lost = (rewards > 0).any(dim=1) & (rewards[:, -1] == 0)  # a hit in the last place is overwritten by itself
    rewards = rewards.clone()
    rewards[:, -1] = 1
    return torch.full((q,), g - 1), rewards, lost


def sft_share(p, g):
    # (G - 1) / G scales both parts alike and cancels, but for G = 1, where it makes both 0: a group of one has no other to
    # be better than.
    repair = (1 - p) ** (g - 1) / g
    return repair / (p + repair) if g > 1 else 0.0


def forgotten_weights(anchor_logps, replaced_logps, advantage=1.0, clip_low=0.2, clip_high=0.28):
    # The gradient of the ratio is the ratio times that of the log-prob. The clip stops what has gone far enough in the
    # direction of the advantage: above 1 + clip_high if it is to rise, below 1 - clip_low if it is to fall.
    ratio = (anchor_logps - replaced_logps).exp()
    stopped = ratio > 1 + clip_high if advantage > 0 else ratio < 1 - clip_low
    return ratio.masked_fill(stopped, 0.0)
