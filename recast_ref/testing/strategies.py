"""Hypothesis strategies for the inputs of signals and losses.

Every value is drawn, none comes from a random generator on the side, so that a failure shrinks to a group that a person can
read and replays from its seed. A size is a range ``(low, high)``, both ends included; a property left at ``None`` is drawn.
"""

import functools
import math
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from .._checks import AGGREGATES

Range = tuple[int, int]  # both ends included

# What people give for a hit, and for a miss; the strategies draw any other number as well.
GRADES = ((1.0, 0.5, 3.0), (0.7,), (0.3, 0.95, 1.0, 1e-4))
PENALTIES = ((0.0,), (-1.0,), (0.0, -0.5), (-0.1,))
_WIDTHS = {torch.float16: 16, torch.bfloat16: 32, torch.float32: 32, torch.float64: 64}


class Groups(NamedTuple):
    """``Q`` groups of ``G`` responses."""

    rewards: Tensor  # (Q, G): r
    scores: Tensor  # (Q, G): u
    repairable: Tensor  # bool (Q,)
    tie_break: Tensor  # (Q, G): keys


class Sids(NamedTuple):
    """What ``Q`` groups of ``G`` responses name, and what they should."""

    predictions: Tensor  # int64 (Q, G, M, L)
    targets: Tensor  # int64 (Q, K, L)


class Anchors(NamedTuple):
    """Up to ``K`` targets of ``Q`` prompts, and what ranks them."""

    targets: torch.Tensor  # int64 (Q, K, L)
    values: torch.Tensor  # (Q, K)
    tie_break: torch.Tensor  # (Q, K): keys


class LossInputs(NamedTuple):
    """A batch of ``B`` rows of ``T`` tokens from a vocabulary of ``V``; ``logps`` are those of ``tokens`` under ``logits``."""

    logits: Tensor  # (B, T, V)
    tokens: Tensor  # int64 (B, T)
    logps: Tensor  # (B, T)
    old_logps: Tensor  # (B, T)
    advantages: Tensor  # (B,) or (B, T)
    mask: Tensor  # bool (B, T)
    ref_logps: Tensor  # (B, T)


@functools.cache  # making and validating a strategy takes hypothesis longer than drawing from it
def of(*values):
    """One of the values; they shrink to the first."""
    return st.sampled_from(values)


@functools.cache
def near(most):
    """A number between ``-most`` and ``most``."""
    return st.floats(-most, most)


@functools.cache
def gaps(most, far):
    """A difference of log-probs: up to ``most``, or 30."""
    return near(most) | of(-30.0, 30.0) if far else near(most)


@functools.cache
def tensors(shape, values, dtype=torch.float32):
    """Tensors of ``shape``, each element drawn from the strategy ``values``."""
    count = math.prod(shape)
    return st.lists(values, min_size=count, max_size=count).map(
        lambda cells: torch.tensor(cells, dtype=dtype).view(shape)
    )


@functools.cache
def permutations(rows, size, dtype=torch.int64):
    """``(rows, size)`` tensors that hold ``0 .. size - 1`` once in each row."""
    one = st.permutations(range(size))
    drawn = st.lists(one, min_size=rows, max_size=rows)
    return drawn.map(lambda cells: torch.tensor(cells, dtype=dtype).view(rows, size))


@functools.cache
def sizes_of(dtype, ends=False):
    """A number above 0 of a dtype: up to a quarter of the largest, so that it can hold the difference of any two, with either
    sign, and some more; down to the smallest. ``ends``: these two are frequent."""
    most, least = torch.finfo(dtype).max / 4, torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    drawn = st.floats(least, most, width=_WIDTHS[dtype])
    return of(most, least) | drawn if ends else drawn


def grades(dtype=torch.float32, ends=False):
    """The reward of a hit: one of :data:`GRADES`, or any that the dtype can hold (see :func:`sizes_of`)."""
    return of(*sum(GRADES, ())) | sizes_of(dtype, ends)


def penalties(dtype=torch.float32, ends=False):
    """The reward of a miss: one of :data:`PENALTIES`, 0 among them, or any below 0."""
    return of(*sum(PENALTIES, ())) | sizes_of(dtype, ends).map(lambda x: -x)


@st.composite
def some_of(draw, values, known, dtype):
    """A few numbers, ``(n,)``: a tuple of ``known``, or, one time in three or so, up to three others."""
    few = draw(of(*known, *[None] * (len(known) // 2)))
    if few is None:
        few = draw(st.lists(values, min_size=1, max_size=3, unique=True))
    return torch.tensor(few, dtype=dtype)


def picks(shape):
    """Which of a few numbers each element is, ``few[picks % len(few)]``: equal ones are common."""
    return tensors(shape, of(*range(12)), torch.int64)  # a multiple of how many they may be


@functools.cache
def ranks(dtype):
    """Numbers that are only ranked: any but NaN."""
    return st.floats(allow_nan=False, width=_WIDTHS[dtype])


@st.composite
def sparse_hit_groups(
    draw: st.DrawFn,
    prompts: Range = (1, 3),
    size: Range = (1, 5),
    hit_rate: float | None = None,
    graded: bool | None = None,
    ties: bool | None = None,
    extremes: bool = False,
    dtype: torch.dtype | None = torch.float32,
) -> Groups:
    """:class:`Groups` in every regime.

    Args:
        prompts, size: ranges of ``Q`` and ``G``.
        hit_rate: chance of a hit, in eighths: 0.125 makes mostly all-zero and single-hit groups. Drawn: 0, 0.25, 0.5 or 1.
        graded: hits get any finite reward above 0 and misses any up to 0, instead of 1 and 0; a few different ones, so that
            groups with equal rewards are common.
        ties: scores and keys from a handful of values, so that most groups have a tie; False: all of a group differ.
        extremes: often the largest and the smallest rewards, and infinite scores and keys.
        dtype: of rewards, scores and keys. None: drawn.
    """
    q, g = draw(st.integers(*prompts)), draw(st.integers(*size))
    hit_rate = draw(of(0.0, 0.25, 0.5, 1.0)) if hit_rate is None else hit_rate
    graded = draw(of(False, True, True)) if graded is None else graded
    ties = draw(of(True, True, True, False)) if ties is None else ties
    hits = round(8 * hit_rate)
    hit = tensors((q, g), of(*[False] * (8 - hits), *[True] * hits), torch.bool)
    dtype = draw(of(torch.float32, torch.float64, torch.float16, torch.bfloat16)) if dtype is None else dtype
    rewards = draw(hit).to(dtype)
    if graded or extremes:
        worth = draw(some_of(grades(dtype, extremes), GRADES, dtype))
        penalty = draw(some_of(penalties(dtype, extremes), PENALTIES, dtype))
        pick = draw(picks((q, g)))
        rewards = torch.where(rewards > 0, worth[pick % len(worth)], penalty[pick % len(penalty)])
    if extremes:
        anything = of(0.0, -math.inf, -1e30, -0.0, 1e-30, 1e30, math.inf)
        scores, keys = draw(tensors((q, g), anything, dtype)), draw(tensors((q, g), anything, dtype))
    elif ties:
        # Structural scores, 1 among them for responses that miss too, or any other numbers that can be ranked.
        few = draw(some_of(ranks(dtype), ((0.0, 0.01, 0.1), (0.0, 0.01, 0.1, 1.0)), dtype))
        scores = few[draw(picks((q, g))) % len(few)]
        few = draw(some_of(ranks(dtype), ((0.0, 0.25, 0.5, 0.75),) * 2, dtype))
        keys = few[draw(picks((q, g))) % len(few)]
    else:
        scores, keys = draw(permutations(q, g, dtype)), draw(permutations(q, g, dtype))
    repairable = draw(tensors((q,), of(True, True, False), torch.bool))
    return Groups(rewards, scores, repairable, keys)


@st.composite
def sid_groups(
    draw: st.DrawFn,
    prompts: Range = (1, 3),
    size: Range = (1, 4),
    named: Range = (0, 3),
    wanted: Range = (0, 2),
    levels: Range = (1, 4),
    overlap: str | None = None,
    padding: bool | None = None,
) -> Sids:
    """:class:`Sids` that share prefixes.

    Args:
        prompts, size, named, wanted, levels: ranges of ``Q``, ``G``, ``M``, ``K`` and ``L``.
        overlap: of the codes, how many agree: ``"none"`` (predictions and targets share no code), ``"some"`` (few codes, so
            that prefixes of every length and duplicates are common) or ``"long"`` (the last codes decide).
        padding: whether codes of -1 are among those drawn.
    """
    q, g, m, k, n = (draw(st.integers(*sizes)) for sizes in (prompts, size, named, wanted, levels))
    overlap = draw(of("some", "some", "long", "none")) if overlap is None else overlap
    padding = draw(st.booleans()) if padding is None else padding
    pad = [-1] if padding else []
    if overlap == "long":
        # All but the last code from mostly zeros.
        last = [0, 1, 1, 2, *pad]

        def codes(*shape):
            front = draw(tensors((*shape, n - 1), of(0, 0, 0, 1), torch.int64))
            return torch.cat([front, draw(tensors((*shape, 1), of(*last), torch.int64))], dim=-1)

        return Sids(codes(q, g, m), codes(q, k))
    named_codes, wanted_codes = [0, 1, 2, *pad], [5, 6, 7, *pad] if overlap == "none" else [0, 1, 2, *pad]
    return Sids(
        draw(tensors((q, g, m, n), of(*named_codes), torch.int64)),
        draw(tensors((q, k, n), of(*wanted_codes), torch.int64)),
    )


@st.composite
def anchors(draw, prompts=(1, 3), size=(1, 4), dtype=torch.float32):
    """:class:`Anchors`, padded or not, most with a tie: ranges of ``Q`` and ``K``; dtype of values and keys, drawn if None."""
    dtype = draw(of(*_WIDTHS)) if dtype is None else dtype
    targets = draw(sid_groups(prompts, (0, 0), (0, 0), size, padding=draw(of(True, True, False)))).targets
    shape = targets.shape[:2]
    few = draw(some_of(ranks(dtype), ((-1.0, -2.0, -4.0), (0.0, 0.01, 0.1), (-math.inf, -1.0)), dtype))
    keys = draw(some_of(ranks(dtype), ((0.0, 0.25, 0.5, 0.75),) * 2, dtype))
    return Anchors(targets, few[draw(picks(shape)) % len(few)], keys[draw(picks(shape)) % len(keys)])


@st.composite
def anchor_logps(draw, prompts=(1, 6), dtype=torch.float32):
    """Log-probs of whole anchors, ``(Q,)``: near each other and far apart, up to what ``dtype`` can hold. None: drawn."""
    dtype = draw(of(*_WIDTHS)) if dtype is None else dtype
    q = draw(st.integers(*prompts))
    any_number = st.floats(-torch.finfo(dtype).max, 0, width=_WIDTHS[dtype])
    return draw(tensors((q,), of(-1.0, -2.0, -4.0, -30.0) | near(20).map(lambda x: -abs(x)) | any_number, dtype))


@st.composite
def loss_inputs(
    draw: st.DrawFn,
    rows: Range = (1, 3),
    tokens: Range = (1, 3),
    vocabulary: Range = (1, 4),
    gap: float = 2.5,
    far: bool = True,
    per_token: bool | None = None,
    masked: bool | None = None,
    dtype: torch.dtype = torch.float64,
) -> LossInputs:
    """:class:`LossInputs` with ratios on both sides of every clip and clamp.

    Args:
        rows, tokens, vocabulary: ranges of ``B``, ``T`` and ``V``.
        gap: old and reference log-probs are up to this far from the policy's (the reference's up to twice as far).
        far: let a gap also be 30, beyond the clamps.
        per_token: advantages ``(B, T)`` instead of ``(B,)``.
        masked: ragged masks; False: everything counts.
        dtype: of all but tokens and mask.
    """
    b, t, v = draw(st.integers(*rows)), draw(st.integers(*tokens)), draw(st.integers(*vocabulary))
    logits = draw(tensors((b, t, v), near(6), dtype))
    chosen = draw(tensors((b, t), of(*range(v)), torch.int64))
    logps = logits.double().log_softmax(dim=-1).gather(-1, chosen[..., None])[..., 0].to(dtype)
    old_logps = logps + draw(tensors((b, t), gaps(gap, far), dtype))
    ref_logps = logps + draw(tensors((b, t), gaps(2 * gap, far), dtype))
    per_token = draw(st.booleans()) if per_token is None else per_token
    advantages = draw(tensors((b, t) if per_token else (b,), near(2), dtype))
    masked = draw(st.booleans()) if masked is None else masked
    mask = draw(tensors((b, t), of(True, False), torch.bool)) if masked else torch.ones(b, t, dtype=torch.bool)
    return LossInputs(logits, chosen, logps, old_logps, advantages, mask, ref_logps)


@functools.cache
def weights():
    """Options of a signal, any of them left out: ``{"weight": w, "negative_weight": w_neg}``."""
    any_dtype = st.floats(0, width=16, exclude_min=True, allow_infinity=False)  # every dtype can hold it
    some = {"weight": of(1.0, 0.7, 2.0) | any_dtype, "negative_weight": of(1.0, 0.2, 0.0) | any_dtype}
    return st.fixed_dictionaries({}, optional=some)


@functools.cache
def norms():
    """Options of an advantage estimator, any of them left out."""
    eps = of(1e-6, 0.5, 1e-8) | st.floats(1e-12, 1e12)
    return st.fixed_dictionaries({}, optional={"normalize": st.booleans(), "eps": eps})


@functools.cache
def anchor_options():
    """Options of the weight of an anchor, any of them left out."""
    largest = of(4.0, 1.0, 2.0, 1024.0) | st.floats(1, width=16, allow_infinity=False)  # every dtype can hold it
    return st.fixed_dictionaries({}, optional={"alpha": of(0.5, 0.0, 1.0) | st.floats(0, 1), "largest": largest})


@functools.cache
def loss_options():
    """Options of a loss, any of them left out."""
    some = {
        "clip_low": st.sampled_from([0.0, 0.2, 0.5]),
        "clip_high": st.sampled_from([0.28, 0.0, 1.0]),
        "dual_clip": st.sampled_from([1.5, 3.0, 1e10]),  # the last lets the clamp of the ratio be seen
        "kl_coef": st.sampled_from([0.0, 0.1, 1.0, 2.0]),
        "aggregate": st.sampled_from(AGGREGATES),
    }
    return st.fixed_dictionaries({}, optional=some)
