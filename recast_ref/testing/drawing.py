"""A counterexample as a small table of rollouts, and as a line of Python."""

import math
import operator
import sys

import numpy as np
import torch

from . import kinds

WIDTH = 100
HEADS = {
    "rewards": "r",
    "scores": "u",
    "tie_break": "key",
    "logps": "logp",
    "predictions": "SIDs",
    "responses": "codes",
    "values": "value",
}


def draw(subject, law, inputs, error):
    """The inputs of a broken law, with what was answered and expected where the law says so: plain text."""
    kind = subject.kind
    got, expected = getattr(error, "got", None), getattr(error, "expected", None)
    place = getattr(error, "place", None)
    if got is None:
        try:
            got = subject.answer({n: v for n, v in inputs.items() if n not in law.extra})
        except (kinds.LawBroken, kinds.NotApplicable):
            got = {}
    if kind.batch in "QB" and kind.batch:
        axis = kind.ranked if kind.batch == "Q" else "T"
        lines = _groups(kind, inputs, got, expected or {}, place, axis)
    else:
        lines = []
    drawn = {name for name, axes in kind.arguments.items() if axes[1:2] == axis} if lines else set()
    rest = [f"{name} = {literal(value)}" for name, value in inputs.items() if name not in drawn and name != "expected"]
    answers = []
    for words, answer in (("answered", got), ("expected", expected or {})):
        shown = {n: v for n, v in answer.items() if not v.dim() or not lines}
        answers += [f"{words} " + ", ".join(f"{n} {literal(v)}" for n, v in shown.items())] if shown else []
    return "\n".join(line if len(line) <= WIDTH else line[: WIDTH - 4] + " ..." for line in [*lines, *rest, *answers])


def _groups(kind, inputs, got, expected, place, axis):
    """A row for each response (token) of the prompts (rows) at fault."""
    columns = {HEADS.get(n, n): inputs[n] for n, axes in kind.arguments.items() if n in inputs and axes[1:2] == axis}
    columns = {head: value for head, value in columns.items() if value.dim() > 1}
    if not columns:
        return []
    length = len(next(iter(columns.values())))
    lines = []
    for q in range(length) if place is None or place >= length else [place]:
        rows = [[axis if axis == "T" else "i", *columns]]
        answers = [(head, answer) for head, answer in (("answered", got), ("expected", expected)) if answer]
        rows[0] += [head for head, _ in answers if _shown(kind, answers, axis)]
        for i in range(next(iter(columns.values())).shape[1]):
            row = [str(i), *(number(value[q, i]) for value in columns.values())]
            row += [_cell(kind, answer, q, i, axis) for _, answer in answers if _shown(kind, answers, axis)]
            rows.append(row)
        widths = [max(map(len, column)) for column in zip(*rows)]
        if length > 1:
            lines.append(f"{'row' if axis == 'T' else 'prompt'} {q}")
        lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    return lines


def _shown(kind, answers, axis):
    return any(
        kind.answer[name][1] == "index" or axis in kind.answer[name][0] for _, answer in answers for name in answer
    )


def _cell(kind, answer, q, i, axis):
    """What was answered for one response: its numbers, and what it was chosen as."""
    numbers, marks = [], []
    for name, value in answer.items():
        axes, type_ = kind.answer[name]
        if type_ == "index" and q < len(value) and value[q] == i:
            marks.append(name)
        elif axes[1:2] == axis and q < value.shape[0] and i < value.shape[1]:
            numbers.append(number(value[q, i]))
    return " ".join(marks + numbers)


def number(value):
    """A tensor's cell in few digits; a row of codes in parentheses."""
    if value.dim():
        return "(" + ", ".join(number(each) for each in value) + ")"
    value = value.item()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ---- as Python


def line(subject, law, inputs, against):
    """A line of Python that replays a law on the inputs."""
    variant = subject.variant
    module, name = subject.address or address(variant)
    call = f"{module}.{name}" if module else "variant"
    arguments = [repr(law.name), call]
    if against != "reference" and _tells(against):
        arguments.append(f"against={_tells(against)}")
    try:
        known = kinds.deduce(variant) is subject.kind
    except ValueError:
        known = False
    arguments += [] if known else [f"kind={subject.kind.name!r}"]
    arguments += [f"{key}={literal(value)}" for key, value in inputs.items()]
    imports = "import torch" + (f", {module}" if module else "")
    return f"{imports}; from recast_ref import testing; testing.replay({', '.join(arguments)})"


def address(function):
    """``(module, name)`` under which a function, or an object that is called like one, is found; else ``(None, "variant")``."""
    module = getattr(function, "__module__", None)
    there = vars(sys.modules.get(module, object))
    names = [getattr(function, "__qualname__", "")] + [name for name, value in there.items() if value is function]
    for name in names if module and "__main__" not in module else ():
        try:
            if operator.attrgetter(name)(sys.modules[module]) is function:
                return module, name
        except (AttributeError, KeyError):
            pass
    return None, "variant"


def _tells(against):
    if against is None or isinstance(against, str):
        return repr(against)
    module, name = address(against)
    return module and f"__import__({module!r}, fromlist=['']).{name}"


def literal(value):
    """A value as Python: tensors in the fewest digits that give them back."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {literal(each)}" for key, each in value.items()) + "}"
    if not isinstance(value, torch.Tensor):
        return f"float('{value}')" if isinstance(value, float) and not math.isfinite(value) else repr(value)
    value = value.detach()
    default = value.dtype in (torch.float32, torch.int64, torch.bool)
    dtype = "" if default else f", dtype={value.dtype}"
    if not value.numel():
        return f"torch.zeros({tuple(value.shape)}, dtype={value.dtype})"
    return f"torch.tensor({_cells(value)}{dtype})"


def _cells(value):
    if value.dim():
        return "[" + ", ".join(_cells(each) for each in value) + "]"
    cell = value.item()
    if not isinstance(cell, float):
        return str(cell)
    if not math.isfinite(cell):
        return f"float('{cell}')"
    return repr(cell) if value.dtype == torch.float64 else str(np.float32(cell))
