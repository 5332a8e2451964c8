"""The law of the loaders under atheris, which keeps what reached a new branch and mutates it. Where it is: ``pip install atheris``."""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["recast_ref.lab", "json", "csv"]):
    from fuzz import loaders

NAMES = list(loaders.GOOD)


def fuzz(seconds, seed):
    """Until the seconds are over, or a fault is found. Ends the process."""
    corpus = Path(tempfile.mkdtemp())
    for i, name in enumerate(NAMES):
        (corpus / str(i)).write_bytes(bytes([i]) + loaders.GOOD[name])
    limits = [
        f"-max_total_time={seconds:.0f}",
        f"-seed={seed + 1}",
        "-max_len=4096",
        "-timeout=60",
        "-rss_limit_mb=8192",
    ]
    atheris.Setup([sys.argv[0], *limits, str(corpus)], _one)
    atheris.Fuzz()


def _one(data):
    if data:
        loaders.hold(NAMES[data[0] % len(NAMES)], data[1:])
