"""One run: an arm with a learning rate and a seed, from a base policy, on the prompts of a world.

Every step rolls out with the current policy and takes one optimizer update, so that every ratio is 1: neither clips nor old log-probs
have a part, and there is no KL penalty. (``recast-ref compare`` has them all.)
"""

import time

import numpy as np
import torch

from .. import backend, training
from ..arms import Groups
from .arms import ARMS, Batch, roll_out, surrogate
from .outcomes import mean, outcomes, popular, probe

BATCH = 64  # prompts a step
PROBES = 4  # of the composition of groups, after the start, evenly spaced
FINE = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 26, 32, 40, 48, 64, 80, 96, 112, 128, 192, 256, 384, 512)
COARSE = 5  # points of a coarse curve, after the start
CURVE_PROMPTS = 1000  # validation prompts of each point of a curve


def train(world, run, policy, scale):
    """Train ``policy`` in place.

    Args:
        run: :class:`~recast_ref.lab.study.cells.Run`.
        scale: :class:`~recast_ref.lab.study.cells.Scale`.

    Returns:
        ``{"curve", "valid", "test", "rows", "all_zero"}``: points of the curve, the outcomes of each validation and test prompt, and
        which training prompts were rolled out and got a group without a hit (their last, if they came again).

    Raises:
        FloatingPointError: training diverged.
    """
    valid, test = world.valid[: scale.valid], world.test[: scale.test]
    if run.cell.arm == "popular":
        return {
            "curve": [],
            "valid": popular(world, valid),
            "test": popular(world, test),
            "rows": None,
            "all_zero": None,
        }
    state = _State(world, run, policy, scale)
    if ARMS[run.cell.arm].blocks:
        state.train()
    return {
        "curve": state.curve,
        "valid": outcomes(policy, world, valid),
        "test": outcomes(policy, world, test),
        "rows": state.order if ARMS[run.cell.arm].rolls_out and state.update else None,
        "all_zero": state.all_zero if ARMS[run.cell.arm].rolls_out and state.update else None,
    }


class _State:
    def __init__(self, world, run, policy, scale):
        self.world, self.run, self.policy, self.arm = world, run, policy, ARMS[run.cell.arm]
        self.generator = torch.Generator().manual_seed(run.seed)
        order = np.random.default_rng(run.seed).permutation(len(world.rl))[: scale.prompts]
        self.order = torch.from_numpy(order)
        self.all_zero = torch.zeros(len(order), dtype=torch.bool)
        self.batches = torch.arange(len(order)).split(BATCH)
        self.steps = len(self.batches) * run.cell.passes
        self.update = self.rollouts = self.tokens = 0
        self.seconds = 0.0
        self.curve = []
        self._point(0)

    def train(self):
        optimizer, schedule = training.new_optimizer(self.policy, self.run.learning_rate)
        pending = []
        for step in range(1, self.steps + 1):
            places = self.batches[(step - 1) % len(self.batches)]
            start = time.process_time()  # what this process worked: one thread, and others may be working beside it
            pending.append(self._groups(places) if self.arm.rolls_out else (places, None))
            if not self.arm.dynamic or sum(len(p) for p, _ in pending) >= BATCH or step == self.steps:
                self._learn(optimizer, schedule, *_merge(pending))
                pending = []
            self.seconds += time.process_time() - start
            self._point(step)

    def _groups(self, places):
        """Roll out the prompts at these places of the order. A dynamic arm keeps only what has a signal."""
        groups = roll_out(self._batch(places), self.run.cell.group_size).groups
        self.rollouts += groups.rewards.numel()
        self.all_zero[places] = backend.ops.group_regimes(groups.rewards) == 0
        if self.arm.dynamic:
            kept = groups.rewards.amax(dim=1) > groups.rewards.amin(dim=1)
            return places[kept], Groups(*(x[kept] for x in groups))
        return places, groups

    def _batch(self, places, groups=None):
        return Batch(
            self.world, self.policy, self.world.rl[self.order[places]], self.generator, self.run.cell.anchor, groups
        )

    def _learn(self, optimizer, schedule, places, groups):
        if not len(places):
            return
        batch = self._batch(places, groups)
        loss, tokens = surrogate(self.policy, batch.prompts.history, self.arm.blocks(batch))
        self.tokens += tokens
        if loss is None:
            return
        norm = training.optimizer_step(self.policy, optimizer, schedule, loss)
        if not np.isfinite(norm):
            raise FloatingPointError(f"{self.run}: gradient norm {norm} after update {self.update}")
        self.update += 1

    def _point(self, step):
        """Probe the composition of groups and, on a curve, the quality on validation prompts."""
        cell = self.run.cell
        marks = {"": (), "coarse": self._evenly(COARSE), "fine": (0, *FINE, self.steps)}[cell.curve]
        judged, probed = step in marks, step in self._evenly(PROBES)
        if not (judged or probed):
            return
        point = {
            "step": step,
            "updates": self.update,
            "rollouts": self.rollouts,
            "actor_tokens": self.tokens,
            "seconds": self.seconds,
        }
        if probed:
            shares = probe(self.policy, self.world, self.world.valid, cell.group_size)
            point |= dict(zip(("all_zero", "single_hit", "multi_hit"), shares))
        if judged:
            point |= {
                k: mean(v) for k, v in outcomes(self.policy, self.world, self.world.valid[:CURVE_PROMPTS]).items()
            }
        self.curve.append(point)

    def _evenly(self, count):
        return {round(self.steps * i / count) for i in range(count + 1)}


def _merge(pending):
    places = torch.cat([places for places, _ in pending])
    if pending[0][1] is None:
        return places, None
    return places, Groups(*(torch.cat(parts) for parts in zip(*(groups for _, groups in pending))))
