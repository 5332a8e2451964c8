"""Draws of the inputs of ``recast_ref.reference``. Every value is drawn, so that a failure shrinks to a small group."""

import math

import torch
from hypothesis import strategies as st

SMALL = st.integers(0, 5)


@st.composite
def groups(draw):
    """``rewards, scores, repairable, tie_break`` of sparse-hit groups; many ties, and every hit rate from none to all."""
    q, g = draw(SMALL), draw(SMALL)
    hits = draw(st.sampled_from([[0.0], [0.0, 0.0, 0.0, 1.0], [0.0, 1.0], [1.0]]))
    if draw(st.booleans()):
        hits = [h * draw(st.sampled_from([0.0001, 0.1, 0.5, 1.0, 3.0])) for h in hits] + [0.0]
    rewards = _matrix(draw, q, g, st.sampled_from(hits))
    # Structural scores, or any other that can be ranked.
    ranks = draw(st.sampled_from([[0.0, 0.01, 0.1, 1.0], [0.0, 0.01, 0.1], [-math.inf, -1.0, 0.0001, 2.0]]))
    scores = _matrix(draw, q, g, st.sampled_from(ranks))
    repairable = torch.tensor(draw(st.lists(st.booleans(), min_size=q, max_size=q)), dtype=torch.bool)
    tie_break = _matrix(draw, q, g, st.sampled_from([0.0, 0.25, 0.5, 0.75]))
    return rewards, scores, repairable, tie_break


def _matrix(draw, rows, columns, values):
    cells = draw(st.lists(values, min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(cells, dtype=torch.float32).view(rows, columns)


@st.composite
def sids(draw):
    """``predictions (Q, G, M, L)`` and ``targets (Q, K, L)`` with few codes, so that prefixes agree, and some padding."""
    q, g, m, k = (draw(st.integers(0, 4)) for _ in range(4))
    levels = draw(st.integers(1, 4))

    def codes(*shape):
        count = torch.Size(shape).numel()
        return torch.tensor(draw(st.lists(st.integers(-1, 2), min_size=count, max_size=count)), dtype=torch.int64).view(
            shape
        )

    return codes(q, g, m, levels), codes(q, k, levels)


@st.composite
def loss_inputs(draw, dtype=torch.float64):
    """Arguments and options of ``policy_loss``: ragged masks, and ratios on both sides of every clip and clamp."""
    b, t = draw(st.integers(0, 4)), draw(st.integers(0, 4))

    def matrix(values, columns=t):
        shape = (b, columns)
        cells = draw(st.lists(values, min_size=b * columns, max_size=b * columns))
        return torch.tensor(cells, dtype=dtype).view(shape)

    logps = matrix(st.floats(-6, 0))
    far = st.sampled_from([-30.0, 30.0])
    shift = matrix(st.floats(-2.5, 2.5) | far)
    ref_shift = matrix(st.floats(-4, 4) | far)
    advantages = matrix(st.floats(-2, 2)) if draw(st.booleans()) else matrix(st.floats(-2, 2), 1)[:, 0]
    mask = matrix(st.sampled_from([0.0, 1.0])).bool()
    options = {
        "clip_low": draw(st.sampled_from([0.0, 0.2, 0.5])),
        "clip_high": draw(st.sampled_from([0.28, 1.0])),
        "dual_clip": draw(st.sampled_from([1.5, 3.0, 10.0])),
        "kl_coef": draw(st.sampled_from([0.0, 0.1])),
        "aggregate": draw(st.sampled_from(["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])),
    }
    return (logps, logps + shift, advantages, mask, logps + ref_shift), options
