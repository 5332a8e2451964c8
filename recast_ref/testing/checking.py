"""Hold a variant to the laws, and say what it breaks."""

import contextlib
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import hypothesis
import torch

from .. import reference
from . import drawing, loops
from .kinds import KINDS, LawBroken, NotApplicable, Subject, describe
from .laws import LAWS, index, laws_of, size

Variant = Callable[..., Any]
V = TypeVar("V", bound=Variant)
HOLDS, BROKEN, ON_PURPOSE, SPARED, SILENT = "holds", "BROKEN", "broken on purpose", "holds after all", "not applicable"


@dataclass
class Outcome:
    """What became of one law."""

    law: str
    status: str  # one of the five above
    examples: int = 0  # how many it was held to
    message: str = ""  # what is wrong, or why the law says nothing
    inputs: dict = field(default_factory=dict)  # the smallest counterexample
    table: str = ""  # the same, drawn
    line: str = ""  # of Python, which reproduces it

    def assert_holds(self) -> None:
        """Raise ``AssertionError`` with the counterexample if the law is broken, and not on purpose."""
        if self.status == BROKEN:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        line = f"{self.law:<28} {self.status}"
        if self.status == HOLDS:
            return f"{line}, {self.examples} examples"
        if self.status == SPARED:
            return f"{line}: declared broken, but no counterexample in {self.examples} examples"
        if self.status == BROKEN:
            return f"{line}: {self.message}\n" + drawing.indent(f"{self.table}\n{self.line}")
        return f"{line}: {self.message}"


@dataclass
class Report:
    """The outcomes of :func:`check`; ``str(report)`` has a line for each, and the counterexamples."""

    variant: str
    kind: str
    against: str
    outcomes: list[Outcome]

    @property
    def ok(self) -> bool:
        """Whether no law is broken but those that are so on purpose."""
        return not any(outcome.status == BROKEN for outcome in self.outcomes)

    def __getitem__(self, law: str) -> Outcome:
        """The outcome of a law, by name."""
        return next(outcome for outcome in self.outcomes if outcome.law == law)

    def assert_holds(self) -> None:
        """Raise ``AssertionError`` with the report if a law is broken, and not on purpose."""
        if not self.ok:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        return "\n".join([*map(str, self.outcomes), self.summary()])

    def summary(self) -> str:
        """What was checked, and how many outcomes there are of each status."""
        counts: dict[str, int] = {}
        for outcome in self.outcomes:
            counts[outcome.status] = counts.get(outcome.status, 0) + 1
        counted = ", ".join(f"{count} {status}" for status, count in counts.items())
        return f"{self.variant} as {self.kind}, against {self.against}: {counted}"


def breaks(*laws: str, because: str = "") -> Callable[[V], V]:
    """Declare which laws a variant breaks on purpose, and why::

        @breaks("agreement", "zero_sum", because="the negative counts half")
        def mine(rewards, scores): ...

    Raises:
        ValueError: there is no law of that name.
    """
    _known(laws)

    def declare(variant):
        variant.breaks = {**getattr(variant, "breaks", {}), **dict.fromkeys(laws, because)}
        return variant

    return declare


def check(
    variant: Variant,
    against: str | Variant | None = "reference",
    laws: Iterable[str] | None = None,
    examples: int = 100,
    seed: int = 0,
    kind: str | None = None,
    breaks: Iterable[str] = (),
    on_outcome: Callable[[Outcome], object] | None = None,
) -> Report:
    """Hold a variant to the laws about its kind.

    Args:
        variant: a function with leading arguments of a function of :mod:`recast_ref.reference`; it may leave some of the
            others out. It is given what it names: nothing goes into ``**kwargs``.
        against: what it should agree with: ``"reference"``, ``"fast"`` or ``"loops"`` for the function of the kind there,
            a function, or None.
        laws: names of the laws, in their order. Default: all that are about the kind.
        examples: how many to draw for each law; fewer where there are not as many different ones.
        seed: of the draws; the same seed draws the same examples.
        kind: the name of the reference function that it stands in for. Default: by its name, or its leading arguments.
        breaks: names of laws that it breaks on purpose, beside those that :func:`breaks` declared.
        on_outcome: called with each :class:`Outcome` as it comes.

    Returns:
        :class:`Report`.

    Raises:
        ValueError: there is no such law or kind, or the arguments of the variant are of no kind.
        ImportError: ``against="fast"`` and there is no fast path.
    """
    subject = subject_of(variant, against, kind)
    about = laws_of(subject.kind.name)
    _known(laws or (), about, f" about {subject.kind.name}")
    declared = {**getattr(variant, "breaks", {}), **dict.fromkeys(breaks, "")}
    _known(declared)
    report = Report(describe(variant), subject.kind.name, _name(against), [])
    for name in laws or about:
        if report.outcomes and report.outcomes[0].law == "form" and report.outcomes[0].status == BROKEN:
            outcome = Outcome(name, SILENT, message="its answers have not the right form")
        else:
            with _one_thread():
                outcome = _hold(LAWS[name], subject, examples, seed, declared, against)
        report.outcomes.append(outcome)
        if on_outcome:
            on_outcome(outcome)
    return report


def replay(
    law: str, variant: Variant, /, against: str | Variant | None = "reference", kind: str | None = None, **inputs: Any
) -> None:
    """Hold a variant to one law on the given inputs: the line under a counterexample.

    Raises:
        AssertionError: the law is broken.
    """
    _known([law])
    LAWS[law].run(subject_of(variant, against, kind), **inputs)


def subject_of(variant: Variant, against: str | Variant | None = "reference", kind: str | None = None) -> Subject:
    """The :class:`~.kinds.Subject` of a variant.

    Raises:
        ValueError, ImportError: as :func:`check`.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    subject = Subject(variant, kind)
    subject.against = standard(against, subject.kind.name) if isinstance(against, str) else against
    return subject


def standard(path, kind):
    """The function of a kind in ``"reference"``, ``"fast"`` or ``"loops"``."""
    if path not in ("reference", "fast", "loops"):
        raise ValueError(f"against: expected reference, fast, loops, a function or None, got {path!r}")
    module = {"reference": reference, "loops": loops}.get(path) or importlib.import_module(f"recast_ref.{path}")
    if kind != "token_advantages":
        return getattr(module, kind)

    def published_pair(responses, targets, weight=1.0, negative_weight=None, tie_break=None):
        """The pair of ``recast_from_sids``, with the advantage of each response at every one of its tokens."""
        picked = module.recast_from_sids(responses[:, :, None], targets[:, None], weight, negative_weight, tie_break)
        return picked.advantages[..., None].expand(responses.shape)

    return published_pair


@contextlib.contextmanager
def _one_thread():
    """Examples are so small that threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _known(names, among=None, about=""):
    among = LAWS if among is None else among
    for name in names:
        if name not in among:
            raise ValueError(f"laws: there is no law {name!r}{about}; there are {', '.join(among)}")


def _name(against):
    return against if isinstance(against, str) else "nothing" if against is None else describe(against)


def _hold(law, subject, examples, seed, declared, against):
    failed, count = {}, 0

    def one(inputs):
        nonlocal failed, count
        count += 1
        try:
            law.run(subject, **inputs)
        except LawBroken:
            failed = inputs
            raise

    try:
        if law.table:
            _each(one, law.table(subject.kind.name))
        else:
            _drawn(one, law.inputs(subject), examples, seed, shrink=law.name not in declared)
    except NotApplicable as why:
        return Outcome(law.name, SILENT, message=str(why))
    except (LawBroken, hypothesis.errors.Flaky) as error:
        message = str(error) if isinstance(error, LawBroken) else "answers differ from one call to the next"
        if law.name in declared:
            reason = declared[law.name]
            return Outcome(law.name, ON_PURPOSE, count, reason or message, failed)
        if not law.table:
            failed, error = _dropped(law, subject, failed, error)
        table = drawing.draw(subject, law, failed, error)
        line = drawing.line(subject, law, failed, against)
        return Outcome(law.name, BROKEN, count, message, failed, table, line)
    return Outcome(law.name, SPARED if law.name in declared else HOLDS, count)


def _dropped(law, subject, inputs, error):
    """The counterexample without the prompts, responses, SIDs, rows and tokens that it does not need.

    Hypothesis shrinks what it drew; a response is spread over several of its draws, and sometimes stays.
    """
    kind = subject.kind
    for axis in "QGMKBT":
        if not any(axis in axes and name in inputs for name, axes in kind.arguments.items()):
            continue
        for place in reversed(range(size(kind, inputs, axis))):
            rest = [i for i in range(size(kind, inputs, axis)) if i != place]
            if not rest:
                continue
            fewer = index(kind, inputs, axis, torch.tensor(rest))
            try:
                law.run(subject, **fewer)
            except LawBroken as still:
                if str(still) == str(error):  # and not that an order no longer fits, say
                    inputs, error = fewer, still
            except NotApplicable:
                pass
    return inputs, error


def _each(one, table):
    """A law with a table is not applicable only where none of its rows is."""
    reasons = []
    for inputs in table:
        try:
            one(inputs)
        except NotApplicable as reason:
            reasons.append(reason)
    if len(reasons) == len(table):
        raise reasons[0] if reasons else NotApplicable("there is no table for its kind")


def _drawn(one, inputs, examples, seed, shrink):
    phases = [hypothesis.Phase.generate] + [hypothesis.Phase.shrink] * shrink
    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
        phases=phases,
        report_multiple_bugs=False,
        print_blob=False,
    )
    hypothesis.seed(seed)(settings(hypothesis.given(inputs)(one)))()
