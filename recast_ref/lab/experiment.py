"""The experiment behind ``recast-ref compare``: every arm with every seed, on all cores, to one folder of results."""

import hashlib
import multiprocessing
import os
import platform
import queue
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from .. import __version__
from . import checkpoints
from .arms import ARMS
from .cost import measure
from .training import Run, train_base
from .worlds import World

MATCHED = ("pass@1", "recall@10")  # metrics the matched budget is told for


@dataclass(frozen=True)
class Settings:
    """All that decides the numbers, beside the world."""

    arms: tuple = tuple(ARMS)
    group_size: int = 8  # G
    seeds: int = 3
    rollout: str = "sample"  # or "beam"
    prompts: int = 8_192  # that every arm sees, once
    batch: int = 128  # prompts per rollout
    valid_prompts: int = 512  # for the curves
    test_prompts: int | None = None  # for the table; None: all
    learning_rate: float | None = None  # of every arm; None: each arm's own

    @classmethod
    def quick(cls, **changes):
        """A tenth of the work: to see that it runs and what it shows, not to quote."""
        return cls(**{"seeds": 1, "prompts": 2048, "valid_prompts": 256, "test_prompts": 512, **changes})


class ResumeError(ValueError):
    """The output folder holds something else than the run that was asked for."""


def compare(world: World, settings: Settings, out, resume=False, on_progress=lambda done, total, line: None):
    """Run the experiment and write ``results.json`` to ``out``.

    Args:
        world: see :func:`~recast_ref.lab.worlds.load_world`.
        settings: :class:`Settings`.
        out: folder for checkpoints and results; made if missing.
        resume: continue the run in ``out``, killed at whatever moment, to the numbers it would have reached.
        on_progress: called with the work done and in all (in runs) and, when something is finished, a line about it.

    Returns:
        the dict that was written.

    Raises:
        ResumeError: ``out`` holds a run and ``resume`` is not set, or a run with other settings or data.
    """
    out = Path(out)
    identity = {
        "settings": _plain(settings),
        "world": _fingerprint(world),
        "versions": run_versions(),
    }
    run_file = out / "run.json"
    if run_file.exists():
        if not resume:
            raise ResumeError(f"{out} already holds a run: add --resume to continue it, or choose another --out")
        _same_run(out, checkpoints.load_json(run_file), identity)
    elif resume:
        raise ResumeError(f"{out} holds no run to resume: leave out --resume to start one")
    checkpoints.save_json(run_file, identity)

    jobs = [("base", seed) for seed in range(settings.seeds)]
    jobs += [(arm, seed) for seed in range(settings.seeds) for arm in settings.arms]
    records = _run_jobs(world, settings, out, jobs, on_progress)

    results = {
        "settings": identity["settings"],
        "versions": versions(),
        "world": {
            "name": world.name,
            "description": world.describe(),
            "notes": world.notes,
            "fingerprint": identity["world"],
            "base_pairs": world.base_pairs,
            "rl_prompts": min(settings.prompts, len(world.train) - world.base_pairs),
        },
        "base": {str(seed): {"final": records["base", seed]} for seed in range(settings.seeds)},
        "arms": {
            arm: {str(seed): records[arm, seed] for seed in range(settings.seeds)} for arm in settings.arms
        },
        "cost": records["cost", 0],
    }
    results["matched_budget"] = matched_budget(results["arms"])
    checkpoints.save_json(out / "results.json", results)
    return results


def _run_jobs(world, settings, out, jobs, on_progress):
    """Run all jobs on all cores, bases first, one thread each so that the numbers do not depend on how many there are."""
    for half_written in (out / "checkpoints").glob(".*"):
        half_written.unlink()  # by a run that was killed while it saved
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    records, done = {}, {}
    pool = ProcessPoolExecutor(cores(), context, _start_worker, (world, settings, str(out), messages))

    def report(line=None):
        on_progress(sum(done.values()), len(jobs), line)

    def drain():
        while True:
            try:
                job, share = messages.get_nowait()
            except queue.Empty:
                return report()
            done[job] = max(share, done.get(job, 0.0))

    try:
        bases = [job for job in jobs if job[0] == "base"]
        for stage in (bases, [job for job in jobs if job[0] != "base"], [("cost", 0)]):
            futures = {pool.submit(_work, job): job for job in stage}
            while futures:
                finished, _ = wait(futures, timeout=0.2, return_when=FIRST_COMPLETED)
                drain()
                for future in finished:
                    job = futures.pop(future)
                    records[job] = future.result()
                    if job[0] != "cost":
                        done[job] = 1.0
                        final = records[job] if job[0] == "base" else records[job]["final"]
                        report(f"{job[0]}, seed {job[1]}: pass@1 {final['pass@1']:.2%}, recall@10 {final['recall@10']:.2%}")
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()  # their checkpoints are whole at any moment
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return records


_worker = {}


def _start_worker(world, settings, out, messages):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _worker.update(world=world, settings=settings, out=Path(out) / "checkpoints", messages=messages)


def _end_with_parent():
    """Do not outlive a killed parent: a resumed run would find another hand in its checkpoints."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(job):
    name, seed = job
    world, settings, folder = _worker["world"], _worker["settings"], _worker["out"]
    base_path = folder / f"base-{seed}.pt"

    def progress(share):
        _worker["messages"].put((job, share))

    if name == "cost":
        return measure(world, settings)
    if name == "base":
        train_base(world, settings, seed, base_path, progress)
        return checkpoints.load(base_path)["final"]
    return Run(world, settings, name, seed, base_path).train(folder / f"{name}-{seed}.pt", progress)


def matched_budget(arms):
    """Rollouts each arm needs to reach GRPO's final validation score, as a share of GRPO's rollouts.

    The score is the mean over seeds; an arm has reached it at the first of its evaluations that is as good, so the
    resolution is the spacing of the evaluations.

    Returns:
        ``{metric: {arm: {"target", "rollouts", "share"}}}``; rollouts and share are ``None`` where it is never reached.
        Empty without a ``grpo`` arm; an arm without rollouts is left out.
    """
    if "grpo" not in arms:
        return {}
    result = {}
    for metric in MATCHED:
        target = mean_curve(arms["grpo"], metric)[1][-1]
        budget = mean_curve(arms["grpo"], metric)[0][-1]
        result[metric] = {}
        for arm, seeds in arms.items():
            rollouts, values = mean_curve(seeds, metric)
            if rollouts[-1]:
                reached = next((int(n) for n, value in zip(rollouts, values) if value >= target), None)
                result[metric][arm] = {
                    "target": float(target),
                    "rollouts": reached,
                    "share": None if reached is None else reached / float(budget),
                }
    return result


def mean_curve(seeds, metric):
    """Rollouts and the mean over seeds of a metric at each evaluation, two arrays."""
    curves = [record["curve"] for record in seeds.values()]
    rollouts = np.array([point["rollouts"] for point in curves[0]])
    return rollouts, np.mean([[point[metric] for point in curve] for curve in curves], axis=0)


def mean_and_spread(records, metric):
    """Mean and sample standard deviation over seeds of a final metric; the spread of one seed is ``None``."""
    values = [record["final"][metric] for record in records.values()]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions():
    return {
        "recast-ref": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cores": cores(),
    }


def _plain(settings):
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}


def run_versions():
    """What a run can only be resumed with: another version may reach other numbers."""
    return f"recast-ref {__version__}, torch {torch.__version__}"


def _fingerprint(world):
    """Tells one world's data from another's."""
    digest = hashlib.sha256(world.sids.tobytes())
    for pairs in (world.train, world.valid, world.test):
        for array in (pairs.user, pairs.history, pairs.target):
            digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _same_run(out, found, wanted):
    for part in ("versions", "world"):
        if found[part] != wanted[part]:
            raise ResumeError(f"{out} cannot be resumed: it was started with {part} {found[part]}, not {wanted[part]}")
    for name, value in wanted["settings"].items():
        if found["settings"].get(name) != value:
            raise ResumeError(
                f"{out} cannot be resumed: it was started with {name} = {found['settings'].get(name)}, not {value}"
            )
