"""Worlds: who interacted with what, split into training, validation and test pairs of (history, next item)."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .semantic_ids import collisions

HISTORY = 10  # a prompt is the user's last 10 items


class DataError(ValueError):
    """A data file is not what it should be. The message starts with ``file:line:``."""


@dataclass(frozen=True)
class Pairs:
    """Prompts and their targets."""

    user: np.ndarray  # int64 (N,)
    history: np.ndarray  # int64 (N, HISTORY): item numbers, oldest first, -1 on the left where the history is shorter
    target: np.ndarray  # int64 (N,): the next item

    @classmethod
    def of(cls, rows):
        """From ``(user, items before, item)`` triples; only the last ``HISTORY`` items before are kept."""
        history = np.full((len(rows), HISTORY), -1, dtype=np.int64)
        for i, (_, before, _) in enumerate(rows):
            before = before[-HISTORY:]
            if before:
                history[i, -len(before) :] = before
        return cls(
            np.array([row[0] for row in rows], dtype=np.int64),
            history,
            np.array([row[2] for row in rows], dtype=np.int64),
        )

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
    items = 1 + max((int(p.target.max()) for p in (pairs, test) if len(p)), default=0)
    return np.isin(pairs.user * items + pairs.target, test.user * items + test.target)


def split_last(timelines):
    """Leave-one-out: each user's last item is the test target, the one before it the validation target, and every
    earlier item that has a history is a training target. Pairs that would leak a test target are dropped.

    Args:
        timelines: per user, a list of item numbers, oldest first.

    Returns:
        ``train, valid, test, dropped``: three :class:`Pairs` and the number of pairs dropped.
    """
    rows = {"train": [], "valid": [], "test": []}
    for user, items in enumerate(timelines):
        for i in range(1, len(items)):
            part = {1: "test", 2: "valid"}.get(len(items) - i, "train")
            rows[part].append((user, items[:i], items[i]))
    train, valid, test = (Pairs.of(rows[part]) for part in ("train", "valid", "test"))
    kept_train, kept_valid = train[~leaks(train, test)], valid[~leaks(valid, test)]
    return kept_train, kept_valid, test, len(train) + len(valid) - len(kept_train) - len(kept_valid)


def load_world(where):
    """``"synthetic"``, an ``*.index.json`` file in MiniOneRec's format or a folder with one, or a RecBole ``.inter`` file.

    Raises:
        FileNotFoundError: no such path.
        DataError: the files are not in the format.
    """
    from . import minionerec, recbole, synthetic

    if where == "synthetic":
        return synthetic.make()
    path = Path(where)
    if not where or not path.exists():
        raise FileNotFoundError(
            f"no world at {where!r}: expected 'synthetic', an *.index.json file, a folder with one, or a .inter file"
        )
    if path.is_dir() or path.name.endswith(minionerec.INDEX):
        return minionerec.load(path)
    if path.suffix == ".inter":
        return recbole.load(path)
    raise DataError(f"{where}: expected an *.index.json file, a folder with one, or a RecBole .inter file")
