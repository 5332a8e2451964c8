"""Hold a variant to the laws, and say what it breaks."""

import contextlib
import importlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import hypothesis
import torch

from .. import reference
from .._outcomes import BROKEN, HOLDS, ON_PURPOSE, SILENT, SPARED, Outcome, Report
from . import drawing, loops, state
from .kinds import KINDS, LawBroken, NotApplicable, Subject, describe
from .laws import LAWS, STATE_LAW, index, laws_of, size

Variant = Callable[..., Any]
V = TypeVar("V", bound=Variant)


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
    held = Check(variant, against, laws, examples, seed, kind, breaks)
    return Report(*held.names).collect(held.laws, held.hold, on_outcome)


class Check:
    """A variant and the laws it is to be held to; arguments and errors as those of :func:`check`.

    Attributes:
        laws: their names, in their order.
        names: of the variant, of its kind, and of what it is compared with.
        on_example: called with a :class:`~.laws.Law` and its inputs before each example, and with the
            :class:`~.kinds.LawBroken` too if it is a counterexample.
    """

    def __init__(
        self,
        variant: Variant,
        against: str | Variant | None = "reference",
        laws: Iterable[str] | None = None,
        examples: int = 100,
        seed: int = 0,
        kind: str | None = None,
        breaks: Iterable[str] = (),
    ) -> None:
        self.subject = subject_of(variant, against, kind)
        about = laws_of(self.subject.kind.name)
        _known(laws or (), about, f" about {self.subject.kind.name}")
        self.laws = list(laws or about)
        self.declared = {**getattr(variant, "breaks", {}), **dict.fromkeys(breaks, "")}
        _known(self.declared)
        self.names = describe(variant), self.subject.kind.name, _name(against)
        self.against, self.examples, self.seed = against, examples, seed
        self.on_example = None
        self.subject.spares_state = STATE_LAW in self.laws or STATE_LAW in self.declared

    def line(self, law, inputs):
        """A line of Python that replays a law on the inputs."""
        return drawing.line(self.subject, law, inputs, self.against)

    def hold(self, name):
        """Hold the variant to the law of that name; returns the :class:`Outcome`."""
        with _one_thread(), state.kept([]):  # drawing the counterexample calls the variant again
            return self._hold(LAWS[name])

    def _hold(self, law):
        failed, count = {}, 0

        def one(inputs):
            nonlocal failed, count
            count += 1
            try:
                self._run(law, inputs)
            except LawBroken as error:
                failed = inputs
                if self.on_example:
                    self.on_example(law, inputs, error)
                raise

        declared = law.name in self.declared
        try:
            if law.table:
                _each(one, law.table(self.subject.kind.name))
            else:
                _drawn(one, law.inputs(self.subject), self.examples, self.seed, shrink=not declared)
        except NotApplicable as reason:
            return Outcome(law.name, SILENT, message=str(reason))
        except (LawBroken, hypothesis.errors.Flaky) as error:
            message = str(error) if isinstance(error, LawBroken) else "answers differ from one call to the next"
            if declared:
                return Outcome(law.name, ON_PURPOSE, count, self.declared[law.name] or message, failed)
            if not law.table:
                failed, error = self._dropped(law, failed, error)
            table = drawing.draw(self.subject, law, failed, error)
            return Outcome(law.name, BROKEN, count, message, failed, table, self.line(law, failed))
        return Outcome(law.name, SPARED if declared else HOLDS, count)

    def _run(self, law, inputs):
        if self.on_example:
            self.on_example(law, inputs)
        law.run(self.subject, **inputs)

    def _dropped(self, law, inputs, error):
        """The counterexample without the prompts, responses, SIDs, rows and tokens that it does not need.

        Hypothesis shrinks what it drew; a response is spread over several of its draws, and sometimes stays.
        """
        kind = self.subject.kind
        for axis in "QGMKBT":
            if not any(axis in axes and name in inputs for name, axes in kind.arguments.items()):
                continue
            for place in reversed(range(size(kind, inputs, axis))):
                rest = [i for i in range(size(kind, inputs, axis)) if i != place]
                if not rest:
                    continue
                fewer = index(kind, inputs, axis, torch.tensor(rest))
                try:
                    self._run(law, fewer)
                except LawBroken as still:
                    if str(still) == str(error):  # and not that an order no longer fits, say
                        inputs, error = fewer, still
                except NotApplicable:
                    pass
        return inputs, error


def replay(
    law: str, variant: Variant, /, against: str | Variant | None = "reference", kind: str | None = None, **inputs: Any
) -> None:
    """Hold a variant to one law on the given inputs: the line under a counterexample.

    Raises:
        AssertionError: the law is broken.
    """
    _known([law])
    with _one_thread():
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
