"""Reference against fast path on a million groups: how many were compared, and the first that differs.

Not collected by pytest::

    python tests/million.py                   # minutes; prints progress, exits 1 at the first difference
    python tests/million.py --groups 20000    # as in CI

Groups come in batches of one shape, from one group of one response to 500 of 64, with few codes so that prefixes agree, mostly
without a hit. Every function of the fast path answers each batch: indices, masks and selections must be equal, other floats
within rounding. Batch ``n`` is drawn from seed ``n`` alone, so that ``--seed n --groups 1`` brings it back.
"""

import argparse
import sys
import time

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from recast_ref import fast, reference
from recast_ref.testing.laws import tolerance

LARGEST = {"G": 64, "M": 4, "K": 3, "L": 5}


def one_of(generator, *values):
    return values[int(torch.randint(len(values), (), generator=generator))]


def draw(seed):
    """A batch: SIDs of ``Q`` groups, and a row of ``L`` tokens for each as a batch of a loss."""
    g = torch.Generator().manual_seed(seed)

    def integers(high, *shape):
        return torch.randint(high, shape, generator=g)

    def chosen(*values):
        return one_of(g, *values)

    def uniform(*shape):
        return torch.rand(shape, generator=g, dtype=dtype)

    dtype = chosen(torch.float32, torch.float64)
    q, size = 1 + int(integers(500)), chosen(1, 2, 3, 4, 8, 8, 16, 32, 1 + int(integers(LARGEST["G"])))
    m, k = chosen(1, 1, *range(LARGEST["M"] + 1)), chosen(1, 1, *range(LARGEST["K"] + 1))
    levels, codes = chosen(3, 3, 4, *range(1, LARGEST["L"] + 1)), chosen(2, 4, 16, 256)
    predictions, targets = integers(codes, q, size, m, levels), integers(codes, q, k, levels)
    if m and k:  # a hit here and there
        hit = integers(chosen(2, 8, 100), q, size) == 0
        predictions[..., 0, :] = torch.where(hit[..., None], targets[:, :1], predictions[..., 0, :])
    for sids in (predictions, targets):
        sids[integers(chosen(3, 20, 10**6), *sids.shape) == 0] = -1
    graded = chosen(0.0, 0.0, 1.0) * uniform(q, size)
    keys = chosen(None, uniform(q, size), integers(3, q, size).to(dtype))
    weights = {"weight": chosen(1.0, 0.7), "negative_weight": chosen(None, 0.2, 0.0)}
    tokens, rows = integers(codes, q, levels), 3 * torch.randn(q, levels, codes, generator=g, dtype=dtype)
    logps = reference.token_logps(rows, tokens)
    # Steps of 0.1: nowhere so near to a clip that rounding would say on which side.
    steps = [(integers(41, q, levels) - 20) / 10 for _ in range(2)]
    batch = {
        "old_logps": logps + steps[0],
        "advantages": chosen(uniform(q, levels), uniform(q)) - 0.5,
        "mask": integers(4, q, levels) > 0,
        "ref_logps": chosen(None, logps + steps[1]),
        "aggregate": chosen("token-mean", "seq-mean-token-mean", "seq-mean-token-sum"),
    }
    batch["kl_coef"] = 0.0 if batch["ref_logps"] is None else 0.1
    return predictions, targets, dtype, graded, keys, weights, rows, tokens, batch


def answers(path, drawn):
    """What a path says of a batch: ``(function, part) -> tensor``. Each function is given what the reference answers of the one
    before, so that a difference is its own."""
    predictions, targets, dtype, graded, keys, weights, logits, tokens, batch = drawn
    scores = reference.structural_scores(predictions, targets).to(dtype)
    hits = reference.hit_rewards(predictions, targets).to(dtype)
    rewards = hits * (1 + graded) - (1 - hits) * graded  # graded hits, and penalties
    usable = (targets >= 0).all(dim=-1).any(dim=-1)
    logits = logits.clone().requires_grad_()
    logps = reference.token_logps(logits, tokens).detach().requires_grad_()
    options = dict(zip(("normalize", "eps"), (bool(len(rewards) % 2), 1e-6)))
    loss, whole = path.policy_loss(logps, **batch), path.logits_loss(logits, tokens, **batch)
    loss.loss.backward()
    whole.loss.backward()
    found = {
        "structural_scores": path.structural_scores(predictions, targets),
        "hit_rewards": path.hit_rewards(predictions, targets),
        "group_regimes": path.group_regimes(rewards),
        "group_advantages": path.group_advantages(rewards, **options),
        "repair": path.repair(rewards, scores, usable, keys),
        "contrast": path.contrast(rewards, scores, tie_break=keys, **weights),
        "recast": path.recast(rewards, scores, usable, tie_break=keys, **weights),
        "recast_from_sids": path.recast_from_sids(predictions, targets, tie_break=keys, **weights),
        "branch_mask": path.branch_mask(tokens, tokens.roll(1, dims=0)),
        "token_logps": path.token_logps(logits, tokens).detach(),
        "policy_loss": (*(part.detach() for part in loss), logps.grad),
        "logits_loss": (*(part.detach() for part in whole), logits.grad),
    }
    return {
        (name, i): part
        for name, its in found.items()
        for i, part in enumerate(its if isinstance(its, tuple) else [its])
    }


def differs(drawn):
    """``None``, or what differs first in a batch: in words."""
    ours = answers(fast, drawn)
    for (name, part), theirs in answers(reference, drawn).items():
        mine = ours[name, part]
        if theirs.dtype.is_floating_point:
            rtol, atol = tolerance(theirs.dtype)
            equal = torch.isclose(mine, theirs, rtol=rtol, atol=atol, equal_nan=True)
        else:
            equal = mine == theirs
        if mine.dtype != theirs.dtype or not equal.all():
            place = (~equal).nonzero()[0].tolist() if equal.dim() else []
            group = place[:1]
            words = f"{name}, part {part}" + (f", group {group[0]}" if group else ", a number for all rows")
            values = [answer[tuple(group)].tolist() for answer in (theirs, mine)]
            return f"{words}: the reference answers {values[0]}, the fast path {values[1]}"
    return None


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first batch; the next has the next")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    console, compared, seed, start = Console(), 0, options.seed, time.monotonic()
    columns = ("groups", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=options.groups)
        while compared < options.groups:
            drawn = draw(seed)
            found = differs(drawn)
            if found:
                break
            compared, seed = compared + len(drawn[0]), seed + 1
            bar.update(task, completed=compared)
    if found:
        print(f"{compared:,} groups were equal; then, in batch {seed} ({', '.join(map(str, drawn[0].shape))}): {found}")
        print(f"python tests/million.py --seed {seed} --groups 1")
        return 1
    print(f"{compared:,} groups in {seed - options.seed:,} batches, {time.monotonic() - start:.0f} s: no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main())
