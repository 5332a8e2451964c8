"""Hypothesis profiles: ``ci`` (default), ``thorough`` (``pytest --hypothesis-profile=thorough``), and ``few``, for runs under a
sanitizer; what a law runs over."""

import functools
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

for name, examples in (("ci", 60), ("few", 8), ("thorough", 10_000)):  # whatever the clock says: the cores may be busy
    settings.register_profile(name, max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci")

os.environ.pop("PYTEST_ADDOPTS", None)  # meant for this pytest, not for those that tests start

ROOT = Path(__file__).parents[1]
AMAZON = Path(__file__).parents[2] / "shared" / "data" / "amazon_industrial"


@pytest.fixture
def amazon():
    """The real interactions the maintainers test with; they are not part of the repository."""
    if not AMAZON.is_dir():
        pytest.skip(f"no real interactions at {AMAZON}")
    return AMAZON


@pytest.fixture(scope="session")
def mypy(tmp_path_factory):
    """Runs mypy as pyproject.toml sets it up: the exit code, and what it said."""
    pytest.importorskip("mypy", reason="types are checked where mypy is: pip install -e '.[lint]'")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    command += ["--cache-dir", str(tmp_path_factory.mktemp("mypy"))]  # torch is read once

    def run(*arguments, cwd=ROOT):
        result = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, check=False)
        return result.returncode, result.stdout + result.stderr

    return run


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=f"no GPU here (torch {torch.__version__})"))


class OnDevice:
    """A module whose functions run on another device: tensors go there, results come back."""

    def __init__(self, module, device):
        self.module, self.device = module, device

    def __getattr__(self, name):
        function = getattr(self.module, name)

        @functools.wraps(function)
        def run(*arguments, **options):
            return moved(function(*moved(arguments, self.device), **moved(options, self.device)), "cpu")

        return run


def moved(x, device):
    if isinstance(x, torch.Tensor):
        return x.to(device)
    if isinstance(x, dict):
        return {name: moved(value, device) for name, value in x.items()}
    if isinstance(x, tuple):
        values = [moved(value, device) for value in x]
        return type(x)(*values) if hasattr(x, "_fields") else tuple(values)
    return x


PATHS = ["reference", "fast"]


@pytest.fixture(params=[*PATHS, pytest.param("fast, cuda", marks=pytest.mark.gpu)], scope="session")
def R(request):
    """The module under test: each law holds for both paths, and for the fast one on both kinds of device."""
    name, *device = request.param.split(", ")
    module = importlib.import_module(f"recast_ref.{name}")
    return OnDevice(module, *device) if device else module


@pytest.fixture(params=PATHS, scope="session")
def path(request):
    """Both paths on the CPU, for what is refused: on a GPU a bad value is an error of another kind (``test_gpu.py``)."""
    return importlib.import_module(f"recast_ref.{request.param}")
