"""What a variant can stand in for, and how it is called.

A kind is named after the function of :mod:`recast_ref.reference` whose leading arguments and answer it shares. One more,
``token_advantages``, takes one SID a response and answers advantages per token.
"""

import inspect
import itertools
import unittest
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from .._outcomes import first_line
from . import state, strategies


class NotApplicable(unittest.SkipTest):
    """The law says nothing about this variant; the message says why."""


class LawBroken(AssertionError):
    """A law does not hold: what is wrong, where, and what was answered and expected, as far as it is known."""

    def __init__(self, message: str, place: int | None = None, got: Any = None, expected: Any = None) -> None:
        super().__init__(message)
        self.place, self.got, self.expected = place, got, expected


@dataclass(frozen=True)
class Kind:
    """Arguments and answer of a function, each with its axes by letter (see :mod:`recast_ref.reference`)."""

    name: str
    arguments: dict  # the tensors it can be given: name -> axes
    answer: dict  # what it answers: name -> (axes, "index" | "integer" | "float" | "bool")
    main: str  # which part of the answer a bare tensor is
    draw: object  # (draw, **what the law asks of the strategy) -> dict of arguments
    ranked: str = "G"  # the axis that an index counts along: responses, or ``K`` where targets are chosen from

    @property
    def batch(self):
        """The axis along which a batch is put together: ``Q`` or ``B``."""
        return next(iter(self.arguments.values()))[0]


class Answer(dict):
    """The parts of an answer by name. A law that asks for a part the variant does not give is not applicable."""

    def __missing__(self, name):
        raise NotApplicable(f"it answers no {name}")


class Case(dict):
    """The arguments of one example. A law that reads one the variant does not take is not applicable."""

    def __missing__(self, name):
        raise NotApplicable(f"it takes no {name}")

    def __or__(self, other):
        return Case(super().__or__(other))


class Subject:
    """A variant, its kind, and the function it is compared with."""

    def __init__(self, variant, kind=None, against=None):
        self.variant, self.against = variant, against
        self.changes, self.spares_state = [], False  # of global state by the variant; whether only ``pure`` tells them
        self.address = None  # ``(module, name)``, where the caller knows under which it was found
        self.parts = None  # that it answers, by name, once it has answered
        self.parameters = _parameters(variant)
        self.accepts, required = _names(variant, self.parameters)
        self.kind = KINDS[kind] if kind else deduce(variant)
        given = [*self.kind.arguments, *OPTIONS]
        unknown = [name for name in required if name not in given]
        if unknown:
            raise ValueError(
                f"{describe(variant)}: nothing is known to give for its argument {unknown[0]!r}; "
                f"{self.kind.name} has {', '.join(self.kind.arguments)}"
            )
        self.required = required

    @st.composite
    @staticmethod
    def _inputs(draw, subject, asked):
        case = subject.kind.draw(draw, **asked)
        # Optional tensors are left out now and then: what happens without them is part of what is checked.
        for name in ("repairable", "tie_break", "ref_logps"):
            if name in case and name not in subject.required and not draw(st.booleans()):
                del case[name]
        if "ref_logps" not in case or not subject.takes("ref_logps"):
            case.pop("kl_coef", None)  # it would need them
        return Case((name, value) for name, value in case.items() if subject.takes(name))

    def inputs(self, **asked):
        """Strategy of the arguments that the variant takes, as a dict."""
        return Subject._inputs(self, asked)

    def takes(self, name):
        """Whether the variant has an argument of this name."""
        return name in self.accepts

    def answer(self, case):
        """The variant's :class:`Answer` to a case, a dict of arguments.

        Raises:
            LawBroken: it raised an exception, or answered something of another type, shape or dtype, or now other parts than
                before: a law that asks for one of them would pass over it.
        """
        answer = self._ask(self.variant, self.parameters, case)
        self.parts = self.parts or tuple(answer)
        if tuple(answer) != self.parts:
            raise LawBroken(f"answered {', '.join(answer)} here, and {', '.join(self.parts)} in the call before")
        return answer

    def expected(self, case):
        """The answer of the function it is compared with."""
        if self.against is None:
            raise NotApplicable("there is nothing to compare with")
        if self.against is self.variant:
            raise NotApplicable("it would be compared with itself")
        try:
            return self._ask(self.against, _parameters(self.against), case)
        except LawBroken as error:
            raise LawBroken(f"{describe(self.against)} {error}") from error

    def _ask(self, function, parameters, case):
        try:
            with state.kept(self.changes, state.QUICK):
                answer = _call(function, parameters, case)
            return _read(answer, self.kind, case)
        except (LawBroken, KeyboardInterrupt):
            raise
        except BaseException as error:  # sys.exit and pytest.skip too: they are no answers
            raise LawBroken(first_line(error)) from error


def describe(function):
    """``module.name`` of a function."""
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{getattr(function, '__module__', '?')}.{name}"


def deduce(variant):
    """The :class:`Kind` of a variant: by its name if the reference has it, else by its leading arguments.

    Raises:
        ValueError: they are those of no kind.
    """
    accepts, _ = _names(variant, _parameters(variant))
    name = getattr(variant, "__name__", "")
    if name in KINDS:
        return KINDS[name]
    leading = tuple(accepts[:2])
    if leading == ("predictions", "targets"):
        return KINDS["recast_from_sids" if {"weight", "tie_break"} & set(accepts) else "structural_scores"]
    if leading == ("logits", "tokens"):
        return KINDS["logits_loss" if len(accepts) > 2 and accepts[2] == "old_logps" else "token_logps"]
    for start, kind in (
        (("rewards", "scores"), "recast"),
        (("rewards",), "group_advantages"),
        (("responses", "targets"), "token_advantages"),
        (("positive_tokens", "negative_tokens"), "branch_mask"),
        (("logps", "old_logps"), "policy_loss"),
        (("logps",), "anchor_weights"),
        (("targets", "values"), "choose_anchor"),
    ):
        if leading[: len(start)] == start:
            return KINDS[kind]
    raise ValueError(
        f"{describe(variant)}: its arguments ({', '.join(accepts)}) are those of no kind; give one: {', '.join(KINDS)}"
    )


def _parameters(function):
    try:
        function = function.forward if isinstance(function, torch.nn.Module) else function
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise ValueError(f"{describe(function)}: its arguments cannot be read") from None


def _names(function, parameters):
    """The names of all arguments, and of those without a default."""
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if not named:
        raise ValueError(f"{describe(function)}: names no arguments; it is given what it names: (rewards, scores), say")
    return [p.name for p in named], [p.name for p in named if p.default is p.empty]


def _call(function, parameters, case):
    """What the function answers to those of the arguments that it names."""
    places = [case.get(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_ONLY]
    places = itertools.takewhile(lambda value: value is not inspect.Parameter.empty, places)
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return function(*places, **{name: case[name] for name in names if name in case})


def _read(answer, kind, case):
    """An :class:`Answer` from what the function returned: a tensor, a tuple (named or whole) or a dict."""
    if isinstance(answer, torch.Tensor):
        parts = {kind.main: answer}
    elif hasattr(answer, "_asdict"):
        parts = answer._asdict()
    elif isinstance(answer, dict):
        parts = answer
    elif isinstance(answer, tuple) and len(answer) == len(kind.answer):
        parts = dict(zip(kind.answer, answer))
    else:
        what = type(answer).__name__ + (f" of {len(answer)}" if isinstance(answer, (tuple, list)) else "")
        raise LawBroken(f"answered a {what}, expected a tensor ({kind.main}) or the fields {', '.join(kind.answer)}")
    parts = {name: parts[name] for name in kind.answer if name in parts}
    if kind.main not in parts:
        raise LawBroken(f"answered no {kind.main}")
    sizes = _sizes(kind, case)
    device = next(value.device for value in case.values() if isinstance(value, torch.Tensor))  # there is one
    for name, value in parts.items():
        axes, type_ = kind.answer[name]
        shape = sizes["..."] if axes == "..." else tuple(sizes[axis] for axis in axes)
        if not isinstance(value, torch.Tensor):
            raise LawBroken(f"{name}: answered a {type(value).__name__}, expected a tensor")
        if value.device != device:
            raise LawBroken(f"{name}: answered on {value.device}, expected {device}, where its arguments are")
        if value.layout != torch.strided:
            raise LawBroken(f"{name}: answered a {value.layout} tensor, expected a dense one")
        wanted = {"float": value.dtype.is_floating_point, "bool": value.dtype == torch.bool}
        if not wanted.get(type_, value.dtype == torch.int64):
            raise LawBroken(f"{name}: answered {value.dtype}, expected {type_ if type_ in wanted else 'torch.int64'}")
        if tuple(value.shape) != shape:
            letters = ", ".join(axes)
            raise LawBroken(f"{name}: answered shape {tuple(value.shape)}, expected ({letters}) = {shape}")
        if type_ == "index" and ((value < -1) | (value >= sizes[kind.ranked])).any():
            what = f"a {'response' if kind.ranked == 'G' else 'target'}, 0 to {sizes[kind.ranked] - 1}"
            raise LawBroken(f"{name}: answered {value.tolist()}, expected -1 or {what}")
    return Answer(parts)


def _sizes(kind, case):
    sizes = {}
    for name, axes in kind.arguments.items():
        if name in case:
            shape = tuple(case[name].shape)
            sizes.update({axes: shape} if axes == "..." else zip(axes, shape))
    return sizes


# Numbers and flags, which have defaults.
OPTIONS = (
    "weight negative_weight normalize eps alpha largest clip_low clip_high dual_clip kl_coef aggregate inplace_backward"
).split()


def _draw_groups(draw, options=True, **asked):
    case = draw(strategies.sparse_hit_groups(**asked))._asdict()
    case["logps"] = draw(strategies.tensors(case["rewards"].shape, strategies.of(-1.0, -2.0, -3.0, -4.0)))
    return case | (draw(strategies.weights()) if options else {})


def _draw_rewards(draw, options=True, **asked):
    case = {"rewards": draw(strategies.sparse_hit_groups(**asked)).rewards}
    return case | (draw(strategies.norms()) if options else {})


def _draw_hybrid(draw, options=True, **asked):
    return _draw_groups(draw, options, **asked) | (draw(strategies.norms()) if options else {})


def _draw_anchors(draw, options=True, **asked):
    return draw(strategies.anchors(**asked))._asdict()


def _draw_anchor_logps(draw, options=True, **asked):
    case = {"logps": draw(strategies.anchor_logps(**asked))}
    return case | (draw(strategies.anchor_options()) if options else {})


def _draw_sids(draw, options=True, **asked):
    case = draw(strategies.sid_groups(**asked))._asdict()
    case["tie_break"] = draw(strategies.tensors(case["predictions"].shape[:2], strategies.of(0.0, 0.25, 0.5)))
    return case | (draw(strategies.weights()) if options else {})


def _draw_responses(draw, options=True, **asked):
    case = _draw_sids(draw, options, named=(1, 1), wanted=(1, 1), **asked)
    return {"responses": case.pop("predictions")[:, :, 0], "targets": case.pop("targets")[:, 0], **case}


def _draw_tokens(draw, options=True, rows=(1, 3), tokens=(1, 4)):
    shape = draw(st.sampled_from([(), (1,), (2,)])) if rows[0] else (0,)
    shape = (*shape, draw(st.integers(*tokens)))
    positive, negative = (draw(strategies.tensors(shape, strategies.of(0, 1, 2), torch.int64)) for _ in range(2))
    return {"positive_tokens": positive, "negative_tokens": negative}


def _draw_logits(draw, options=True, **asked):
    drawn = draw(strategies.loss_inputs(**asked))
    return {"logits": drawn.logits, "tokens": drawn.tokens}


def _draw_loss(draw, options=True, **asked):
    case = draw(strategies.loss_inputs(**asked))._asdict()
    del case["logits"], case["tokens"]
    return _with_options(draw, case, options)


def _draw_logits_loss(draw, options=True, **asked):
    case = draw(strategies.loss_inputs(**asked))._asdict()
    del case["logps"]
    return _with_options(draw, case, options)


def _with_options(draw, case, options):
    case["mask"] = case["mask"].to(draw(st.sampled_from([torch.bool, torch.bool, torch.float32])))
    return case | (draw(strategies.loss_options()) if options else {})


_GROUP = {"rewards": "QG", "scores": "QG"}
_KEYS = {"tie_break": "QG"}
_USABLE = {"repairable": "Q"}
_PAIR = {"positive": ("Q", "index"), "negative": ("Q", "index"), "advantages": ("QG", "float")}
_SLOT = {"slot": ("Q", "index")}
_CHOSEN = {"chosen": ("Q", "index")}
_LOSS = dict.fromkeys(("loss", "policy", "kl", "clip_fraction"), ("", "float"))
_BATCH = {"old_logps": "BT", "advantages": "B", "mask": "BT", "ref_logps": "BT"}
_SIDS = {"predictions": "QGML", "targets": "QKL"}

KINDS = {
    kind.name: kind
    for kind in (
        Kind("structural_scores", _SIDS, {"scores": ("QG", "float")}, "scores", _draw_sids),
        Kind("hit_rewards", _SIDS, {"rewards": ("QG", "float")}, "rewards", _draw_sids),
        Kind("group_regimes", {"rewards": "QG"}, {"regimes": ("Q", "integer")}, "regimes", _draw_rewards),
        Kind("group_advantages", {"rewards": "QG"}, {"advantages": ("QG", "float")}, "advantages", _draw_rewards),
        Kind(
            "repair",
            _GROUP | _USABLE | _KEYS | {"logps": "QG"},
            _SLOT | {"rewards": ("QG", "float"), "scores": ("QG", "float")},
            "slot",
            _draw_groups,
        ),
        Kind("contrast", _GROUP | _KEYS | {"logps": "QG"}, _PAIR, "advantages", _draw_groups),
        Kind("recast", _GROUP | _USABLE | _KEYS | {"logps": "QG"}, _SLOT | _PAIR, "advantages", _draw_groups),
        Kind("recast_from_sids", _SIDS | _KEYS, _SLOT | _PAIR, "advantages", _draw_sids),
        Kind(
            "token_advantages",
            {"responses": "QGL", "targets": "QL"} | _KEYS,
            {"advantages": ("QGL", "float")},
            "advantages",
            _draw_responses,
        ),
        Kind(
            "branch_mask",
            {"positive_tokens": "...", "negative_tokens": "..."},
            {"mask": ("...", "bool")},
            "mask",
            _draw_tokens,
        ),
        Kind(
            "choose_anchor",
            {"targets": "QKL", "values": "QK", "tie_break": "QK"},
            _CHOSEN,
            "chosen",
            _draw_anchors,
            "K",
        ),
        Kind("nearness", _SIDS, {"nearness": ("QK", "float")}, "nearness", _draw_sids, "K"),
        Kind("anchor_weights", {"logps": "Q"}, {"weights": ("Q", "float")}, "weights", _draw_anchor_logps),
        Kind("hybrid", _GROUP | _USABLE | _KEYS | {"logps": "QG"}, _SLOT | _PAIR, "advantages", _draw_hybrid),
        Kind("token_logps", {"logits": "BTV", "tokens": "BT"}, {"logps": ("BT", "float")}, "logps", _draw_logits),
        Kind("policy_loss", {"logps": "BT"} | _BATCH, _LOSS, "loss", _draw_loss),
        Kind("logits_loss", {"logits": "BTV", "tokens": "BT"} | _BATCH, _LOSS, "loss", _draw_logits_loss),
    )
}
