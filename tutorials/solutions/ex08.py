"""Solutions of tutorial 8."""

import math

import torch


def join(a, b):
    largest = max(a[0], b[0])
    if largest == -math.inf:
        return largest, a[1] + b[1]  # -inf - -inf would be NaN; and a NaN that there is stays
    return largest, a[1] * math.exp(a[0] - largest) + b[1] * math.exp(b[0] - largest)


def entropy(row):
    # -sum p log p = lse - sum p x. With y = x - largest: the sums of e^y and of y e^y. When the largest grows by d, each y
    # shrinks by d, so the second sum loses d times the first, and then both shrink.
    largest, total, weighted = -math.inf, 0.0, 0.0
    for x in row:
        if x == -math.inf:
            continue
        if x > largest:
            if total:
                d = x - largest
                weighted = (weighted - d * total) * math.exp(-d)
                total *= math.exp(-d)
            largest = x
        total += math.exp(x - largest)
        weighted += (x - largest) * math.exp(x - largest)
    return math.log(total) - weighted / total


def entropy_gradient(logits, lse, entropies, g):
    # dH / dx_v = -p_v (log p_v + H). Where p_v is 0, log p_v is -inf, and 0 * inf is NaN.
    logps = logits.double() - lse[:, None]
    gradient = torch.where(logps.isfinite(), -logps.exp() * (logps + entropies[:, None]), 0.0)
    return (g[:, None] * gradient).to(logits.dtype)
