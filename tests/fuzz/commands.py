"""Law: whatever the arguments, the command ends with 0, 1 or 2, and with 2 it says why in one line. Nothing is trained or measured here."""

import contextlib
import functools
import io
import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from hypothesis import strategies as st

import recast_ref
from fuzz.loaders import GOOD
from recast_ref import cli
from recast_ref.lab import backend, console, synthetic
from recast_ref.lab.arms import ARMS
from recast_ref.lab.study import console as study_console
from recast_ref.testing import checking

WORD = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8
)  # what the system lets through
BYTES = st.binary(max_size=6).filter(lambda b: b"\0" not in b).map(os.fsdecode)  # and names that are no text
NUMBER = st.sampled_from(["0", "1", "2", "8", "-1", "3.5", "1e3", "100000000", "9" * 5000, "nan", "inf", "", " 2", "٣"])
PLACE = st.sampled_from(
    [
        *GOOD,
        *(
            "synthetic",
            "sythetic",
            "toys",
            "late",
            "broken.inter",
            "full",
            "pipe.inter",
            "/dev/zero",
            "/proc/no/such",
            ".",
            "",
            "/",
        ),
        *(
            "toy.inter/x",
            "a" * 5000,
            "toy.inter+wrong-30",
            "toy.inter+cold",
            "toy.inter+no",
            "books[bold red]x",
            "x\ny",
        ),
    ]
)
FUNCTION = st.sampled_from(
    [
        *(
            "recast_ref.reference:recast",
            "recast_ref.reference:repair",
            "recast_ref.reference:policy_loss",
            "os:getcwd",
            "os:environ",
        ),
        *(
            "builtins:print",
            "builtins:int",
            "no.such:f",
            "os",
            "os:",
            ":f",
            "a..b:f",
            "os:no.such",
            "torch:Tensor",
            "json:tool",
        ),
        *("recast_ref.lab.arms:ARMS", "functools:partial", "reference", "fast", "loops", "none", "quits:f", "breaks:f"),
    ]
)
ANY = WORD | BYTES | NUMBER | PLACE | FUNCTION
NAMES = st.lists(
    st.sampled_from([*ARMS, "map,wrong", "map", "budget", "permuting the group", "form", ",", "grop"]) | ANY,
    min_size=1,
    max_size=3,
)


def _option(name, values=None):
    return (
        st.just([name])
        if values is None
        else (values | ANY).map(lambda v: [name, *(v if isinstance(v, list) else [v])])
    )


OPTIONS = {
    "compare": [
        *(_option("--world", PLACE), _option("--arms", NAMES), _option("--group-size", NUMBER), _option("--seeds", NUMBER)),
        *(_option("--rollout", st.sampled_from(["sample", "beam"])), _option("--all-zero", NUMBER), _option("--out", PLACE)),
        *(_option("--backend", st.sampled_from(["auto", "reference", "fast"])), _option("--resume"), _option("--quick")),
    ],
    "study": [
        *(_option("--only", NAMES), _option("--list"), _option("--seeds", NUMBER), _option("--world", st.lists(PLACE, min_size=1, max_size=2))),
        *(_option("--out", PLACE), _option("--resume"), _option("--quick"), _option("--report", PLACE)),
    ],
    "check": [
        *(FUNCTION.map(lambda f: [f]), _option("--against", FUNCTION), _option("--kind", WORD), _option("--laws", NAMES)),
        *(_option("--examples", NUMBER), _option("--seed", NUMBER), _option("--list")),
    ],
    "bench": [_option("--repeats", NUMBER), _option("--device", st.sampled_from(["cpu", "cuda"])), _option("--out", PLACE)],
    "info": [],
    "explain": [],
}  # fmt: skip


@st.composite
def arguments(draw):
    command = draw(st.sampled_from(list(OPTIONS)))
    other = ANY.map(lambda word: [word])
    drawn = draw(
        st.lists(
            st.one_of(*OPTIONS[command], other)
            if draw(st.integers(0, 3)) == 0
            else st.one_of(*OPTIONS[command] or [other]),
            max_size=5,
        )
    )
    return [command, *(word for option in drawn for word in option)]


_synthetic = functools.lru_cache(synthetic.make)


def law(data):
    argv = data.draw(arguments())
    with tempfile.TemporaryDirectory() as folder, _inside(folder):
        _furnish(Path(folder))
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
        with _nothing_heavy(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = cli.main(argv)
            except SystemExit as exit_:
                code = exit_.code
        told = err.getvalue()
        assert code in (0, 1, 2), (argv, code)
        if code == 2:
            assert told.startswith("recast-ref: ") and told.count("\n") == len(told.splitlines()) == 1, (argv, told)
        assert "Traceback" not in told, (argv, told)
        return f"code {code}"


@contextlib.contextmanager
def _inside(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        with mock.patch.object(sys, "path", [*sys.path]):  # where check looks for modules
            yield
    finally:
        os.chdir(before)


def _furnish(folder):
    others = {
        "broken.inter": b"x",
        "full/file": b"x",
        "full/study.csv": b"a,b\n1,2\n",
        "quits.py": b"raise SystemExit(3)",
        "breaks.py": b"raise RuntimeError('two\\nlines')",
    }
    for name, content in {**GOOD, **others}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.inter")


@contextlib.contextmanager
def _nothing_heavy():
    """All that is checked is checked; what would train, measure or compile says that it was reached."""
    outcome = checking.Outcome("form", checking.HOLDS)
    bench = SimpleNamespace(bench=lambda *_, **__: {}, table=lambda _: "")
    with (
        mock.patch.object(console, "compare", lambda *_: 0),
        mock.patch.object(study_console, "study", lambda *_: 0),
        mock.patch.object(recast_ref, "bench", bench, create=True),
        mock.patch.object(recast_ref, "bench_cuda", bench, create=True),
        mock.patch.object(backend, "use", lambda _: None),
        mock.patch.object(synthetic, "make", _synthetic),
        mock.patch.object(checking, "_hold", lambda *_: outcome),
        mock.patch.object(cli, "_fast_path", lambda: ""),
    ):
        yield
