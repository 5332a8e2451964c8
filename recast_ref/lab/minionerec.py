"""Data in MiniOneRec's format: real interactions with real SIDs.

``NAME.index.json`` maps item ids to SIDs, ``{"17": ["<a_236>", "<b_231>", "<c_226>"], ...}``. Three CSV files, for training,
validation and test, hold a row per event with ``user_id``, ``history_item_id`` (a printed list, oldest first, cut to the
latest few) and ``item_id``. Other columns and other files are ignored.
"""

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np

from .worlds import DataError, Pairs, World, leaks

INDEX = ".index.json"
SPLITS = ("train", "valid", "test")
COLUMNS = ("user_id", "history_item_id", "item_id")
VALIDATION_PAIRS = 1500
BASE_PAIRS = 1500
CODE = re.compile(r"<(?:s_)?([a-z])_(\d+)>")


def load(where):
    """The world of an index file, or of the only one in a folder.

    To ``NAME.index.json`` belong ``NAME_test.csv`` and so on beside it, or ``NAME.csv`` in folders ``test`` and so on beside it
    or one level up, where MiniOneRec has them. Its ``_5_2016-10-2018-11`` may follow the name. In a folder with one index file
    the CSV files may have any names: the last of the words train, valid and test in the path, the index's name apart, says
    which split it is.

    Without a train file, the training pairs are every step of the users' timelines up to their test rows, which the
    histories in the valid and test files hold; 1,500 of them (a fifth, if that is fewer), drawn with a fixed seed, are
    kept for validation.

    Raises:
        DataError: a file is malformed, missing, or one of several; the message names the file, the line and what is wrong, or
            what was looked for, where, and what was found.
    """
    where = Path(where)
    if where.is_dir():
        name, index = where.resolve().name, only_index(where)
        files = files_in(where, index)
    else:
        name, index = _name(where), where
        files = files_of(index)
    item_number, sids = read_index(index)
    users = {}
    rows = {split: read_rows(path, users, item_number) for split, path in files.items()}
    test = Pairs.of(rows["test"])
    if "train" in rows:
        train, valid = Pairs.of(rows["train"]), Pairs.of(rows["valid"])
        notes = [f"trained on {files['train'].name}"]
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
    return World(name, sids, train, valid, test, min(BASE_PAIRS, len(train) // 2), notes)


def _name(index):
    return index.name.removesuffix(INDEX)


def only_index(folder):
    """The index file in the folder or below it. Where there are several, the error lists what to type."""
    found = sorted(folder.rglob(f"*{INDEX}"))
    if len(found) > 1:
        commands = " or ".join(f"--world {shlex.quote(str(path))}" for path in found)
        raise DataError(f"{folder}: {len(found)} worlds are in it, choose one: {commands}")
    return _only(found, f"{folder}: expected an *{INDEX} file")


def files_in(folder, index):
    """``{split: CSV file}`` of a folder with one index file. There may be none for ``train``."""
    found = {split: [] for split in SPLITS}
    for path in sorted(folder.rglob("*.csv")):
        rest = re.sub(rf"^{re.escape(_name(index))}(?=[\W_]|$)", "", path.stem)  # a data set may be called Test_Tubes
        words = re.split("[^a-z]+", f"{path.parent.relative_to(folder)}/{rest}".lower())
        splits = [word for word in words if word in SPLITS]
        if splits:
            found[splits[-1]].append(path)
    expected = {split: f"{folder}: expected exactly one *{split}*.csv file" for split in SPLITS}
    return {split: _only(found[split], expected[split]) for split in SPLITS if found[split] or split != "train"}


def files_of(index):
    """``{split: CSV file}`` of an index file. There may be none for ``train``."""
    name, here, above = _name(index), index.parent, index.parent.resolve().parent
    folders = dict.fromkeys([here, *(folder / split for folder in (here, above) for split in SPLITS)])
    there = [path for folder in folders for path in sorted(folder.glob("*.csv"))]
    names = [_name(path) for path in here.glob(f"*{INDEX}")]
    found = {split: [] for split in SPLITS}
    for path in there:
        # Toys_2018_test.csv is of Toys, but of Toys_2018 where there is such an index.
        if max((n for n in names if _split(path, n)), key=len, default=None) == name:
            found[_split(path, name)].append(path)
    expected = {
        split: f"{index}: expected one file {name}_{split}.csv in {here}, or {name}.csv in {here / split} or {above / split} "
        f"({name}_5_2016-10-2018-11 will do for {name})"
        for split in SPLITS
    }
    return {split: _only(found[split], expected[split], there) for split in SPLITS if found[split] or split != "train"}


def _split(path, name):
    """Which split of the data set a CSV file is, by its own name or its folder's; None if it is not one of the data set's.

    MiniOneRec adds the k of the k-core and the dates to the name: ``_5_2016-10-2018-11``.
    """
    match = re.fullmatch(rf"{re.escape(name)}((_\d+)?_\d{{4}}(-\d+)*)?(_(?P<split>{'|'.join(SPLITS)}))?", path.stem)
    folder = path.parent.name if path.parent.name in SPLITS else None
    return match and (match["split"] or folder)


def _only(paths, expected, among=()):
    if len(paths) != 1:
        none = "none among " + ", ".join(map(str, among)) if among else "none"
        raise DataError(f"{expected}, found {', '.join(map(str, paths)) or none}")
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
