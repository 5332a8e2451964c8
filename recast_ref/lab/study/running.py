"""Runs the cells on all cores, one file for each run, so that a study that was killed goes on where it was.

The learning rate of a cell is the one with the best mean pass@1 over validation prompts and the tuning seeds. It is looked for among a
few, and beyond them where the best lies at the edge. The runs of the chosen one are the first of the cell's seeds.
"""

import multiprocessing
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from ... import __version__
from .. import checkpoints, locks
from ..experiment import ExperimentError, check_same
from ..regimes import RegimeNotReached
from ..workers import cores, deaf_to_ctrl_c, end_with_parent, short_of_memory
from . import worlds
from .bases import probe_size, train_base
from .cells import Run, base_seconds, expected_seconds, short
from .outcomes import mean
from .training import train


@dataclass(frozen=True, order=True)
class Base:
    """A base policy: cells of several arms, and worlds that differ in their labels only, share it."""

    world: str
    regime: str
    group_size: int
    width: int
    seed: int

    @classmethod
    def of(cls, run):
        cell = run.cell
        regime, size = cell.regime.partition("@")[0], probe_size(cell.regime, cell.group_size)
        return cls(worlds.base_world(cell.world), regime, size, cell.width, run.seed)

    def __str__(self):
        return f"{short(self.world)}_{self.regime}_g{self.group_size}_w{self.width}_seed{self.seed}"


class Results:
    """The files of a study in ``out``: read once, added to as runs end."""

    def __init__(self, out, scale):
        self.runs, self.bases, self.scale = Path(out) / "cells", Path(out) / "bases", scale
        self.study = checkpoints.digest(_identity(scale))
        self.scores = {}

    def score(self, run):
        """What the run is tuned by; ``None`` if it is not there, -1 if it failed."""
        if run not in self.scores and self.path(run).exists():
            self.scores[run] = self._score(self.load(run))
        return self.scores.get(run)

    def path(self, run):
        return self.runs / f"{run}.pt"

    def base_path(self, base):
        return self.bases / f"{base}.pt"

    def load(self, run):
        """What :meth:`save` was given.

        Raises:
            CheckpointError: it is damaged, or of another run, whose settings give the same name.
        """
        return checkpoints.load(self.path(run), self._of_run(run))

    def save(self, run, found):
        checkpoints.save(self.path(run), found, self._of_run(run))

    def load_base(self, base):
        """What :meth:`save_base` was given; errors as for :meth:`load`."""
        return checkpoints.load(self.base_path(base), self._of_base(base))

    def save_base(self, base, found):
        checkpoints.save(self.base_path(base), found, self._of_base(base))

    def _of_run(self, run):
        of = {
            **asdict(run.cell),
            "world": short(run.cell.world),
            "seed": run.seed,
            "learning_rate": run.learning_rate,
            "study": self.study,
        }
        return of | self._of_data(run.cell.world)

    def _of_base(self, base):
        return {**asdict(base), "world": short(base.world), "study": self.study} | self._of_data(base.world)

    @staticmethod
    def _of_data(world):
        """The files of a world of real interactions may hold something else by the time that a study goes on."""
        found = worlds.fingerprint(world)
        return {"data": found} if found else {}

    @staticmethod
    def _score(found):
        return -1.0 if "failed" in found else mean(found["valid"]["pass@1"])

    def chosen(self, cell):
        """``(learning rate or None, runs that are missing)``. The rate is None while it is looked for, and if nothing works."""
        if not cell.trains:
            return 0.0, self._missing(cell, [0.0], 1 if cell.arm == "popular" else self.scale.seeds)
        rates = sorted(self.scale.rates)
        ladder = sorted({*rates, *self.scale.more_rates})
        while True:
            missing = self._missing(cell, rates, self.scale.tuning_seeds)
            if missing:
                return None, missing
            seeds = range(self.scale.tuning_seeds)
            scores = [np.mean([self.score(Run(cell, seed, rate)) for seed in seeds]) for rate in rates]
            place = int(np.argmax(scores))
            beyond = ladder.index(rates[place]) + (1 if place == len(rates) - 1 else -1 if place == 0 else 0)
            if 0 <= beyond < len(ladder) and ladder[beyond] not in rates:
                rates = sorted([*rates, ladder[beyond]])
                continue
            if scores[place] < 0:
                return None, []
            return rates[place], self._missing(cell, [rates[place]], self.scale.seeds)

    def _missing(self, cell, rates, seeds):
        runs = [Run(cell, seed, rate) for rate in rates for seed in range(seeds)]
        return [run for run in runs if self.score(run) is None]

    def remaining_seconds(self, cells):
        """About how long all that is missing takes on one core."""
        total, bases = 0.0, set()
        for cell in cells:
            rate, missing = self.chosen(cell)
            total += sum(expected_seconds(run, self.scale) for run in missing)
            bases |= {Base.of(run) for run in missing if cell.arm != "popular"}
            if rate is None and missing:  # and then the seeds that were not tuned with
                rest = max(self.scale.seeds - self.scale.tuning_seeds, 0)
                total += rest * expected_seconds(missing[0], self.scale)
        absent = [base for base in bases if not self.base_path(base).exists()]
        return total + sum(base_seconds(base.regime, base.width) for base in absent)


def run_cells(
    cells, scale, out, resume=False, on_progress=lambda done, total, line: None, finish=lambda results: None, real=()
):
    """Do all runs that the cells need and that are not there.

    It starts processes: a script that calls it needs the usual ``if __name__ == "__main__":``.

    Args:
        cells: of :mod:`~recast_ref.lab.study.cells`, in order.
        scale: :class:`~recast_ref.lab.study.cells.Scale`.
        out: folder; made if missing. One study at a time.
        resume: go on with the study in ``out``. Cells and seeds may be others than before, the rest of the scale may not.
        real: names of the worlds of real interactions that it has cells of, so that none is forgotten when it goes on.
        on_progress: called with the work done and in all (in expected seconds) and, when a run has ended, a line about it.
        finish: called with the results while ``out`` is still held, also if the study is interrupted.

    Returns:
        :class:`Results`.

    Raises:
        ExperimentError: ``out`` holds a study and ``resume`` is not set, or one of another scale or version, or of worlds that
            are not in ``real``; or two cells would have the same files.
        Held: another process runs in ``out``.
        CheckpointError: a file in ``out`` is damaged or of another study; the message names it.
        concurrent.futures.process.BrokenProcessPool: a worker died (out of memory, say).
    """
    out = Path(out)
    _check_folder(out, resume)
    with locks.hold(out):
        _open(out, scale, resume, real)
        try:
            results = _run_cells(cells, scale, out, on_progress)
        except KeyboardInterrupt:
            finish(Results(out, scale))
            raise
        finish(results)
    return results


def _run_cells(cells, scale, out, on_progress):
    results = Results(out, scale)
    for folder in (results.runs, results.bases):
        checkpoints.clean(folder)
    cells = list(dict.fromkeys(cells))
    _check_names(cells)
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(cores(), context, _start, (str(out), scale))
    futures, done, total = {}, 0.0, results.remaining_seconds(cells)
    try:
        while True:
            _submit(pool, results, cells, futures)
            if not futures:
                return results
            finished, _ = wait(futures, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in finished:
                job, (line, score) = futures.pop(future), future.result()
                if isinstance(job, Run):
                    results.scores[job] = score
                    done += expected_seconds(job, scale)
                else:
                    done += base_seconds(job.regime, job.width)
                on_progress(done, done + results.remaining_seconds(cells), line)
            if not finished:
                on_progress(done, max(total, done), None)
            else:
                total = done + results.remaining_seconds(cells)
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()  # a run is there or it is not
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _submit(pool, results, cells, futures):
    """Keep every core busy with the first jobs that can be done now: bases that a run needs, and runs that have theirs."""
    waiting = set(futures.values())
    room = 2 * cores() - len(waiting)
    for cell in cells:
        if room <= 0:
            return
        for run in results.chosen(cell)[1]:
            base = Base.of(run)
            job = run if cell.arm == "popular" or results.base_path(base).exists() else base
            if job in waiting or room <= 0:
                continue
            with deaf_to_ctrl_c():
                futures[pool.submit(_work, job)] = job
            waiting.add(job)
            room -= 1


def _check_names(cells):
    """A file is named after the last part of a world's path: two paths that end alike would share their files."""
    named = {}
    for cell in cells:
        other = named.setdefault(short(cell.world), cell.world)
        if other != cell.world:
            raise ExperimentError(f"{other} and {cell.world} would have the same files: rename one of the worlds")


def _check_folder(out, resume):
    """Raise :class:`ExperimentError` unless ``out`` is a study to resume or, without ``resume``, new or empty."""
    if out.exists() and not out.is_dir():
        raise ExperimentError(f"--out {out}: not a folder")
    if (out / "study.json").exists():
        if not resume:
            raise ExperimentError(f"--out {out} already holds a study: add --resume to go on, or choose another folder")
    elif not locks.is_new(out):
        raise ExperimentError(f"--out {out} holds other files: choose a new folder")
    elif resume:
        raise ExperimentError(f"--out {out} holds no study to resume: leave out --resume to start one")


def _open(out, scale, resume, real):
    """Check and write ``study.json``, which says what the files in ``out`` are of."""
    _check_folder(out, resume)  # again: another may have held it until now
    if resume:
        check_same(out / "study.json", _identity(scale))
        forgotten = set(checkpoints.load_json(out / "study.json").get("worlds", ())) - set(map(short, real))
        if forgotten:
            raise ExperimentError(
                f"--out {out} has runs of {', '.join(sorted(forgotten))}: give its --world again, or its rows would be lost"
            )
    checkpoints.save_json(out / "study.json", {**_identity(scale), "worlds": sorted(map(short, real))})


def _identity(scale):
    """All that decides the numbers of a run, beside the run."""
    return {
        "scale": {name: value for name, value in scale.record().items() if name not in ("seeds", "tuning_seeds")},
        "versions": {"recast-ref": __version__, "torch": torch.__version__, "checkpoints": checkpoints.FORMAT},
    }


_worker = {}


def _start(out, scale):
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _worker.update(results=Results(out, scale), scale=scale)


def _work(job):
    """Do a job and save its file. Returns a line about it and, of a run, its score."""
    results, scale = _worker["results"], _worker["scale"]
    start = time.process_time()
    world = worlds.make(job.world if isinstance(job, Base) else job.cell.world, scale.users)
    if isinstance(job, Base):
        try:
            with short_of_memory():
                policy, record = train_base(world, job.regime, job.group_size, job.width, job.seed, scale.converged)
            found = {"policy": policy.state_dict(), "record": record}
            line = f"{job}: {record['updates']} updates, {record['all_zero']:.1%} of the groups are all-zero"
        except RegimeNotReached as error:
            found, line = {"failed": str(error)}, str(error)
        results.save_base(job, found)
        return line, None
    with short_of_memory():
        found = _train(world, job, scale)
    found["cpu_seconds"] = time.process_time() - start
    results.save(job, found)
    score = Results._score(found)
    return f"{job}: {found.get('failed', f'validation pass@1 {score:.2%}')}", score


def _train(world, run, scale):
    if run.cell.arm == "popular":
        return {"base": None, **train(world, run, None, scale)}
    base = _base(Base.of(run))
    if "failed" in base:
        return {"failed": base["failed"]}
    policy = world.answers.policy(world.trie, worlds.HISTORY, run.cell.width, run.seed)
    policy.load_state_dict(base["policy"])
    try:
        return {"base": base["record"], **train(world, run, policy, scale)}
    except FloatingPointError as error:
        return {"failed": str(error)}


@lru_cache(maxsize=8)
def _base(base):
    return _worker["results"].load_base(base)
