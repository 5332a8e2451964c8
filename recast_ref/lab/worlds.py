"""Worlds: who interacted with what, split into training, validation and test pairs of (history, next item)."""

from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .reading import DataError
from .semantic_ids import collisions

HISTORY = 10  # a prompt is the user's last 10 items


@dataclass(frozen=True)
class Pairs:
    """Prompts and their targets."""

    user: np.ndarray  # int64 (N,)
    history: np.ndarray  # int64 (N, HISTORY): item numbers, oldest first, -1 on the left where the history is shorter
    target: np.ndarray  # int64 (N,): the next item

    @classmethod
    def of(cls, rows):
        """From an iterable of ``(user, items before, item)``; only the last ``HISTORY`` items before are kept."""
        user, history, target = array("q"), array("q"), array("q")
        for who, before, item in rows:
            before = before[-HISTORY:]
            user.append(who)
            history.extend([-1] * (HISTORY - len(before)))
            history.extend(before)
            target.append(item)
        return cls(np.asarray(user), np.asarray(history).reshape(-1, HISTORY), np.asarray(target))

    def __len__(self):
        return len(self.user)

    def __getitem__(self, index):
        return Pairs(self.user[index], self.history[index], self.target[index])


@dataclass(frozen=True)
class World:
    """A catalogue with SIDs and the split interactions.

    Raises ``AssertionError`` when made if a training or validation target is one of that user's test targets.
    """

    name: str
    sids: np.ndarray  # int64 (items, L)
    train: Pairs
    valid: Pairs
    test: Pairs
    base_pairs: int  # how many training pairs the base policy sees: few, so that hits are sparse as in the paper
    notes: list = field(default_factory=list)  # what a reader should know about how it was made

    def __post_init__(self):
        for split in ("train", "valid"):
            leaked = leaks(getattr(self, split), self.test).sum()
            if leaked:
                raise AssertionError(f"{self.name}: {leaked} {split} pairs have a target of the same user's test rows")

    def state(self):
        """All of it as tensors and plain values, for :mod:`~recast_ref.lab.checkpoints`."""
        splits = {
            split: {name: torch.from_numpy(array) for name, array in vars(getattr(self, split)).items()}
            for split in ("train", "valid", "test")
        }
        return {**vars(self), **splits, "sids": torch.from_numpy(self.sids)}

    @classmethod
    def from_state(cls, state):
        """The world that :meth:`state` was taken of."""
        splits = {
            split: Pairs(**{name: tensor.numpy() for name, tensor in state[split].items()})
            for split in ("train", "valid", "test")
        }
        return cls(**{**state, **splits, "sids": state["sids"].numpy()})

    def describe(self):
        """One line for people."""
        shared = collisions(self.sids)
        return (
            f"{self.name}: {len(self.sids):,} items as {self.sids.shape[1]} codes ({shared:,} share their SID with "
            f"another item), {len(self.train):,} training, {len(self.valid):,} validation, {len(self.test):,} test pairs"
        )


def as_sids(world, pairs):
    """Histories int64 ``(N, HISTORY, L)``, -1 where they are shorter, and targets ``(N, L)``, as tensors of SIDs."""
    sids = torch.from_numpy(world.sids)
    history = torch.from_numpy(pairs.history)
    return torch.where(history[..., None] >= 0, sids[history], -1), sids[torch.from_numpy(pairs.target)]


def leaks(pairs, test):
    """Which pairs have a target that is among the same user's test targets: bool ``(N,)``."""
    return _among(pairs.user, pairs.target, test)


def _among(user, target, test):
    items = 1 + max((int(t.max()) for t in (target, test.target) if len(t)), default=0)
    return np.isin(user * items + target, test.user * items + test.target)


def split_last(timelines):
    """Leave-one-out: each user's last item is the test target, the one before it the validation target, and every
    earlier item that has a history is a training target. Pairs that would leak a test target are dropped.

    Args:
        timelines: per user, a list or array of item numbers, oldest first.

    Returns:
        ``train, valid, test, dropped``: three :class:`Pairs` and the number of pairs dropped.
    """
    items = np.concatenate([np.empty(0, dtype=np.int64), *(np.asarray(t, dtype=np.int64) for t in timelines)])
    lengths = np.array([len(timeline) for timeline in timelines], dtype=np.int64)
    user = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(items)) - np.repeat(lengths.cumsum() - lengths, lengths)  # in its timeline
    left = np.repeat(lengths, lengths) - place  # 1 for the last of its timeline

    def pairs(targets):
        """Those with their targets at these places of ``items``."""
        history = np.full((len(targets), HISTORY), -1, dtype=np.int64)
        for back in range(1, HISTORY + 1):
            there = place[targets] >= back
            history[there, -back] = items[targets[there] - back]
        return Pairs(user[targets], history, items[targets])

    test = pairs(np.flatnonzero((place > 0) & (left == 1)))
    earlier = {"train": np.flatnonzero((place > 0) & (left > 2)), "valid": np.flatnonzero((place > 0) & (left == 2))}
    # What leaks is dropped before its history is made: that is where the memory goes.
    kept = {part: rows[~_among(user[rows], items[rows], test)] for part, rows in earlier.items()}
    dropped = sum(len(earlier[part]) - len(kept[part]) for part in earlier)
    return pairs(kept["train"]), pairs(kept["valid"]), test, dropped


def load_world(where):
    """``"synthetic"``, an ``*.index.json`` file in MiniOneRec's format or a folder with one, or a RecBole ``.inter`` file, which may be
    gzipped.

    Raises:
        FileNotFoundError: no such path.
        DataError: the files are not in the format.
    """
    from . import minionerec, recbole, synthetic

    if where == "synthetic":
        return synthetic.make()
    path = Path(where)
    if not where or "\0" in str(where) or not path.exists():
        raise FileNotFoundError(
            f"no world at {where!r}: expected 'synthetic', an *.index.json file, a folder with one, or a .inter file"
        )
    if path.is_dir() or path.name.endswith(minionerec.INDEX):
        return minionerec.load(path)
    if path.name.endswith((recbole.INTER, f"{recbole.INTER}.gz")):
        return recbole.load(path)
    raise DataError(f"{where}: expected an *.index.json file, a folder with one, or a RecBole .inter file")
