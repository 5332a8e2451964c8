"""Files that are either the old version or the new one, never half of it, and that say whose they are.

A checkpoint is a line with the SHA-256 of what follows, then ``torch.save`` of ``{"of": ..., "state": ...}``. torch's own format has no
checksum that is looked at: with a byte changed on the disk it loads other numbers.
"""

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path

import torch

FORMAT = 1
_HEADER = re.compile(rb"recast-ref checkpoint %d ([0-9a-f]{64})\n" % FORMAT)
_HEADER_SIZE = len("recast-ref checkpoint 1 ") + 64 + 1
_HALF = ".half"  # ends the name of a file that is being written


class CheckpointError(ValueError):
    """A file of a run cannot be used. The message names it and says what to do."""


def replace(path, write):
    """Let ``write(binary file)`` fill a temporary file beside ``path``, flush it to disk, then put it in its place.

    Raises:
        OSError: it cannot be written, with the name of the file: a full disk, for example. The old version is still there.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_HALF)
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes private files; results are as readable as any other
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def is_half_written(path):
    """Whether it is the temporary file of a process that was killed while it saved (or that is saving now)."""
    return path.name.startswith(".") and path.suffix == _HALF


def clean(folder):
    """Remove what a killed process left half written. Only for who holds the folder, see :mod:`~recast_ref.lab.locks`."""
    for path in Path(folder).glob(f".*{_HALF}"):
        path.unlink(missing_ok=True)


def save(path, state, of):
    """A checkpoint of tensors, numbers, strings, lists and dicts.

    Args:
        of: whose it is, a flat dict of plain values; :func:`load` has to be told the same.
    """

    def write(file):
        file.write(b"\0" * _HEADER_SIZE)
        hashed = _Hashed(file)
        try:
            torch.save({"of": of, "state": state}, hashed)
        except RuntimeError:
            if hashed.error is None:
                raise
            raise hashed.error from None  # torch tells of its own position in the file instead
        file.seek(0)
        file.write(b"recast-ref checkpoint %d %s\n" % (FORMAT, hashed.digest.hexdigest().encode()))

    replace(path, write)


class _Hashed:
    """Writes to a file and takes the SHA-256 of it. Keeps the error of a write that failed."""

    def __init__(self, file):
        self.file, self.digest, self.error = file, hashlib.sha256(), None

    def write(self, data):
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        return len(data)

    def flush(self):
        self.file.flush()


def load(path, of):
    """What :func:`save` wrote. ``weights_only``: nothing in the file is executed.

    Raises:
        CheckpointError: the file is damaged, of another version, or not ``of`` this.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        header = _HEADER.fullmatch(file.read(_HEADER_SIZE))
        if not header or header[1].decode() != _sha256(file):
            raise CheckpointError(f"{path} is damaged or of another version: delete it, and --resume makes it anew")
        file.seek(_HEADER_SIZE)
        found = torch.load(file, weights_only=True)
    if found["of"] != of:
        names = [name for name in {**of, **found["of"]} if of.get(name) != found["of"].get(name)]
        told = ", ".join(f"{name} = {found['of'].get(name)}, not {of.get(name)}" for name in names)
        raise CheckpointError(f"{path} is of another run ({told}): delete it, and --resume makes it anew")
    return found["state"]


def _sha256(file):
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def digest(data):
    """A short name for plain data, such as all settings of a run: the same for the same data, and for no other."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def save_text(path, text):
    """As UTF-8. What is no text, a byte in the name of a file for example, is written as an escape."""
    replace(path, lambda file: file.write(text.encode("utf-8", errors="backslashreplace")))


def save_json(path, data):
    save_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def load_json(path):
    """The object in a file that :func:`save_json` wrote.

    Raises:
        CheckpointError: it is not UTF-8, not JSON, or not an object.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (
        ValueError,
        RecursionError,
    ):  # of ValueError are UnicodeDecodeError, JSONDecodeError, and numbers too long for int
        data = None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is damaged, no JSON object is in it: start again in a new folder")
    return data
