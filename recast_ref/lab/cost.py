"""What an actor update costs: the whole group or the pair, each prompt repeated for each response or read once."""

import statistics
import time

import torch

from .arms import ARMS, score
from .memory import PeakBytes
from .rollouts import sample
from .training import new_optimizer, new_policy, policy_update
from .worlds import as_sids

PROMPTS, REPEATS = 64, 3


def measure(world, settings):
    """Time and peak memory of one update (old, reference and actor passes, optimizer) of 64 prompts, one thread.

    Returns:
        list of ``{"layout", "update", "responses", "seconds", "peak_bytes"}``, layouts ``"one sequence per response"`` and
        ``"shared prompt"``, updates ``"group"`` (GRPO) and ``"pair"`` (ReCast). Seconds are medians; the four are
        measured in turns, so that a slow moment of the machine does not fall on one of them.
    """
    policy, base = new_policy(world, 0), new_policy(world, 0)
    optimizer, schedule = new_optimizer(policy, 0.0)
    history, targets = as_sids(world, world.train[:PROMPTS])
    generator = torch.Generator().manual_seed(0)
    responses = sample(policy, history, settings.group_size, generator).responses
    groups = score(responses, targets, torch.rand(responses.shape[:2], generator=generator))
    cells = [
        {"layout": layout, "update": update, "share": share, "signal": ARMS[arm].signal(groups)}
        for layout, share in (("one sequence per response", False), ("shared prompt", True))
        for update, arm in (("group", "grpo"), ("pair", "recast"))
    ]

    def run(cell):
        policy_update(policy, optimizer, schedule, history, cell["signal"], base, cell["share"])

    run(cells[0])  # makes the optimizer's state
    for cell in cells:
        with PeakBytes() as memory:
            run(cell)
        cell["peak_bytes"], cell["times"] = memory.peak, []
    for _ in range(REPEATS):
        for cell in cells:
            start = time.perf_counter()
            run(cell)
            cell["times"].append(time.perf_counter() - start)
    return [
        {
            "layout": cell["layout"],
            "update": cell["update"],
            "responses": cell["signal"].responses.shape[1],
            "seconds": statistics.median(cell["times"]),
            "peak_bytes": cell["peak_bytes"],
        }
        for cell in cells
    ]
