"""A folder in MiniOneRec's format: real interactions with real SIDs.

``*.index.json`` maps item ids to SIDs, ``{"17": ["<a_236>", "<b_231>", "<c_226>"], ...}``. The ``*.csv`` files, told
apart by the word ``train``, ``valid`` or ``test`` in their name or their folder's, hold a row per event with ``user_id``,
``history_item_id`` (a printed list, oldest first, cut to the latest few) and ``item_id``. Other columns are ignored.
"""

import csv
import json
import re
from pathlib import Path

import numpy as np

from .worlds import DataError, Pairs, World, leaks

COLUMNS = ("user_id", "history_item_id", "item_id")
VALIDATION_PAIRS = 1500
BASE_PAIRS = 1500
CODE = re.compile(r"<(?:s_)?([a-z])_(\d+)>")


def load(folder):
    """The world in this folder.

    Without a train file, the training pairs are every step of the users' timelines up to their test rows, which the
    histories in the valid and test files hold; 1,500 of them (a fifth, if that is fewer), drawn with a fixed seed, are
    kept for validation.

    Raises:
        DataError: a file is missing or malformed; the message names the file, the line and what is wrong.
    """
    folder = Path(folder)
    item_number, sids = read_index(_only(sorted(folder.rglob("*.index.json")), folder, "*.index.json"))
    files = {split: [] for split in ("train", "valid", "test")}
    for path in sorted(folder.rglob("*.csv")):
        for split in files:
            if split in re.split("[^a-z]+", f"{path.parent.relative_to(folder)}/{path.stem}".lower()):
                files[split].append(path)
                break
    users = {}
    rows = {
        split: read_rows(_only(paths, folder, f"*{split}*.csv"), users, item_number)
        for split, paths in files.items()
        if paths or split != "train"
    }
    test = Pairs.of(rows["test"])
    if "train" in rows:
        train, valid = Pairs.of(rows["train"]), Pairs.of(rows["valid"])
        notes = [f"trained on {files['train'][0].name}"]
    else:
        train = Pairs.of(steps(merge_histories(rows["valid"] + rows["test"])))
        valid = None
        notes = [
            "no train file: training pairs are the steps of the histories in the valid and test files",
            "validation pairs are drawn from these at random, so later training histories can hold a validation target",
        ]
    before = len(train) + (len(valid) if valid else 0)
    train = train[~leaks(train, test)]
    if valid is None:
        order = np.random.default_rng(0).permutation(len(train))
        held = min(VALIDATION_PAIRS, len(train) // 5)
        valid, train = train[np.sort(order[:held])], train[np.sort(order[held:])]
    else:
        valid = valid[~leaks(valid, test)]
    notes.append(f"{before - len(train) - len(valid):,} pairs dropped because they hold a test target of the same user")
    return World(folder.resolve().name, sids, train, valid, test, min(BASE_PAIRS, len(train) // 2), notes)


def _only(paths, folder, pattern):
    if len(paths) != 1:
        found = ", ".join(str(p.relative_to(folder)) for p in paths) or "none"
        raise DataError(f"{folder}: expected exactly one {pattern} file, found {found}")
    return paths[0]


def read_index(path):
    """``{item id: row}`` and the SIDs, int64 ``(items, L)``."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:1: not UTF-8 text: {error.reason}") from None
    if not isinstance(index, dict) or not index:
        raise DataError(f"{path}:1: expected an object of item id -> list of codes")
    item_number, sids, levels = {}, [], None
    for item, codes in index.items():
        parsed = [CODE.fullmatch(c) for c in codes] if isinstance(codes, list) and all(map(_is_text, codes)) else [None]
        names = [match and match[1] for match in parsed]
        levels = levels or names
        if None in names or names != levels or not names:
            wanted = "".join(f"<{name}_0>" for name in levels if name) or "<a_0><b_0><c_0>"
            raise DataError(f"{path}:{_line_of(path, item)}: item {item}: expected codes like {wanted}, got {codes!r}")
        item_number[item] = len(sids)
        sids.append([int(match[2]) for match in parsed])
    return item_number, np.array(sids, dtype=np.int64)


def _is_text(value):
    return isinstance(value, str)


def _line_of(path, item):
    """The line of the index file on which the item's entry begins."""
    text = path.read_text(encoding="utf-8")
    return text.count("\n", 0, max(text.find(json.dumps(item)), 0)) + 1


def read_rows(path, users, item_number):
    """``(user, items before, item)`` of each row. New users are added to ``users``, ``{user id: number}``."""
    rows = []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise DataError(f"{path}:1: expected a column {missing[0]}, got {', '.join(reader.fieldnames or [])}")
            line = 2
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"{path}:{line}: expected {len(reader.fieldnames)} fields")
                history = _history(row["history_item_id"], path, line)
                items = [item_number.get(str(item)) for item in [*history, row["item_id"].strip()]]
                if None in items:
                    unknown = [*history, row["item_id"]][items.index(None)]
                    raise DataError(f"{path}:{line}: item {unknown!r} is not in the index")
                rows.append((users.setdefault(row["user_id"], len(users)), items[:-1], items[-1]))
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not a readable CSV file: {error}") from None
        except UnicodeDecodeError as error:
            after = max(reader.line_num, 1)
            raise DataError(f"{path}:{after}: not UTF-8 text here or below: {error.reason}; save it as UTF-8") from None
    if not rows:
        raise DataError(f"{path}:2: expected at least one row")
    return rows


def _history(text, path, line):
    try:
        history = json.loads(text)
    except json.JSONDecodeError:
        history = None
    if not isinstance(history, list) or not all(type(item) is int for item in history):
        raise DataError(
            f"{path}:{line}: history_item_id: expected a list of item ids such as [3, 17], got {text[:60]!r}"
        )
    return history


def merge_histories(rows):
    """One timeline per user from rows whose histories repeat each other and are cut to the latest few items.

    A row continues its user's timeline if its whole history is the end of it, so that each event is kept once, with the
    longest history there is; a row that does not starts another timeline of that user.

    Args:
        rows: ``(user, items before, item)``, each user's in time order.

    Returns:
        list of ``(user, items)``.
    """
    timelines, latest = [], {}
    for user, before, item in rows:
        timeline = latest.get(user)
        if timeline and before and timeline[-len(before) :] == before:
            timeline.append(item)
        else:
            latest[user] = [*before, item]
            timelines.append((user, latest[user]))
    return timelines


def steps(timelines):
    """Every item of a timeline that has others before it: ``(user, items before, item)``."""
    return [(user, items[:i], items[i]) for user, items in timelines for i in range(1, len(items))]
