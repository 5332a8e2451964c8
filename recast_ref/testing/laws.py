"""Laws: each a named function that states one property of a signal or a loss, held to drawn inputs.

A law is called with the :class:`~.kinds.Subject`, the arguments it was drawn as a dict, and what else it asked for (an order,
a cut). It raises :class:`~.kinds.LawBroken` if its property does not hold, and :class:`~.kinds.NotApplicable` if it says
nothing about the variant. :data:`LAWS` holds all of them by name.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from .._outcomes import first_line
from . import state
from .kinds import KINDS, Case, LawBroken, NotApplicable, Subject

Function = Callable[..., Any]
LAWS: dict[str, "Law"] = {}
STATE_LAW = "pure"  # says that a variant changed global state; any other law says so where this one is not asked for


@dataclass(frozen=True)
class Law:
    """One property."""

    name: str
    kinds: tuple[str, ...]  # names of the kinds it speaks about
    statement: str  # in one sentence
    hold: Function  # (subject, case, **more); raises LawBroken or NotApplicable
    asked: dict  # of the kind's strategy
    more: Function | None  # (draw, case, subject) -> dict of what else the law is given
    table: Function | None  # (kind) -> list of inputs worked out by hand, instead of drawn ones

    def inputs(self, subject: Subject) -> st.SearchStrategy[Case]:
        """Strategy of the inputs: the arguments that the variant takes, and what else the law is given."""

        @st.composite
        def inputs(draw):
            case = draw(subject.inputs(**self.asked))
            return case | (self.more(draw, case, subject) if self.more else {})

        return inputs()

    def run(self, subject: Subject, **inputs: Any) -> None:
        """Hold the variant to one example."""
        case = Case((n, v.clone() if isinstance(v, torch.Tensor) else v) for n, v in inputs.items())
        more = {name: case.pop(name) for name in self.extra if name in case}
        subject.changes.clear()
        try:
            with state.kept(subject.changes):
                self.hold(subject, case, **more)
        except (LawBroken, NotApplicable, KeyboardInterrupt):
            raise
        except BaseException as error:  # in a backward of the variant's, say
            raise LawBroken(first_line(error)) from error
        if subject.changes and (self.name == STATE_LAW or not subject.spares_state):
            raise LawBroken(subject.changes[0])

    @property
    def extra(self):
        """Names of what the law is given beside the arguments."""
        return list(inspect.signature(self.hold).parameters)[2:]


def law(
    *kinds: str, more: Function | None = None, table: Function | None = None, **asked: Any
) -> Callable[[Function], Function]:
    """Register the decorated function as a law about these kinds; its docstring's first paragraph is the statement.

    Raises:
        ValueError: there is no such kind, or the function has no docstring.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"law: there is no kind {kind!r}; there are {', '.join(KINDS)}")

    def register(function):
        if not inspect.getdoc(function):
            raise ValueError(f"law {function.__name__}: needs a docstring, which states it")
        statement = " ".join(inspect.getdoc(function).split("\n\n")[0].split())
        LAWS[function.__name__] = Law(function.__name__, kinds, statement, function, asked, more, table)
        return function

    return register


def laws_of(kind: str) -> dict[str, Law]:
    """The laws about a kind, by name."""
    return {name: law for name, law in LAWS.items() if kind in law.kinds}


# ---- what laws are written with


def demand(
    holds: bool | Tensor, message: str | Callable[[int | None], str], got: Any = None, expected: Any = None
) -> None:
    """Raise :class:`LawBroken` unless all of ``holds`` is true: a bool, or a tensor whose first axis says where.

    ``message`` is words, or a function that makes them of the first place where it does not hold.
    """
    if isinstance(holds, torch.Tensor) and holds.dim():
        if bool(holds.all()):
            return
        place = int((~holds).nonzero()[0, 0])
    elif bool(holds):
        return
    else:
        place = None
    raise LawBroken(message(place) if callable(message) else message, place, got, expected)


def same(
    got: dict[str, Tensor], expected: dict[str, Tensor], what: str, rtol: float | None = None, atol: float | None = None
) -> None:
    """Demand that two answers are equal, part by part: floats within rounding, all else to the last one."""
    for name in [name for name in expected if name in got]:
        a, b = got[name].detach(), expected[name].detach()
        if a.dtype.is_floating_point:
            r, t = tolerance(a.dtype if a.dtype.itemsize < b.dtype.itemsize else b.dtype)
            r, t = r if rtol is None else rtol, t if atol is None else atol
            equal = torch.isclose(a.double(), b.double(), rtol=r, atol=t, equal_nan=True)
        else:
            equal = a == b
        demand(equal, f"{name}: {what}" + ("" if a.dim() else f": {a.item()} instead of {b.item()}"), got, expected)


def tolerance(dtype: torch.dtype) -> tuple[float, float]:
    """``(rtol, atol)`` for numbers that two ways of computing in a dtype may differ by."""
    eps = torch.finfo(dtype).eps
    return (1e-9, 1e-12) if dtype == torch.float64 else (80 * eps, 8 * eps)


def index(kind, case, axis, which):
    """The case with ``which`` taken along an axis, in all of its tensors that have it."""
    return Case(
        (name, _take(value, kind.arguments.get(name, ""), axis, which) if isinstance(value, torch.Tensor) else value)
        for name, value in case.items()
    )


def index_answer(kind, answer, axis, which):
    """The parts of an answer with ``which`` taken along an axis."""
    return {name: _take(value, kind.answer[name][0], axis, which) for name, value in answer.items()}


def _take(tensor, axes, axis, which):
    place = axes.find(axis)
    # One advantage a row has no axis of tokens, one a token has.
    if place < 0 and axes == "B" and axis == "T":
        place = 1
    return tensor.index_select(place, which) if 0 <= place < tensor.dim() else tensor


def size(kind, case, axis):
    """How long an axis is."""
    return next(
        case[name].shape[axes.index(axis)] for name, axes in kind.arguments.items() if axis in axes and name in case
    )
