"""``pytest tutorials/exercises -m ex01_2`` checks exercise 2 of tutorial 1; with ``--solutions``, the solution of it."""

import importlib.util
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def pytest_addoption(parser):
    parser.addoption("--solutions", action="store_true", help="check the solutions instead of the exercises")


def pytest_configure(config):
    for path in sorted(HERE.glob("ex*.py")):
        config.addinivalue_line("markers", f"{path.stem}: the exercises of tutorial {int(path.stem[2:])}")
        for number in range(1, 4):
            config.addinivalue_line(
                "markers", f"{path.stem}_{number}: exercise {number} of tutorial {int(path.stem[2:])}"
            )


def pytest_collection_modifyitems(items):
    for item in items:  # ex01_2 is one of ex01
        for mark in list(item.iter_markers()):
            if mark.name.startswith("ex") and "_" in mark.name:
                item.add_marker(mark.name.split("_")[0])


@pytest.fixture(scope="module")
def ex(request):
    """The module that ``test_exNN.py`` checks: ``exercises/exNN.py``, or ``solutions/exNN.py``."""
    folder = HERE.parent / "solutions" if request.config.getoption("--solutions") else HERE
    path = folder / f"{Path(request.module.__file__).stem.removeprefix('test_')}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.excinfo is not None and call.excinfo.errisinstance(NotImplementedError):
        report.longrepr = f"not done yet: {call.excinfo.value}"
    return report
