"""Training: a base policy by supervised learning, then one arm's updates on top of it.

One step: ``batch`` prompts are rolled out by the current policy, the arm makes its signal, old and reference log-probs
are computed on the responses that the signal kept, and the policy takes one optimizer update per minibatch.
"""

import hashlib
import itertools
import time
from contextlib import nullcontext
from dataclasses import asdict

import numpy as np
import torch

from .. import __version__
from . import backend, checkpoints, regimes
from .arms import ARMS, score
from .audit import audit
from .evaluation import BEAM, evaluate
from .memory import PeakBytes
from .policy import Policy
from .rollouts import beam, sample
from .semantic_ids import Trie
from .worlds import HISTORY, as_sids

WARMUP = 5  # updates
GRADIENT_CLIP = 1.0
KL_COEF = 0.001
MINIBATCHES = 2  # optimizer updates per batch of rollouts
BASE_BATCH, BASE_EPOCHS, BASE_LEARNING_RATE = 16, 3, 1e-3  # also two updates a batch
REGIME_BATCH, CONVERGED_EPOCHS = 64, 4  # where a regime is asked for
PROBED = 512  # validation prompts whose groups tell a regime


def identity(world, settings):
    """All that decides the numbers of a run, as plain data: what is in ``run.json``, and in its checkpoints as a digest."""
    return {
        "settings": {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(settings).items()},
        "training": {
            "learning_rates": {arm: settings.learning_rate or ARMS[arm].learning_rate for arm in settings.arms},
            "minibatches": MINIBATCHES,
            "warmup_updates": WARMUP,
            "gradient_clip": GRADIENT_CLIP,
            "kl_coef": KL_COEF,
            "base_batch": BASE_BATCH,
            "base_epochs": BASE_EPOCHS,
            "base_learning_rate": BASE_LEARNING_RATE,
            "history_items": HISTORY,
            "beam": BEAM,
        },
        "world": {"fingerprint": fingerprint(world), "base_pairs": world.base_pairs},
        "versions": {"recast-ref": __version__, "torch": torch.__version__, "checkpoints": checkpoints.FORMAT},
    }


def fingerprint(world):
    """Tells the data of one :class:`~.worlds.World` from another's."""
    digest = hashlib.sha256(np.ascontiguousarray(world.sids))
    for pairs in (world.train, world.valid, world.test):
        for array in (pairs.user, pairs.history, pairs.target):
            digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()[:16]


def owner(world, settings, job, seed):
    """Whose a checkpoint is: the job (``"base"`` or an arm), its seed, and the run."""
    return {"job": job, "seed": seed, "run": checkpoints.digest(identity(world, settings))}


def training_rows(world, seed):
    """Which training pairs the base sees with this seed, and which the arms may see, in order: two int64 arrays."""
    order = np.random.default_rng(seed).permutation(len(world.train))
    return order[: world.base_pairs], order[world.base_pairs :]


def test_pairs(world, settings):
    """The test pairs of the final evaluation: all, or as many as the settings say, the same for every seed."""
    order = np.random.default_rng(0).permutation(len(world.test))
    return world.test[np.sort(order[: settings.test_prompts])]


def new_policy(world, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Policy(Trie(world.sids), HISTORY)


def new_optimizer(policy, learning_rate):
    optimizer = torch.optim.AdamW(policy.parameters(), learning_rate)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, (n + 1) / WARMUP))


def base_policy(world, seed=0):
    """A policy trained on few pairs of the world, so that it seldom hits: where every arm starts. It takes some seconds."""
    policy = new_policy(world, seed)
    history, targets = as_sids(world, world.train[training_rows(world, seed)[0]])
    optimizer, schedule = new_optimizer(policy, BASE_LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(BASE_EPOCHS):
        for rows in torch.randperm(len(history), generator=generator).split(BASE_BATCH):
            supervised_update(policy, optimizer, schedule, history[rows], targets[rows])
    return policy


def base_of_regime(world, settings, seed):
    """A policy trained until a share of its groups is all-zero, ``settings.all_zero`` in percent, or ``"converged"``: for four times
    over its pairs, the learning rate falling to 0 over the last third.

    Returns:
        the policy and ``{"updates", "all_zero", "single_hit", "multi_hit"}``, see :mod:`~recast_ref.lab.regimes`.
    """
    policy = new_policy(world, seed)
    history, targets = as_sids(world, world.train[training_rows(world, seed)[0]])
    probed = as_sids(world, world.valid[:PROBED])
    optimizer, schedule = new_optimizer(policy, BASE_LEARNING_RATE)
    generator = torch.Generator().manual_seed(seed)
    updates = CONVERGED_EPOCHS * -(-len(history) // REGIME_BATCH)
    if settings.all_zero == "converged":
        schedule = regimes.falling(optimizer, updates, WARMUP)
    epochs = (
        rows
        for _ in itertools.count()
        for rows in torch.randperm(len(history), generator=generator).split(REGIME_BATCH)
    )

    def update(n):
        rows = next(epochs)
        optimizer_step(policy, optimizer, schedule, -policy.logps(history[rows], targets[rows, None]).mean())

    def probe():
        drawn_alike = torch.Generator().manual_seed(0)  # each time
        responses = roll_out(policy, probed[0], settings, drawn_alike)
        rewards = score(responses, probed[1], None).rewards
        return (backend.ops.group_regimes(rewards).bincount(minlength=3) / len(rewards)).tolist()

    if settings.all_zero != "converged":
        return policy, regimes.train_until(update, probe, float(settings.all_zero) / 100)
    for n in range(1, updates + 1):
        update(n)
    return policy, {"updates": updates, **dict(zip(regimes.SHARES, probe()))}


def train_base(world, settings, seed, path, on_progress):
    """Make the base policy and save it at ``path``, unless it is there.

    Returns:
        the record for results.json: ``{"final": metrics over the test pairs}``, and ``"regime"`` where one was asked for.
    """
    of = owner(world, settings, "base", seed)
    if path.exists():
        saved = checkpoints.load(path, of)
        return {name: saved[name] for name in ("final", "regime") if name in saved}
    record = {}
    if settings.all_zero is None:
        policy = base_policy(world, seed)
    else:
        policy, record["regime"] = base_of_regime(world, settings, seed)
    on_progress(0.5)
    record["final"] = evaluate(policy, policy, *as_sids(world, test_pairs(world, settings)))
    checkpoints.save(path, {"policy": policy.state_dict(), **record}, of)
    return record


def roll_out(policy, history, settings, generator):
    """Responses int64 ``(Q, G, L)``, as the settings say."""
    if settings.rollout == "beam":
        return beam(policy, history, settings.group_size).responses
    return sample(policy, history, settings.group_size, generator).responses


class Run:
    """One arm with one seed: it can be stopped after any evaluation and continued to the same numbers."""

    def __init__(self, world, settings, arm, seed, base_path):
        self.world, self.settings, self.arm, self.seed = world, settings, ARMS[arm], seed
        self.policy, self.base = new_policy(world, seed), new_policy(world, seed)
        self.of = owner(world, settings, arm, seed)
        state = checkpoints.load(base_path, {**self.of, "job": "base"})["policy"]
        for policy in (self.policy, self.base):
            policy.load_state_dict(state)
        self.optimizer, self.schedule = new_optimizer(self.policy, settings.learning_rate or self.arm.learning_rate)
        self.generator = torch.Generator().manual_seed(seed)
        self.rows = training_rows(world, seed)[1][: settings.prompts]
        self.history, self.targets = as_sids(world, world.train[self.rows])
        # Other prompts for each seed: the mean over seeds then rests on more of them.
        order = np.random.default_rng(seed).permutation(len(world.valid))
        self.validation = as_sids(world, world.valid[order[: settings.valid_prompts]])
        self.steps = -(-len(self.rows) // settings.batch)
        self.evaluate_after = evaluation_steps(self.steps)
        self.step, self.rollouts, self.curve = 0, 0, []
        self.repaired = torch.zeros(len(self.rows), dtype=torch.bool)
        self.skipped, self.timed_steps, self.timed_seconds = 0, 0, 0.0
        self._fresh_window()

    def _fresh_window(self):
        """What is averaged between two evaluations."""
        self.regimes, self.norms, self.seconds, self.peak = torch.zeros(3, dtype=torch.int64), [], [], None

    def state(self):
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "rollouts": self.rollouts,
            "curve": self.curve,
            "repaired": self.repaired,
            "skipped": self.skipped,
            "timed_steps": self.timed_steps,
            "timed_seconds": self.timed_seconds,
        }

    def restore(self, state):
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        for name in ("step", "rollouts", "curve", "repaired", "skipped", "timed_steps", "timed_seconds"):
            setattr(self, name, state[name])

    def train(self, path, on_progress):
        """Train to the end, with a checkpoint at ``path`` after every evaluation.

        Returns:
            the record for results.json. In ``curve``, quality, entropy and KL are over validation pairs; regimes, gradient
            norm, update seconds (mean a step) and bytes over the steps since the evaluation before. In ``final``, the first
            are over the test pairs, seconds (mean) and bytes (largest) over the whole run, regimes and norm as in the last
            of ``curve``.
        """
        if path.exists():
            state = checkpoints.load(path, self.of)
            if "record" in state:
                on_progress(1.0)
                return state["record"]
            self.restore(state)
        if not self.curve:
            self._evaluate(path)
        while self.step < self.steps:
            self._train_step()
            if self.step in self.evaluate_after:
                self._evaluate(path)
            on_progress(self.step / (self.steps + 1))
        test = as_sids(self.world, test_pairs(self.world, self.settings))
        record = {
            "final": {
                **self.curve[-1],
                **evaluate(self.policy, self.base, *test),
                "actor_update_seconds": self.timed_seconds / self.timed_steps if self.timed_steps else None,
                "peak_update_bytes": max(p["peak_update_bytes"] or 0 for p in self.curve) or None,
                "skipped_groups": self.skipped,
            },
            "curve": self.curve,
            "audit": audit(self.world, self.rows, self.repaired.numpy()) if self.repaired.any() else None,
        }
        checkpoints.save(path, {"record": record, "policy": self.policy.state_dict()}, self.of)
        on_progress(1.0)
        return record

    def _evaluate(self, path):
        measured = {
            "step": self.step,
            "rollouts": self.rollouts,
            **evaluate(self.policy, self.base, *self.validation),
            "regimes": None,
            "grad_norm": _mean(self.norms),
            "actor_update_seconds": _mean(self.seconds),
            "peak_update_bytes": self.peak,
        }
        if groups := int(self.regimes.sum()):
            shares = (self.regimes / groups).tolist()
            measured["regimes"] = dict(zip(("all_zero", "single_hit", "multi_hit"), shares))
        self.curve.append(measured)
        self._fresh_window()
        checkpoints.save(path, self.state(), self.of)

    def _train_step(self):
        first = self.step * self.settings.batch
        rows = torch.arange(first, min(first + self.settings.batch, len(self.rows)))
        if self.arm.signal is None:
            update, work, kept = supervised_update, (self.targets[rows],), len(rows)
        else:
            signal = self._roll_out(rows)
            update, work, kept = policy_update, (signal, self.base), len(signal.prompts)
        # Counting bytes slows a step down: it is done in one step after each evaluation, and that step is not timed. Nor is
        # it the first step, which makes the optimizer's state.
        counting = self.peak is None and kept > 0 and self.step > 0
        with PeakBytes() if counting else nullcontext() as memory:
            start = time.perf_counter()
            norms = update(self.policy, self.optimizer, self.schedule, self.history[rows], *work)
            seconds = time.perf_counter() - start
        if not np.isfinite(norms).all():
            raise FloatingPointError(f"{self.arm.name}, seed {self.seed}, step {self.step}: gradient norms {norms}")
        self.norms += norms
        if counting:
            self.peak = memory.peak
        else:
            self.seconds.append(seconds)
            self.timed_steps += 1
            self.timed_seconds += seconds
        self.step += 1

    def _roll_out(self, rows):
        history, targets, size = self.history[rows], self.targets[rows], self.settings.group_size
        responses = roll_out(self.policy, history, self.settings, self.generator)
        self.rollouts += len(rows) * size
        tie_break = torch.rand(len(rows), size, generator=self.generator)
        groups = score(responses, targets, tie_break)
        signal = self.arm.signal(groups)
        self.regimes += backend.ops.group_regimes(groups.rewards).bincount(minlength=3)
        self.repaired[rows] = signal.repaired
        self.skipped += len(rows) - len(signal.prompts)
        return signal


def supervised_update(policy, optimizer, schedule, history, targets):
    """Learn the ground truth of a batch of prompts. Returns the gradient norm of each optimizer update."""
    norms = []
    for rows in torch.arange(len(history)).chunk(MINIBATCHES):
        loss = -policy.logps(history[rows], targets[rows, None]).mean()
        norms.append(optimizer_step(policy, optimizer, schedule, loss))
    return norms


def policy_update(policy, optimizer, schedule, history, signal, base, share_prompt=True):
    """Learn a signal of a batch of prompts: old and reference log-probs, then one optimizer update per minibatch.

    Everything here sees only the responses in the signal; its time is the ``actor_update_seconds`` of the results.

    Args:
        history: int64 ``(Q, P, L)``.
        signal: :class:`~recast_ref.lab.arms.Signal` over these prompts.
        base: the frozen reference policy.
        share_prompt: as in :meth:`Policy.logits`.

    Returns:
        list of gradient norms, before clipping.
    """
    norms = []
    if not len(signal.prompts):
        return norms
    with torch.no_grad():
        old, ref = (p.logps(history[signal.prompts], signal.responses, share_prompt) for p in (policy, base))
    for prompts in torch.arange(len(history)).chunk(MINIBATCHES):
        rows = torch.isin(signal.prompts, prompts).nonzero().squeeze(1)
        if not len(rows):
            continue  # every group was skipped: nothing to learn, and no KL to pay
        responses = signal.responses[rows]
        logits = policy.logits(history[signal.prompts[rows]], responses, share_prompt)
        loss = backend.ops.logits_loss(
            *(x.flatten(0, 1) for x in (logits, responses, old[rows], signal.advantages[rows])),
            mask=torch.ones_like(responses, dtype=torch.bool).flatten(0, 1),
            ref_logps=ref[rows].flatten(0, 1),
            kl_coef=KL_COEF,
        ).loss
        norms.append(optimizer_step(policy, optimizer, schedule, loss))
    return norms


def optimizer_step(policy, optimizer, schedule, loss):
    """One update. Returns the gradient norm before clipping."""
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), GRADIENT_CLIP)
    optimizer.step()
    schedule.step()
    return norm.item()


def evaluation_steps(steps):
    """After which steps to evaluate: often at first, where quality rises fastest. At least two steps lie between."""
    wanted = (0.03, 0.06, 0.1, 0.15, 0.25, 0.4, 0.55, 0.7, 0.85)
    chosen = []
    for step in (round(share * steps) for share in wanted):
        if step - (chosen[-1] if chosen else 0) >= 2 and steps - step >= 2:
            chosen.append(step)
    return {*chosen, steps}


def _mean(values):
    return float(np.mean(values)) if values else None
