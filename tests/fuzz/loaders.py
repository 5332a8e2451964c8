"""Law: a damaged file of interactions loads to a world that is one, or ends in a DataError of one line that names the file."""

import gzip
import json
import resource
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from fuzz.bytes import damaged
from recast_ref.lab.reading import DataError, printable
from recast_ref.lab.worlds import HISTORY, leaks, load_world

ROOM = 1 << 30  # bytes that loading one of these small files may need


def _good():
    """``{(what --world is given, the file): bytes}``: a file that may be damaged, and all others by name."""
    rng = np.random.default_rng(0)
    inter = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + "".join(
        f"u{u}\ti{i}\t3\t{t}\n" for u in range(8) for t, i in enumerate(rng.integers(12, size=5))
    )
    index = {str(i): [f"<a_{i % 3}>", f"<b_{i % 2}>", f"<c_{i}>"] for i in range(8)}
    head = "user_id,history_item_id,item_id\n"
    return {
        "toy.inter": inter.encode(),
        "packed.inter.gz": gzip.compress(inter.encode(), mtime=0),
        "toys/Toys.index.json": json.dumps(index, indent=0).encode(),
        "toys/Toys_train.csv": (head + 'u1,"[0]",1\nu2,"[]",3\nu1,"[0, 1]",2\nu3,"[5]",6\n').encode(),
        "toys/Toys_valid.csv": (head + 'u1,"[0, 1, 2]",4\nu2,"[3]",4\n').encode(),
        "toys/Toys_test.csv": (head + 'u1,"[1, 2, 4]",3\nu2,"[3, 4]",5\n').encode(),
        "late/Toys.index.json": json.dumps(index).encode(),
        "late/Toys_valid.csv.gz": gzip.compress((head + 'u1,"[0]",1\nu1,"[0, 1]",2\n').encode(), mtime=0),
        "late/Toys_test.csv": (head + 'u1,"[0, 1, 2]",3\nu2,"[3, 4]",5\n').encode(),
    }


GOOD = _good()


def law(data):
    name = data.draw(st.sampled_from(list(GOOD)))
    with tempfile.TemporaryDirectory() as folder:
        for other, content in GOOD.items():
            path = Path(folder, other)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data.draw(damaged(content)) if other == name else content)
        where = Path(folder, name.split("/")[0])
        with _room():
            try:
                world = load_world(where)
            except DataError as error:
                assert str(where) in str(error) and len(printable(str(error))) < 2000, error
                return "refused"
        check(world)
        return "loaded"


def check(world):
    items, levels = world.sids.shape
    assert items > 0 and 1 <= levels <= 15 and world.sids.min() >= 0 and world.sids.max() < 1 << 16
    assert world.name.isprintable() and world.describe().isprintable() and all(map(str.isprintable, world.notes))
    assert 0 <= world.base_pairs <= len(world.train)
    for pairs in (world.train, world.valid, world.test):
        assert pairs.history.shape == (len(pairs), HISTORY) and pairs.user.shape == pairs.target.shape == (len(pairs),)
        assert all(array.dtype == np.int64 for array in vars(pairs).values())
        assert ((pairs.target >= 0) & (pairs.target < items)).all() and (pairs.user >= 0).all()
        assert ((pairs.history >= -1) & (pairs.history < items)).all()
        there = pairs.history >= 0
        assert (there[:, 1:] >= there[:, :-1]).all()  # padding is on the left
    assert not leaks(world.train, world.test).any() and not leaks(world.valid, world.test).any()


@contextmanager
def _room():
    """Let the process have so much more memory: beyond, MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
