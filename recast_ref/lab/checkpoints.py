"""Files that are either the old version or the new one, never half of it."""

import json
import os
import tempfile
from pathlib import Path

import torch


def replace(path, write):
    """Let ``write(binary file)`` fill a temporary file beside ``path``, flush it to disk, then put it in its place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
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
        os.unlink(temporary)
        raise


def save(path, state):
    """A checkpoint of tensors, numbers, strings, lists and dicts."""
    replace(path, lambda file: torch.save(state, file))


def load(path):
    """What :func:`save` wrote. ``weights_only``: nothing in the file is executed."""
    return torch.load(path, weights_only=True)


def save_text(path, text):
    replace(path, lambda file: file.write(text.encode("utf-8")))


def save_json(path, data):
    save_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def load_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))
