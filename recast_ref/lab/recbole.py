"""A RecBole ``.inter`` file, such as the ml-100k that lies inside RecBole's wheel, plain or gzipped. SIDs are made here.

Tab-separated, with a header such as ``user_id:token  item_id:token  rating:float  timestamp:float``. Every row counts as
an interaction, whatever its rating; the last item of each user is the test target (leave-one-out).
"""

import math
from array import array
from pathlib import Path

import numpy as np

from .reading import DataError, cut, lines, printable
from .semantic_ids import residual_kmeans
from .worlds import World, split_last

INTER = ".inter"
VECTOR, LEVELS, CODES = 32, 3, 64
BASE_PAIRS = 1500


def load(path):
    """The world in this file. Items get SIDs by residual k-means over co-occurrence vectors of the training pairs alone.

    Raises:
        DataError: the file is malformed; the message names the file, the line and what is wrong.
    """
    path = Path(path)
    timelines, items = read(path)
    train, valid, test, dropped = split_last(timelines)
    if not len(train):
        raise DataError(f"{path}:2: expected users with at least four interactions, not all of one item, found none")
    seen = [timeline[:-2] for timeline in timelines]
    sids = residual_kmeans(cooccurrence_vectors(seen, items), LEVELS, CODES)
    unseen = items - len(np.unique(np.concatenate(seen)))
    return World(
        name=printable(path.name.removesuffix(".gz").removesuffix(INTER)),
        sids=sids,
        train=train,
        valid=valid,
        test=test,
        base_pairs=min(BASE_PAIRS, len(train) // 2),
        notes=[
            f"SIDs: {LEVELS} rounds of k-means with {CODES} clusters over {VECTOR} SVD dimensions of item co-occurrence",
            f"{unseen:,} items are only ever a validation or test target, so their vectors are zero and their SIDs collide",
            f"{dropped:,} pairs dropped because they hold a test target of the same user",
        ],
    )


def read(path):
    """Per user, the item numbers in time order (file order among equal times), int64 arrays, and the number of items."""
    users, items = {}, {}
    event_user, event_item, event_time = array("q"), array("q"), array("d")
    rows = (line.removesuffix("\n").removesuffix("\r") for line in lines(path))
    header = [column.split(":")[0] for column in next(rows, "").split("\t")]
    for column in ("user_id", "item_id", "timestamp"):
        if header.count(column) != 1:
            got = cut(", ".join(header), 200) or "nothing"
            one = "one" if column in header else "a"
            raise DataError(f"{path}:1: expected {one} tab-separated column {column}, got {got}")
    user_at, item_at, time_at = (header.index(column) for column in ("user_id", "item_id", "timestamp"))
    for number, line in enumerate(rows, start=2):
        if not line:
            continue
        fields = line.split("\t")
        if len(fields) != len(header):
            raise DataError(f"{path}:{number}: expected {len(header)} tab-separated fields, got {len(fields)}")
        try:
            time = float(fields[time_at])
        except ValueError:
            time = math.nan
        if not math.isfinite(time):
            raise DataError(f"{path}:{number}: timestamp: expected a number, got {cut(repr(fields[time_at]))}")
        event_user.append(users.setdefault(fields[user_at], len(users)))
        event_item.append(items.setdefault(fields[item_at], len(items)))
        event_time.append(time)
    user = np.asarray(event_user)
    order = np.lexsort((np.asarray(event_time), user))  # by user, then by time, then as in the file
    ends = np.bincount(user, minlength=1).cumsum()
    return np.split(np.asarray(event_item)[order], ends[:-1]), len(items)


def cooccurrence_vectors(timelines, items):
    """Truncated SVD of the cosine-normalised item-by-item co-occurrence counts: float ``(items, <= VECTOR)``.

    The counts are ``B.T @ B`` of the user-by-item matrix ``B``, and never made: one user with n items alone has n * n of them. Their
    singular vectors are B's right ones, their singular values the squares of B's.
    """
    from scipy.sparse import csr_matrix, diags
    from sklearn.utils.extmath import randomized_svd

    user = np.repeat(np.arange(len(timelines)), [len(t) for t in timelines])
    item = np.concatenate(timelines)
    seen = csr_matrix((np.ones(len(item)), (user, item)), shape=(len(timelines), items))
    seen.data[:] = 1.0  # a repeated purchase is one co-occurrence
    users_of = np.bincount(seen.indices, minlength=items)  # of each item
    scaled = seen @ diags(1.0 / np.sqrt(np.maximum(users_of, 1.0)))
    _, values, vectors = randomized_svd(scaled, min(VECTOR, items - 1), n_iter=11, random_state=0)
    return vectors.T * values**2
