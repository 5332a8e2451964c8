"""What all code of a process shares, and a variant must leave as it is."""

import contextlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def _deterministic():
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    return ("warn only" if warn_only else "on") if torch.are_deterministic_algorithms_enabled() else "off"


def _set_deterministic(how):
    torch.use_deterministic_algorithms(how != "off", warn_only=how == "warn only")


def _set_device(device):
    torch.set_default_device(None)  # as it is unless somebody asks for one
    if torch.get_default_device() != device:
        torch.set_default_device(device)


def _numpy_state():
    name, keys, *rest = np.random.get_state()
    return name, keys.tobytes(), *rest


def _set_numpy_state(state):
    name, keys, *rest = state
    np.random.set_state((name, np.frombuffer(keys, np.uint32), *rest))


MODES: dict[
    str, tuple[Callable[[], Any], Callable[[Any], Any]]
] = {  # name -> how it is read and set: what decides about the answers of other code
    "torch's default device": (torch.get_default_device, _set_device),
    "torch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
}
QUICK = MODES | {  # read in microseconds, so before and after every call of the variant
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's deterministic algorithms": (_deterministic, _set_deterministic),
    "torch's random state": (
        lambda: torch.get_rng_state().numpy().tobytes(),
        lambda state: torch.set_rng_state(torch.tensor(list(state), dtype=torch.uint8)),
    ),
}
ALL = QUICK | {
    "numpy's random state": (_numpy_state, _set_numpy_state),
    "Python's random state": (random.getstate, random.setstate),
}


@contextlib.contextmanager
def kept(changes, states=ALL):
    """Set back what the body changes of ``states``, and append to ``changes`` what that was, in words."""
    before = {name: read() for name, (read, _) in states.items()}
    try:
        yield
    finally:
        for name, (read, set_back) in states.items():
            now = read()
            if now != before[name]:
                set_back(before[name])
                readable = "random" not in name
                changes.append(f"changed {name}" + (f" from {before[name]} to {now}" if readable else ""))
