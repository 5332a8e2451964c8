"""The experiment: what decides its numbers, and the folder of results it makes."""

import platform
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from . import checkpoints, locks, training, workers
from .arms import ARMS
from .evaluation import popular
from .regimes import RegimeNotReached
from .summary import matched_budget
from .worlds import World


@dataclass(frozen=True)
class Settings:
    """What a user may choose, beside the world."""

    arms: tuple = tuple(ARMS)
    group_size: int = 8  # G
    seeds: int = 3
    rollout: str = "sample"  # or "beam"
    prompts: int = 8_192  # that every arm sees, once
    batch: int = 128  # prompts per rollout
    valid_prompts: int = 512  # for the curves, other ones for each seed
    test_prompts: int | None = None  # for the table; None: all
    learning_rate: float | None = None  # of every arm, to try some out; None: each arm's own
    all_zero: str | None = None  # percent of all-zero groups at which the base stops, or "converged"; None: few pairs
    backend: str = "reference"  # or "fast" or "auto": the path that the functions come from

    @classmethod
    def quick(cls, **changes):
        """A fraction of the work: to see that it runs and what it shows, too small to quote."""
        return cls(**{"seeds": 1, "prompts": 2048, "valid_prompts": 256, "test_prompts": 512, **changes})


class ExperimentError(ValueError):
    """The experiment cannot be run as asked for: the world is too small for it, or the folder holds something else."""


def compare(
    world: World,
    settings: Settings,
    out,
    resume=False,
    on_progress=lambda done, total, line: None,
    finish=lambda results: None,
):
    """Run the experiment and write ``results.json`` to ``out``.

    It starts processes: a script that calls it needs the usual ``if __name__ == "__main__":``.

    Args:
        world: see :func:`~recast_ref.lab.worlds.load_world`.
        settings: :class:`Settings`.
        out: folder for checkpoints and results; made if missing. One run at a time.
        resume: continue the run in ``out``, killed at whatever moment, to the numbers it would have reached.
        on_progress: called with the work done and in all (in runs) and, when something is finished, a line about it.
        finish: called with the results while ``out`` is still held, to write more files there.

    Returns:
        the dict that was written.

    Raises:
        ExperimentError: ``out`` holds a run and ``resume`` is not set, or a run with other settings, data or versions; or
            the world is too small.
        Held: another process runs in ``out``.
        CheckpointError: a file in ``out`` is damaged or of another run; the message names it.
        FloatingPointError: training diverged; the message names the arm, the seed and the step.
    """
    out = Path(out)
    if settings.all_zero is not None:
        world = replace(world, base_pairs=len(world.train) // 2)  # a strong base needs more than few
    _check_size(world, settings)
    identity = training.identity(world, settings)
    check_folder(out, resume)
    with locks.hold(out):
        check_folder(out, resume)  # again: another may have held it until now
        results = _compare(world, settings, out, resume, on_progress, identity)
        finish(results)
    return results


def _compare(world, settings, out, resume, on_progress, identity):
    run_file = out / "run.json"
    if resume:
        check_same(run_file, identity)
    else:
        checkpoints.save_json(run_file, identity)

    try:
        records = workers.run_jobs(world, settings, out / "checkpoints", on_progress)
    except RegimeNotReached as error:
        raise ExperimentError(f"{world.name}: {error}") from None
    seeds = range(settings.seeds)
    arms = {arm: {str(seed): records[arm, seed] for seed in seeds} for arm in settings.arms}
    results = {
        **identity,
        "world": {
            **identity["world"],
            "name": world.name,
            "description": world.describe(),
            "notes": world.notes,
            "rl_prompts": min(settings.prompts, len(world.train) - world.base_pairs),
        },
        "versions": {
            **identity["versions"],
            "python": platform.python_version(),
            "numpy": np.__version__,
            "platform": platform.platform(),
            "cores": workers.cores(),
        },
        "popular": {"0": {"final": popular(world, training.test_pairs(world, settings))}},
        "base": {str(seed): records["base", seed] for seed in seeds},
        "arms": arms,
        "matched_budget": matched_budget(arms),
        "cost": records[workers.COST],
    }
    checkpoints.save_json(out / "results.json", results)
    return results


def check_folder(out, resume):
    """Raise :class:`ExperimentError` unless ``out`` is a run to resume or, without ``resume``, new or empty."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ExperimentError(f"--out {out}: not a folder")
    started = (out / "run.json").exists()
    if resume and not started:
        raise ExperimentError(f"--out {out} holds no run to resume: leave out --resume to start one")
    if started and not resume:
        raise ExperimentError(f"--out {out} already holds a run: add --resume to continue it, or choose another folder")
    if not started and not locks.is_new(out):
        raise ExperimentError(f"--out {out} holds other files: choose a new folder")


def _check_size(world, settings):
    have = {
        "training pairs for the base policy": world.base_pairs,
        "training pairs for the arms": len(world.train) - world.base_pairs,
        "validation pairs": len(world.valid),
        "test pairs": len(world.test),
    }
    for name, count in have.items():
        if count < 1:
            raise ExperimentError(f"{world.name} is too small: it has {max(count, 0)} {name}")
    catalogue = len(np.unique(world.sids, axis=0))
    if settings.rollout == "beam" and settings.group_size > catalogue:
        raise ExperimentError(
            f"a beam of --group-size {settings.group_size} needs as many SIDs; {world.name} has {catalogue}"
        )


def check_same(path, wanted):
    """Raise unless the JSON file that says what the files beside it are of says the same as ``wanted``, a dict of dicts.

    Raises:
        ExperimentError: one of the values is another.
        CheckpointError: the file is damaged.
    """
    found = checkpoints.load_json(path)
    for part, values in wanted.items():
        there = found.get(part)
        if not isinstance(there, dict):
            raise checkpoints.CheckpointError(f"{path} is damaged, it has no {part}: start again in a new folder")
        for name, value in values.items():
            if there.get(name) != value:
                raise ExperimentError(
                    f"--out {path.parent} cannot be resumed: it was started with {name} = {there.get(name)}, not {value}"
                )
