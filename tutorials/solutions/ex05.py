"""Solutions of tutorial 5."""

import torch


def slope(logps, old_logps, advantages, clip_low=0.2, clip_high=0.28, dual_clip=3.0):
    # Within its zone a token has -A * ratio. A hit stops at the upper edge, a miss at the lower one and at the dual clip;
    # moves in the wrong direction are never clipped.
    log_ratio = logps - old_logps
    ratio = log_ratio.clamp(-20, 20).exp()
    up = (advantages > 0) & (ratio < 1 + clip_high)
    down = (advantages < 0) & (ratio > 1 - clip_low) & (ratio < dual_clip)
    return torch.where((up | down) & (log_ratio.abs() < 20), -advantages * ratio, 0.0)


def k3_pull(policy, reference):
    # -sum_x q(x) * (e_x - policy): the gradient of KL(reference || policy), as of a cross-entropy with soft labels.
    return policy - reference


def of_microbatches(losses, masks, aggregate):
    # A mean of means needs weights: what each part was divided by. For token-mean that is its tokens, for the others its rows
    # that have a token. Empty parts have weight 0.
    weights = [m.sum().item() if aggregate == "token-mean" else (m.sum(dim=1) > 0).sum().item() for m in masks]
    return sum(w * loss for w, loss in zip(weights, losses)) / max(sum(weights), 1)
