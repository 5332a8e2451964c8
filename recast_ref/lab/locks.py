"""One run at a time in a folder: two would each remove what the other is writing."""

import fcntl
import os
import socket
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from . import checkpoints

NAME = ".lock"


class Held(ValueError):
    """Another process works in the folder. The message says which."""


@contextmanager
def hold(folder):
    """Hold the folder, made if missing, and remove what a killed holder left half written there.

    The lock is the operating system's (``flock``): it is let go when its process ends, however it ends. The file stays.

    Raises:
        Held: another process, or this one, holds it already.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / NAME, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            raise Held(f"--out {folder} is in use by {holder}: wait for its end, or choose another folder") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}")
        file.flush()
        checkpoints.clean(folder)
        yield


def is_new(folder):
    """Whether nothing is in the folder, or only what a run leaves that was killed before it began. It need not exist."""
    folder = Path(folder)
    return not folder.exists() or all(p.name == NAME or checkpoints.is_half_written(p) for p in folder.iterdir())
