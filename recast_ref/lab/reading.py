"""Data files as text: UTF-8, with a BOM or without, plain or gzipped (``.gz``)."""

import codecs
import gzip
import os
import stat
import zlib
from pathlib import Path

LONGEST_LINE = 1 << 24  # bytes
LARGEST_TEXT = 1 << 30  # bytes of a file that is read whole


class DataError(ValueError):
    """A data file is not what it should be. The message starts with ``file:line:``, or ``file:`` where no line is meant."""


def lines(path):
    r"""Yield the lines of a file, each with its end. Only ``\n`` ends a line: an id may hold whatever else Unicode calls a line break.

    Raises:
        DataError: it is not a regular file (a pipe would be waited for, a device never ends), not UTF-8, cut, or a line is longer
            than 16 MB.
        OSError: it cannot be read.
    """
    number = 0
    try:
        with _open(path) as file:
            while raw := file.readline(LONGEST_LINE):
                number += 1
                if not raw.endswith(b"\n"):
                    if len(raw) == LONGEST_LINE:
                        raise DataError(f"{path}:{number}: expected lines of at most {LONGEST_LINE:,} bytes")
                    raise DataError(
                        f"{path}:{number}: the file ends inside this line: was it cut? (If it is whole, add a newline.)"
                    )
                yield (raw if number > 1 else raw.removeprefix(codecs.BOM_UTF8)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number}: not UTF-8 text: {error.reason}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}:{number + 1}: not a whole gzip file: {error}") from None


def text(path):
    """All of a file. Errors as for :func:`lines`, and DataError where it is larger than 1 GB."""
    with _open(path) as file:
        if os.stat(path).st_size > LARGEST_TEXT:
            raise DataError(f"{path}: expected a file of at most {LARGEST_TEXT:,} bytes")
        raw = file.read().removeprefix(codecs.BOM_UTF8)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 text: {error.reason}") from None


def _open(path):
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise DataError(f"{path}: expected a regular file")
    return gzip.open(path, "rb") if Path(path).suffix == ".gz" else open(path, "rb")


def printable(text):
    r"""The text with control characters and bytes that are no text escaped, ``\n`` for a newline: safe to print, and one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cut(text, length=80):
    """The text, or its beginning where it is longer."""
    return text if len(text) <= length else text[: length - 3] + "..."
