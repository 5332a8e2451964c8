"""``study.csv``: all that the figures and tables are made from, a row for each thing that was measured.

``kind`` says what a row is:

* ``run``: a run over the test prompts; ``tuned``: a run over the validation prompts, of any learning rate that was tried;
* ``mean``: a cell over its seeds, with intervals; ``difference``: a cell minus that of the arm ``reference``, on the same seeds and
  prompts;
* ``segment``: a cell of the part ``whom`` over the test prompts of one ``segment``, a quartile of some property, and the share ``repaired`` of its training groups that had no hit;
* ``point``: a cell after ``step`` steps, mean over its seeds: composition of groups, what it cost, and on curves validation metrics;
  ``seed point``: the same of each seed, for fine curves.

``prompts`` are those of a pass, ``users`` those of a made-up shop. Shares are fractions. A field that does not apply is empty.
"""

import csv
import io
from dataclasses import asdict

import numpy as np
import torch

from .. import checkpoints
from ..audit import segments
from ..reading import DataError, cut, lines
from . import worlds
from .bootstrap import interval
from .cells import Cell, Run, short
from .outcomes import METRICS

REFERENCES = ("base", "grpo", "sft-sqrt")
SETTINGS = tuple(Cell.__dataclass_fields__)
WORK = ("prompts", "users")  # of the scale
COMPOSITION = ("all_zero", "single_hit", "multi_hit")
COST = ("rollouts", "actor_tokens", "seconds")
COLUMNS = (
    *(
        "parts",
        "kind",
        *SETTINGS,
        *WORK,
        "learning_rate",
        "seed",
        "seeds",
        "prompts_counted",
        "reference",
        "segment",
        "step",
    ),
    *(f"{metric}{suffix}" for metric in METRICS for suffix in ("", " low", " high")),
    *(*COMPOSITION, "repaired", *COST, "base_updates", "cpu_seconds"),
)


def rows(parts, results):
    """The rows of all cells that are finished, as dicts.

    Args:
        parts: ``{name: (question, cells)}``.
        results: :class:`~recast_ref.lab.study.running.Results`.
    """
    in_parts = {}
    for name, (_, cells) in parts.items():
        for cell in cells:
            in_parts.setdefault(cell, []).append(name)
    finished = {}
    for cell, names in in_parts.items():
        rate, missing = results.chosen(cell)
        if rate is not None and not missing:
            finished[cell] = _Cell(cell, rate, names, results)
    for cell, found in finished.items():
        yield from found.rows()
        for reference in REFERENCES:
            other = finished.get(_with_arm(cell, reference, finished))
            if other is not None and other is not found and cell.arm != "popular":
                yield found.difference(other)


def _with_arm(cell, arm, finished):
    """The cell of another arm in the same place, whatever of its settings that arm has no use for."""
    same = [c for c in finished if c.arm == arm and (c.world, c.regime, c.group_size, c.width, c.curve) == (cell.world, cell.regime, cell.group_size, cell.width, cell.curve)]  # fmt: skip
    return min(same, key=lambda c: (c.passes, c.anchor != cell.anchor), default=None)


class _Cell:
    """A finished cell: its runs, read."""

    def __init__(self, cell, rate, parts, results):
        self.cell, self.rate, self.parts, self.results = cell, rate, parts, results
        seeds = 1 if cell.arm == "popular" else results.scale.seeds
        self.runs = [Run(cell, seed, rate) for seed in range(seeds)]
        self.found = [results.load(run) for run in self.runs]
        self.values = {
            m: torch.stack([f["test"][m] for f in self.found]).numpy() for m in METRICS if m in self.found[0]["test"]
        }
        self.shared = {
            "parts": " ".join(parts),
            **asdict(cell),
            "world": short(cell.world),
            "learning_rate": rate or None,
        }
        self.shared |= {name: getattr(results.scale, name) for name in WORK}

    def rows(self):
        yield from self._runs()
        yield {**self.shared, "kind": "mean", **self._size(), **_with_intervals(self.values), **self._end()}
        if "whom" in self.parts:
            yield from self._segments()
        yield from self._points()

    def difference(self, other):
        values = {m: self.values[m] - other.values[m] for m in self.values if m in other.values}
        return {
            **self.shared,
            "kind": "difference",
            "reference": other.cell.arm,
            **self._size(),
            **_with_intervals(values),
        }

    def _size(self):
        return {"seeds": len(self.runs), "prompts_counted": next(iter(self.values.values())).shape[1]}

    def _end(self):
        """Composition of the groups and cost at the end, means over the seeds."""
        return _mean_of([found["curve"][-1] for found in self.found if found["curve"]], (*COMPOSITION, *COST))

    def _runs(self):
        for run, found in zip(self.runs, self.found):
            base = {"base_updates": found["base"]["updates"]} if found["base"] else {}
            means = {m: float(values.mean()) for m, values in found["test"].items()}
            end = _mean_of(found["curve"][-1:], (*COMPOSITION, *COST))
            yield {
                **self.shared,
                "kind": "run",
                "seed": run.seed,
                **means,
                **end,
                **base,
                "cpu_seconds": found["cpu_seconds"],
            }
        for run in self._tried():
            found = self.results.load(run)
            if "failed" not in found:
                means = {m: float(values.mean()) for m, values in found["valid"].items()}
                yield {**self.shared, "kind": "tuned", "learning_rate": run.learning_rate, "seed": run.seed, **means}

    def _tried(self):
        scale = self.results.scale
        rates = sorted({*scale.rates, *scale.more_rates}) if self.cell.trains else ()
        runs = [Run(self.cell, seed, rate) for rate in rates for seed in range(scale.tuning_seeds)]
        return [run for run in runs if self.results.score(run) is not None]

    def _segments(self):
        world = worlds.make(self.cell.world, self.results.scale.users)
        size = self._size()["prompts_counted"]
        for name, test in world.test.segments.items():
            found = quartiles(world.rl.segments[name], test[:size])
            if len(found) == 1:
                continue  # where all are alike, nothing is told apart
            for label, in_train, in_test in found:
                if in_test.any():
                    yield {
                        **self.shared,
                        "kind": "segment",
                        "segment": f"{name} {label}",
                        "seeds": len(self.runs),
                        "prompts_counted": int(in_test.sum()),
                        **_with_intervals({m: v[:, in_test] for m, v in self.values.items()}),
                        "repaired": self._repaired(in_train),
                    }

    def _repaired(self, inside):
        shares = []
        for found in self.found:
            if found["rows"] is not None:
                chosen = torch.from_numpy(inside)[found["rows"]]
                if chosen.any():
                    shares.append(float(found["all_zero"][chosen].float().mean()))
        return float(np.mean(shares)) if shares else None

    def _points(self):
        for points in zip(*(found["curve"] for found in self.found)):
            means = _mean_of(points, (*METRICS, *COMPOSITION, *COST))
            yield {**self.shared, "kind": "point", "step": points[0]["step"], "seeds": len(self.runs), **means}
            for run, point in zip(self.runs, points):
                if self.cell.curve == "fine" and METRICS[0] in point:
                    quality = _mean_of([point], (*METRICS, "rollouts"))
                    yield {**self.shared, "kind": "seed point", "step": point["step"], "seed": run.seed, **quality}


def quartiles(train, test):
    """Quartiles of the training values, and which values lie in each: ``[(label, bool (N,), bool (M,)), ...]``.

    A test value lies in the last quartile that begins at it or below, and in the first if there is none, so that each lies in one.
    """
    quartile, labels = segments(train)
    begins = np.array([train[quartile == q].min() for q in range(len(labels))])
    place = (np.searchsorted(begins, test, side="right") - 1).clip(min=0)
    return [(label, quartile == q, place == q) for q, label in enumerate(labels)]


def _mean_of(dicts, names):
    return {
        n: float(np.mean([d[n] for d in dicts])) for n in names if dicts and all(d.get(n) is not None for d in dicts)
    }


def _with_intervals(values):
    result = {}
    for metric, matrix in values.items():
        low, high = interval(matrix)
        result |= {metric: float(matrix.mean()), f"{metric} low": low, f"{metric} high": high}
    return result


def save(path, rows):
    """Write the rows. Numbers have six digits."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    checkpoints.save_text(path, buffer.getvalue())


def read(path):
    """The rows of a file: numbers as numbers, empty fields left out.

    Raises:
        DataError: the file has other columns, or is damaged; the message names the file and the line.
    """
    reader = csv.reader(lines(path), strict=True)
    try:
        header = next(reader, [])
        if tuple(header) != COLUMNS:
            missing = [name for name in COLUMNS if name not in header]
            raise DataError(
                f"{path}: not a study.csv of this version{f', it has no column {missing[0]}' if missing else ''}"
            )
        rows = []
        for row in reader:
            if len(row) != len(COLUMNS):
                raise DataError(f"{path}:{reader.line_num}: expected {len(COLUMNS)} fields, got {len(row)}")
            named = zip(COLUMNS, row)
            rows.append({n: _typed(n, text) for n, text in named if text != "" or n == "curve"})
        return rows
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not a readable CSV file: {error}") from None
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}:{reader.line_num}: expected a number: {cut(str(error))}") from None


def merge(tables):
    """The rows of several files as if of one, so that parts can be run on several evenings: of a cell that more than one has, the
    rows of the first, and of each file its differences."""
    seen, merged = {}, []
    for number, rows in enumerate(tables):
        for row in rows:
            if seen.setdefault(tuple(row[name] for name in SETTINGS), number) == number:
                merged.append(row)
    return merged


TEXT = {"parts", "kind", "world", "regime", "arm", "anchor", "curve", "reference", "segment"}
WHOLE = {"group_size", "width", "passes", "prompts", "users", "seed", "seeds", "prompts_counted", "step"}


def _typed(name, text):
    if name in TEXT:
        return text
    return int(text) if name in WHOLE else float(text)
