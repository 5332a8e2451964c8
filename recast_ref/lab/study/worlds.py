"""The worlds of the study: what the log shows, and what the reward pays for, which need not be the same.

Most are one made-up shop with a twist, told by the name: ``sparse`` and ``dense`` (how predictable its users are), ``wrong-30``
(30 % of the logged targets are banner items), ``next-4`` (any of the next four items is a hit), ``judge`` (the reward is a model of
the user, the log shows one item), ``thought`` (a free code before the SID, which the reward does not see), ``sets-2`` (an answer
names two SIDs, which must differ), ``cold`` (15 % of the items are new to the base policy), ``value`` (a hit is worth what the item
is worth), ``other-1`` (the sparse shop from another seed). ``PATH``, ``PATH+wrong-30`` and ``PATH+cold`` are files of real
interactions, as ``recast-ref compare --world`` takes them.
"""

import re
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch

from .. import training
from .. import worlds as lab
from ..evaluation import sid_counts
from ..semantic_ids import Trie
from .answers import Answers

HISTORY = 6  # items of a prompt
NEXT = 4  # items kept after it
LENGTH = 12  # of a made-up user's timeline
SHAPE = (48, 8, 8)  # codes: 3,072 items
BANNERS = 16  # items that wrong labels name
LIKED = 8  # items that the judge pays for
NEW = 0.15  # share of the items that are new in the cold world
THOUGHTS = 4
SHOPS = {  # Zipf exponent in a cell of 8 items, chance of the main taste, of the preferred sub-cluster
    "sparse": (1.6, 0.75, 0.8),
    "dense": (2.6, 0.9, 0.95),
}
RULE, NOISE = 0.10, 0.05  # share of steps that follow the item before, and that are noise


@dataclass(frozen=True)
class Prompts:
    """Prompts of one split. SIDs of -1 are padding."""

    history: torch.Tensor  # int64 (N, HISTORY, L), padded on the left
    shown: torch.Tensor  # int64 (N, J, L): what the log names: what anchors and supervised learning see
    wanted: torch.Tensor  # int64 (N, K, L): what the reward pays for
    worth: torch.Tensor | None  # (N, K): what a hit is worth; None: 1
    segments: dict  # name -> int64 (N,), by which a metric is told apart

    def __len__(self):
        return len(self.history)

    def __getitem__(self, rows):
        worth = None if self.worth is None else self.worth[rows]
        segments = {name: values[rows] for name, values in self.segments.items()}
        return Prompts(self.history[rows], self.shown[rows], self.wanted[rows], worth, segments)


@dataclass(frozen=True)
class StudyWorld:
    """A catalogue, an answer format, and four splits."""

    name: str
    trie: Trie  # of items
    answers: Answers
    base: Prompts  # what the base policy learns from
    rl: Prompts  # what the arms learn from
    valid: Prompts
    test: Prompts
    popularity: torch.Tensor  # (nodes of the trie's last level,): how often each SID is a target of base and rl


@lru_cache(maxsize=2)
def make(name, users=25_000):
    """The world of this name, always the same.

    Raises:
        ValueError: no such world.
        FileNotFoundError, DataError: as :func:`~recast_ref.lab.worlds.load_world`.
    """
    path, twist = _file(name)
    return _real(name, path, twist) if path else _made_up(name, users)


@cache
def fingerprint(name):
    """Tells what is in the files of a world from what else might be there; empty for a made-up one, which is all in its name.

    Raises:
        as :func:`make`.
    """
    path, _ = _file(name)
    return training.fingerprint(_load(path)) if path else ""


def _file(name):
    """``(path, twist)`` of a world of real interactions; of a made-up one the path is empty."""
    path, _, twist = name.rpartition("+")
    if path:
        return path, twist
    return (name, "") if "/" in name or "." in name else ("", "")


_load = lru_cache(maxsize=1)(lab.load_world)


def base_world(name):
    """The world whose base policy this one starts from: wrong labels come after it was trained."""
    if re.fullmatch(r"wrong-\d+", name):
        return "sparse"
    return re.sub(r"\+wrong-\d+$", "", name)


# ---- made-up shops


@dataclass(frozen=True)
class _Shop:
    sids: np.ndarray  # int64 (items, 3)
    items: np.ndarray  # int64 (users, LENGTH): timelines
    tastes: np.ndarray  # int64 (users, 2): main and second cluster
    preferred: np.ndarray  # int64 (users, clusters): sub-cluster
    popularity: np.ndarray  # SHAPE: chance of an item in its cell


def _shop(kind, users, seed):
    """As in :mod:`~recast_ref.lab.synthetic`, for all users at once."""
    zipf_exponent, main, prefer = SHOPS[kind]
    rng = np.random.default_rng(seed)
    clusters, subs, cells = SHAPE
    sids = np.stack(np.unravel_index(np.arange(np.prod(SHAPE)), SHAPE), axis=1).astype(np.int64)
    zipf = 1.0 / np.arange(1, cells + 1) ** zipf_exponent
    popularity = np.stack([rng.permutation(zipf / zipf.sum()) for _ in range(clusters * subs)]).reshape(SHAPE)
    preferred = rng.integers(subs, size=(users, clusters))
    first = rng.integers(clusters, size=users)
    second = (first + rng.integers(1, clusters, size=users)) % clusters
    items = np.zeros((users, LENGTH), dtype=np.int64)
    for step in range(LENGTH):
        a = np.where(rng.random(users) < main, first, second)
        b = np.where(rng.random(users) < prefer, preferred[np.arange(users), a], rng.integers(subs, size=users))
        c = (rng.random(users)[:, None] > popularity[a, b].cumsum(axis=1)).sum(axis=1).clip(max=cells - 1)
        item = np.ravel_multi_index((a, b, c), SHAPE)
        kind_of_step = rng.random(users)
        if step:
            a, b, c = sids[items[:, step - 1]].T
            ruled = np.ravel_multi_index((a, (b + 1) % subs, (c + 3) % cells), SHAPE)
            item = np.where(kind_of_step < RULE, ruled, item)
        noise = rng.integers(len(sids), size=users)
        items[:, step] = np.where(kind_of_step > 1 - NOISE, noise, item)
    return _Shop(sids, items, np.stack([first, second], axis=1), preferred, popularity)


def _made_up(name, users):
    kind, _, number = name.partition("-")
    if name not in (*SHOPS, "judge", "thought", "cold", "value") and not re.fullmatch(
        r"(wrong|next|sets|other)-\d+", name
    ):
        raise ValueError(f"no world {name!r}: expected one of the names in recast_ref/lab/study/worlds.py, or a path")
    number = int(number or 0)
    shop = _shop(kind if kind in SHOPS else "sparse", users, seed=number if kind == "other" else 0)
    rng = np.random.default_rng(1)
    new = _new_items(len(shop.sids)) if kind == "cold" else np.zeros(len(shop.sids), dtype=bool)
    prices = np.exp(rng.normal(size=len(shop.sids))).clip(0.1, 8) if kind == "value" else None
    answers = Answers(thoughts=THOUGHTS if kind == "thought" else 0, named=number if kind == "sets" else 1)
    kept = {"next": number, "sets": NEXT}.get(kind, 1)
    if kept > NEXT or answers.named > NEXT:
        raise ValueError(f"no world {name!r}: only the next {NEXT} items are kept")

    edges = np.cumsum([0, users * 3 // 25, users * 2 // 25, users * 9 // 25])
    parts = {part: np.arange(*edges[i : i + 2]) for i, part in enumerate(("test", "valid", "rl"))}
    parts["base"] = np.arange(edges[3], users)
    rows = {  # (users, position of the target); the base sees every position, the others one
        "test": (parts["test"], HISTORY + 1),
        "valid": (parts["valid"], HISTORY + 1),
        "rl": (parts["rl"], HISTORY),
    }
    histories = {part: shop.items[u, p - HISTORY : p] for part, (u, p) in rows.items()}
    targets = {part: shop.items[u, p : p + kept] for part, (u, p) in rows.items()}
    owners = {part: u for part, (u, _) in rows.items()}
    histories["base"], targets["base"] = _every_step(shop.items[parts["base"]], kept)
    owners["base"] = np.tile(parts["base"], len(targets["base"]) // max(len(parts["base"]), 1))
    if kind == "cold":
        known = ~new[targets["base"][:, 0]]
        histories["base"], targets["base"], owners["base"] = (x["base"][known] for x in (histories, targets, owners))
        histories["base"] = _without(histories["base"], new)

    counts = np.bincount(np.concatenate([targets["base"][:, 0], targets["rl"][:, 0]]), minlength=len(shop.sids))
    splits = {}
    for part in ("base", "rl", "valid", "test"):
        if answers.named > 1:  # there must be enough to name
            enough = np.array([len(set(row)) >= answers.named for row in targets[part].tolist()])
            histories[part], targets[part], owners[part] = (x[part][enough] for x in (histories, targets, owners))
        shown = wanted = targets[part]
        if kind == "wrong" and part == "rl":
            shown = _mislabelled(wanted, number / 100, len(shop.sids))
        if kind == "judge" and part != "base":
            wanted = _liked(shop, owners[part])
        splits[part] = _prompts(
            shop.sids,
            answers,
            histories[part],
            shown,
            wanted,
            worth=None if prices is None else prices / prices.mean(),
            segments={
                "item popularity": counts[wanted[:, 0]],
                "category size": _category_size(shop.sids, counts)[wanted[:, 0]],
                "new": new[wanted[:, 0]],
            },
        )
    return _world(name, shop.sids, answers, splits, counts)


def _every_step(items, kept):
    """Histories and targets of every position that has two items before it and ``kept`` from it on."""
    padded = np.concatenate([np.full((len(items), HISTORY), -1), items], axis=1)
    positions = range(2, items.shape[1] - kept + 1)
    histories = np.concatenate([padded[:, p : p + HISTORY] for p in positions])
    return histories, np.concatenate([items[:, p : p + kept] for p in positions])


def _mislabelled(items, share, catalogue):
    """A share of the labels names banner items instead, which everybody is shown: 16 of them, by a Zipf law."""
    rng = np.random.default_rng(2)
    banners = rng.choice(catalogue, BANNERS, replace=False)
    chance = 1 / np.arange(1, BANNERS + 1)
    wrong = rng.choice(banners, p=chance / chance.sum(), size=items.shape)
    return np.where(rng.random((len(items), 1)) < share, wrong, items)


def _liked(shop, users):
    """The items likeliest under the model that made the users: what a judge who knows them would pay for."""
    clusters, best = shop.tastes[users], []
    for taste, count in ((0, LIKED - LIKED // 4), (1, LIKED // 4)):
        a = clusters[:, taste]
        b = shop.preferred[users, a]
        c = np.argsort(-shop.popularity[a, b], axis=1, kind="stable")[:, :count]
        best.append(np.ravel_multi_index((a[:, None].repeat(count, 1), b[:, None].repeat(count, 1), c), SHAPE))
    return np.concatenate(best, axis=1)


# ---- real interactions


def _real(name, path, twist):
    world = _load(path)
    if twist != "cold" and twist and not re.fullmatch(r"wrong-\d+", twist):
        raise ValueError(f"no world {name!r}: after the path, only +wrong-NN and +cold are known")
    order = np.random.default_rng(0).permutation(len(world.train))
    pairs = {
        "base": world.train[order[: len(order) // 2]],
        "rl": world.train[order[len(order) // 2 :]],
        "valid": world.valid,
        "test": world.test,
    }
    counts = np.bincount(world.train.target, minlength=len(world.sids))
    activity = np.bincount(world.train.user, minlength=1 + max(int(p.user.max()) for p in pairs.values()))
    new = _new_items(len(world.sids)) if twist == "cold" else np.zeros(len(world.sids), dtype=bool)
    pairs["base"] = pairs["base"][~new[pairs["base"].target]]
    splits = {}
    for part, pair in pairs.items():
        history, wanted = pair.history[:, -HISTORY:], pair.target[:, None]
        mislabel = part == "rl" and twist.startswith("wrong")
        shown = _mislabelled(wanted, int(twist[6:]) / 100, len(world.sids)) if mislabel else wanted
        history = _without(history, new) if part == "base" else history
        segments = {
            "user activity": activity[pair.user],
            "item popularity": counts[pair.target],
            "category size": _category_size(world.sids, counts)[pair.target],
            "new": new[pair.target],
        }
        splits[part] = _prompts(world.sids, Answers(), history, shown, wanted, None, segments)
    return _world(name, world.sids, Answers(), splits, counts)


# ---- both


def _new_items(catalogue):
    """Which items are new: unknown to the base policy, no target of its, and a hole in its histories."""
    return np.random.default_rng(1).random(catalogue) < NEW


def _without(histories, new):
    return np.where((histories >= 0) & new[histories], -1, histories)


def _category_size(sids, counts):
    """Of each item: how many training pairs have a target with the same first code. int64 ``(items,)``."""
    return np.bincount(sids[:, 0], weights=counts).astype(np.int64)[sids[:, 0]]


def _prompts(sids, answers, history, shown, wanted, worth, segments):
    def codes(items):
        items = torch.from_numpy(np.ascontiguousarray(items))
        return torch.where(items[..., None] >= 0, table[items], -1)

    table = torch.from_numpy(sids)
    worth = None if worth is None else torch.from_numpy(worth.astype(np.float32))[torch.from_numpy(wanted)]
    segments = {name: np.asarray(values, dtype=np.int64) for name, values in segments.items()}
    return Prompts(answers.prompts(codes(history)), codes(shown), _distinct(codes(wanted)), worth, segments)


def _distinct(sids):
    """Each SID of a row once: copies of an earlier one become padding. int64 ``(N, K, L)``."""
    same = (sids[:, :, None] == sids[:, None]).all(dim=-1)
    return sids.masked_fill(same.tril(diagonal=-1).any(dim=-1)[..., None], -1)


def _world(name, sids, answers, splits, counts):
    trie = Trie(sids)
    return StudyWorld(name, trie, answers, popularity=sid_counts(trie, sids, counts), **splits)
