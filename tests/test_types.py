"""Annotations: all that is public has them, both paths the same ones, and mypy finds a wrong one.

What a type checker sees of the installed package is in ``test_building.py``.
"""

import inspect
import shutil

import pytest
from conftest import ROOT

from recast_ref import fast, reference, testing
from recast_ref.reference import anchoring, hybrid
from recast_ref.trainers import pairs, sids

MODULES = [reference, anchoring, hybrid, fast, testing, pairs, sids]


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
    for function in public(module):
        signature = inspect.signature(function)
        missing = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name != "self"]
        assert not missing, f"{function.__qualname__}: {', '.join(missing)}"
        assert signature.return_annotation is not signature.empty, function.__qualname__


@pytest.mark.parametrize("name", reference.__all__)
def test_both_paths_take_and_give_the_same_types(name):
    assert inspect.signature(getattr(fast, name)) == inspect.signature(getattr(reference, name))


@pytest.mark.parametrize(
    "file, right, wrong, words",
    [
        ("recast_ref/__init__.py", "", "", "no issues found"),
        ("recast_ref/reference/branching.py", ") -> Tensor:", ") -> int:", 'expected "int"'),
        ("recast_ref/reference/recasting.py", "weight: float = 1.0", "weight: str = 1.0", 'variable has type "str"'),
        ("recast_ref/fast/__init__.py", "(rewards: Tensor) -> Tensor:", "(rewards: Tensor):", "missing a return type"),
        ("recast_ref/testing/suite.py", "variant: Variant,", "variant: int,", 'has incompatible type "int"'),
        ("recast_ref/trainers/sids.py", "example: str", "example: bytes", "incompatible type"),
    ],
    ids=["as it is", "an answer", "a default", "none", "testing", "trainers"],
)
def test_mypy_finds_what_is_wrong(mypy, tmp_path, file, right, wrong, words):
    shutil.copytree(ROOT / "recast_ref", tmp_path / "recast_ref")
    text = (tmp_path / file).read_text()
    assert right in text
    (tmp_path / file).write_text(text.replace(right, wrong, 1))
    code, said = mypy(cwd=tmp_path)
    assert words in said and bool(code) == bool(right), said
