"""Runs the jobs of an experiment on all cores, one thread each, so that the numbers do not depend on how many there are."""

import multiprocessing
import os
import queue
import re
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import torch

from . import backend, checkpoints
from .cost import measure
from .training import Run, train_base
from .worlds import World

COST = ("cost", 0)


def cores():
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(world, settings, folder, on_progress):
    """Train the bases, then every arm with every seed, then measure the cost of an update with nothing else running.

    Args:
        folder: where checkpoints are; a job that has one continues from it.
        on_progress: as for :func:`~recast_ref.lab.experiment.compare`.

    Returns:
        ``{(name, seed): record}``; names are ``"base"``, the arms, and ``"cost"`` with seed 0.

    Raises:
        concurrent.futures.process.BrokenProcessPool: a worker died (out of memory, say).
    """
    checkpoints.clean(folder)
    bases = [("base", seed) for seed in range(settings.seeds)]
    arms = [(arm, seed) for seed in range(settings.seeds) for arm in settings.arms]
    total = len(bases) + len(arms)
    records, shares = {}, {}

    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    others = set(multiprocessing.active_children())
    # As a file: what is sent to a process as it starts holds up the start of the next until it is read.
    checkpoints.save(folder / "world.pt", world.state(), {"job": "world"})
    pool = ProcessPoolExecutor(cores(), context, _start, (settings, str(folder), messages))

    def report(line=None):
        while True:
            try:
                job, share = messages.get_nowait()
            except queue.Empty:
                return on_progress(sum(shares.values()), total, line)
            shares[job] = max(share, shares.get(job, 0.0))

    try:
        for stage in (bases, arms, [COST]):
            with deaf_to_ctrl_c():
                futures = {pool.submit(_work, job): job for job in stage}
            while futures:
                finished, _ = wait(futures, timeout=0.2, return_when=FIRST_COMPLETED)
                report()
                for future in finished:
                    job = futures.pop(future)
                    records[job] = future.result()
                    if job != COST:
                        shares[job] = 1.0
                        report(_line(job, records[job]))
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()  # their checkpoints are whole at any moment
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return records


def _line(job, record):
    """What is told of a job that has ended."""
    final, regime = record["final"], record.get("regime")
    line = f"{job[0]}, seed {job[1]}: pass@1 {final['pass@1']:.2%}, recall@10 {final['recall@10']:.2%}"
    return line + (f", {regime['all_zero']:.1%} all-zero after {regime['updates']} updates" if regime else "")


@contextmanager
def deaf_to_ctrl_c():
    """Processes started in here ignore Ctrl-C, which the terminal sends to all: it is the parent's to handle."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_worker = {}


def _start(settings, folder, messages):
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    backend.use(settings.backend)
    folder = Path(folder)
    world = World.from_state(checkpoints.load(folder / "world.pt", {"job": "world"}))
    _worker.update(world=world, settings=settings, folder=folder, messages=messages)


def end_with_parent():
    """Do not outlive a killed parent: a resumed run would find another hand in its checkpoints."""
    multiprocessing.parent_process().join()
    os._exit(1)


@contextmanager
def short_of_memory():
    """torch raises ``RuntimeError`` where a tensor finds no room; make it a ``MemoryError`` of one line."""
    try:
        yield
    except RuntimeError as error:
        found = re.search("you tried to allocate [0-9]+ bytes", str(error))
        if not found:
            raise
        raise MemoryError(f"A worker process failed: {found[0]}") from None


def _work(job):
    name, seed = job
    world, settings, folder = _worker["world"], _worker["settings"], _worker["folder"]

    def progress(share):
        _worker["messages"].put((job, share))

    with short_of_memory():
        if job == COST:
            return measure(world, settings)
        base = folder / f"base-{seed}.pt"
        if name == "base":
            return train_base(world, settings, seed, base, progress)
        return Run(world, settings, name, seed, base).train(folder / f"{name}-{seed}.pt", progress)
