"""Annotations: all that is public has them, both paths the same ones, and mypy finds a wrong one.

What a type checker sees of the installed package is in ``test_building.py``.
"""

import inspect
import shutil

import pytest
from conftest import ROOT

from recast_ref import fast, reference, testing
from recast_ref.reference import anchoring, mixing
from recast_ref.trainers import pairs, sids

MODULES = [reference, anchoring, mixing, fast, testing, pairs, sids]


def public(module):
    """The functions that a module offers, and those of its classes."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    for value in (getattr(module, name) for name in getattr(module, "__all__", own) if name[0] != "_"):
        if inspect.isfunction(value):
            yield value
        elif inspect.isclass(value):
            its = (m for m in vars(value).values() if inspect.isfunction(m) and m.__module__ == value.__module__)
            yield from (m for m in its if m.__name__[0] != "_" or m.__name__ == "__init__")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_what_is_public_is_annotated(module):
    assert list(public(module))
    for function in public(module):
        signature = inspect.signature(function)
        missing = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name != "self"]
        assert not missing, f"{function.__qualname__}: {', '.join(missing)}"
        assert signature.return_annotation is not signature.empty, function.__qualname__


@pytest.mark.parametrize("name", reference.__all__)
def test_both_paths_take_and_give_the_same_types(name):
    assert inspect.signature(getattr(fast, name)) == inspect.signature(getattr(reference, name))


PLANTED = {
    "reference/branching.py": (") -> Tensor:", ") -> int:", 'expected "int"'),
    "reference/recasting.py": ("weight: float = 1.0", "weight: str = 1.0", 'parameter has type "str"'),
    "fast/__init__.py": ("(rewards: Tensor) -> Tensor:", "(rewards: Tensor):", "missing a return type"),
    "testing/suite.py": ("variant: Variant,", "variant: int,", 'has incompatible type "int"'),
    "trainers/sids.py": ("example: str", "example: bytes", "No overload variant"),
}


def test_mypy_is_content_with_what_there_is(mypy):
    code, said = mypy()
    assert code == 0, said


def test_mypy_finds_what_is_wrong(mypy, tmp_path):
    shutil.copytree(ROOT / "recast_ref", tmp_path / "recast_ref")
    for file, (right, wrong, _) in PLANTED.items():
        path = tmp_path / "recast_ref" / file
        assert right in path.read_text()
        path.write_text(path.read_text().replace(right, wrong, 1))
    _, said = mypy(cwd=tmp_path)
    for file, (_, _, words) in PLANTED.items():
        assert any(line.startswith(f"recast_ref/{file}:") and words in line for line in said.splitlines()), said
