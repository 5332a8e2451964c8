"""How strong the base policy is: supervised training that stops at a share of groups without a hit."""

import torch

PROBE_EARLY, PROBE_EVERY, EARLY = 5, 25, 300  # updates between probes up to the 300th, and after it
MOST_UPDATES = 4000
SHARES = ("all_zero", "single_hit", "multi_hit")


class RegimeNotReached(ValueError):
    """The base policy does not get so good."""


def falling(optimizer, updates, warm_up):
    """A schedule for ``updates`` steps: the last third of them with a learning rate that falls to 0."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min(1.0, (n + 1) / warm_up, (updates - n) / (updates / 3))
    )


def train_until(update, probe, all_zero):
    """Call ``update(n)``, ``n`` from 1, until a probe of groups has no more than a share of all-zero ones.

    Args:
        update: takes one optimizer step.
        probe: returns the shares of all-zero, single-hit and multi-hit groups.
        all_zero: the share to stop at, in [0, 1].

    Returns:
        ``{"updates", "all_zero", "single_hit", "multi_hit"}``: how long it took, and the shares of the last probe.

    Raises:
        RegimeNotReached: the share is still larger after 4,000 updates.
    """
    for n in range(1, MOST_UPDATES + 1):
        update(n)
        if n % (PROBE_EARLY if n <= EARLY else PROBE_EVERY) == 0:
            shares = probe()
            if shares[0] <= all_zero:
                return {"updates": n, **dict(zip(SHARES, shares))}
    raise RegimeNotReached(
        f"after {MOST_UPDATES} updates of the base policy {shares[0]:.0%} of its groups are all-zero, not {all_zero:.0%}: choose "
        "a larger share, or a world that is easier to learn"
    )
