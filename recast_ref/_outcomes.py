"""What became of each law, in words. Without torch, so that ``recast-ref check`` can print it before torch is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

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
        line = f"{heading(self.law)}{self.status}"
        if self.status == HOLDS:
            return f"{line}, {self.examples} examples"
        if self.status == SPARED:
            return f"{line}: declared broken, but no counterexample in {self.examples} examples"
        if self.status == BROKEN:
            return "\n".join([f"{line}: {self.message}", *indent(f"{self.table}\n{self.line}")])
        return f"{line}: {self.message}"


@dataclass
class Report:
    """The outcomes of :func:`check`; ``str(report)`` has a line for each, and the counterexamples."""

    variant: str
    kind: str
    against: str
    outcomes: list[Outcome] = field(default_factory=list)

    def collect(
        self,
        laws: Iterable[str],
        hold: Callable[[str], Outcome],
        on_outcome: Callable[[Outcome], object] | None = None,
    ) -> Report:
        """``hold`` one law after the other, by name; without the right form of answers no other has anything to say."""
        for name in laws:
            first = self.outcomes[0] if self.outcomes else None
            if first and first.law == "form" and first.status == BROKEN:
                outcome = Outcome(name, SILENT, message="its answers have not the right form")
            else:
                outcome = hold(name)
            self.outcomes.append(outcome)
            if on_outcome:
                on_outcome(outcome)
        return self

    @property
    def ok(self) -> bool:
        """Whether a law said something, and none is broken but those that are so on purpose."""
        statuses = {outcome.status for outcome in self.outcomes}
        return BROKEN not in statuses and bool(statuses - {SILENT})

    def __getitem__(self, law: str) -> Outcome:
        """The outcome of a law, by name."""
        return next(outcome for outcome in self.outcomes if outcome.law == law)

    def assert_holds(self) -> None:
        """Raise ``AssertionError`` with the report if it is not ``ok``."""
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
        nothing = ": nothing was checked" if set(counts) <= {SILENT} else ""
        return f"{self.variant} as {self.kind}, against {self.against}: {counted}{nothing}"


def heading(law):
    """What the line of a law begins with."""
    return f"{law:<28} "


def indent(text):
    """The lines of a text, set in by four spaces, without what is empty."""
    return ["    " + line for line in text.splitlines() if line.strip()]


def first_line(error):
    """An exception in one line of words, whatever its ``__str__`` does."""
    try:
        words = str(error).strip().splitlines()
    except KeyboardInterrupt:
        raise
    except BaseException:
        words = ["(its message cannot be read)"]
    return f"raised {type(error).__name__}" + (f": {words[0]}" if words else "")
