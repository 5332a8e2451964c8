"""A RecBole ``.inter`` file, such as the ml-100k that lies inside RecBole's wheel. SIDs are made here.

Tab-separated, with a header such as ``user_id:token  item_id:token  rating:float  timestamp:float``. Every row counts as
an interaction, whatever its rating; the last item of each user is the test target (leave-one-out).
"""

import math
from pathlib import Path

import numpy as np

from .semantic_ids import residual_kmeans
from .worlds import DataError, World, split_last

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
    unseen = items - len({item for timeline in seen for item in timeline})
    return World(
        name=path.stem,
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
    """Per user, the item numbers in time order (file order among equal times), and the number of items."""
    events, users, items = [], {}, {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:1: not UTF-8 text: {error.reason}") from None
    header = [column.split(":")[0] for column in lines[0].split("\t")] if lines else []
    for column in ("user_id", "item_id", "timestamp"):
        if column not in header:
            raise DataError(f"{path}:1: expected a tab-separated column {column}, got {', '.join(header) or 'nothing'}")
    user_at, item_at, time_at = (header.index(column) for column in ("user_id", "item_id", "timestamp"))
    for number, line in enumerate(lines[1:], start=2):
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
            raise DataError(f"{path}:{number}: timestamp: expected a number, got {fields[time_at]!r}")
        user = users.setdefault(fields[user_at], len(users))
        events.append((user, time, items.setdefault(fields[item_at], len(items))))
    timelines = [[] for _ in users]
    for user, _, item in sorted(events, key=lambda event: event[:2]):
        timelines[user].append(item)
    return timelines, len(items)


def cooccurrence_vectors(timelines, items):
    """Truncated SVD of the cosine-normalised item-by-item co-occurrence counts: float ``(items, <= VECTOR)``."""
    from scipy.sparse import csr_matrix, diags
    from sklearn.decomposition import TruncatedSVD

    user = np.repeat(np.arange(len(timelines)), [len(t) for t in timelines])
    item = np.array([i for t in timelines for i in t], dtype=np.int64)
    seen = csr_matrix((np.ones(len(item)), (user, item)), shape=(len(timelines), items))
    seen.data[:] = 1.0  # a repeated purchase is one co-occurrence
    counts = seen.T @ seen
    scale = diags(1.0 / np.sqrt(np.maximum(counts.diagonal(), 1.0)))
    return TruncatedSVD(min(VECTOR, items - 1), random_state=0).fit_transform(scale @ counts @ scale)
