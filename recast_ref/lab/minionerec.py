"""Data in MiniOneRec's format: real interactions with real SIDs.

``NAME.index.json`` maps item ids to SIDs, ``{"17": ["<a_236>", "<b_231>", "<c_226>"], ...}``. Three CSV files, for training,
validation and test, hold a row per event with ``user_id``, ``history_item_id`` (a printed list, oldest first, cut to the
latest few) and ``item_id``. They may be gzipped (``.csv.gz``). Other columns and other files are ignored.
"""

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np

from .reading import DataError, cut, lines, printable, text
from .semantic_ids import Trie
from .worlds import HISTORY, Pairs, World, leaks

INDEX = ".index.json"
SPLITS = ("train", "valid", "test")
COLUMNS = ("user_id", "history_item_id", "item_id")
VALIDATION_PAIRS = 1500
BASE_PAIRS = 1500
CODE = re.compile(r"<(?:s_)?([a-z])_([0-9]+)>")
MOST_LEVELS = 15  # what structural_scores takes
MOST_CODES = 1 << 16  # of a level: the policy has a logit for each
MOST_CELLS = 1 << 27  # of the trie's tables: 1 GB


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
    if "train" in rows:
        train, valid, test = (Pairs.of(rows[split]) for split in SPLITS)
        notes = [f"trained on {printable(files['train'].name)}"]
    else:
        rows = {split: list(rows[split]) for split in ("valid", "test")}
        train, test = Pairs.of(steps(merge_histories(rows["valid"] + rows["test"]))), Pairs.of(rows["test"])
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
    return World(printable(name), sids, train, valid, test, min(BASE_PAIRS, len(train) // 2), notes)


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
    for path in _csv_files(folder.rglob):
        rest = re.sub(rf"^{re.escape(_name(index))}(?=[\W_]|$)", "", _stem(path))  # a data set may be called Test_Tubes
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
    there = [path for folder in folders for path in _csv_files(folder.glob)]
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
    match = re.fullmatch(rf"{re.escape(name)}((_\d+)?_\d{{4}}(-\d+)*)?(_(?P<split>{'|'.join(SPLITS)}))?", _stem(path))
    folder = path.parent.name if path.parent.name in SPLITS else None
    return match and (match["split"] or folder)


def _csv_files(find):
    return sorted([*find("*.csv"), *find("*.csv.gz")])


def _stem(path):
    return path.name.removesuffix(".gz").removesuffix(".csv")


def _only(paths, expected, among=()):
    if len(paths) != 1:
        none = "none among " + ", ".join(map(str, among)) if among else "none"
        raise DataError(f"{expected}, found {', '.join(map(str, paths)) or none}")
    return paths[0]


class _Twice(Exception):
    """A key of a JSON object comes a second time."""


def _without_twins(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set()
        raise _Twice(next(key for key, _ in pairs if key in seen or seen.add(key)))
    return found


def read_index(path):
    """``{item id: row}`` and the SIDs, int64 ``(items, L)``."""
    written = text(path)
    try:
        index = json.loads(written, object_pairs_hook=_without_twins)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except _Twice as error:
        raise DataError(
            f"{path}:{_line_of(written, error.args[0], last=True)}: item {cut(error.args[0])} comes twice"
        ) from None
    except RecursionError:
        raise DataError(f"{path}:1: expected an object of item id -> list of codes, got deeper nesting") from None
    except ValueError:  # an int of thousands of digits
        raise DataError(
            f"{path}:1: expected an object of item id -> list of codes, got a number too long to read"
        ) from None
    if not isinstance(index, dict) or not index:
        raise DataError(f"{path}:1: expected an object of item id -> list of codes")
    item_number, sids, levels = {}, [], None
    for item, codes in index.items():
        parsed = [CODE.fullmatch(c) for c in codes] if isinstance(codes, list) and all(map(_is_text, codes)) else [None]
        names = [match and match[1] for match in parsed]
        wrong = None
        if None in names or not names or names != (levels or names):
            wanted = "".join(f"<{name}_0>" for name in (levels or names) if name) or "<a_0><b_0><c_0>"
            wrong = f"expected codes like {cut(wanted)}"
        elif len(names) > MOST_LEVELS:
            wrong = f"expected at most {MOST_LEVELS} codes"
        elif any(len(match[2].lstrip("0")) > 5 or int(match[2]) >= MOST_CODES for match in parsed):
            wrong = f"expected codes below {MOST_CODES:,}"
        if wrong:
            line = _line_of(written, item)
            raise DataError(f"{path}:{line}: item {cut(item)}: {wrong}, got {cut(repr(codes))}")
        levels = names
        item_number[item] = len(sids)
        sids.append([int(match[2]) for match in parsed])
    sids = np.array(sids, dtype=np.int64)
    cells = Trie.cells(sids)
    if cells > MOST_CELLS:
        raise DataError(
            f"{path}: these {len(sids):,} items with codes up to {sids.max():,} need a trie of {cells:,} cells, more than {MOST_CELLS:,}"
        )
    return item_number, sids


def _is_text(value):
    return isinstance(value, str)


def _line_of(written, item, last=False):
    """The line of the index on which the item's entry begins: the first such, or the last."""
    keys = (json.dumps(item), json.dumps(item, ensure_ascii=False))
    at = max((written.rfind if last else written.find)(key) for key in keys)
    return written.count("\n", 0, max(at, 0)) + 1


def read_rows(path, users, item_number):
    """Yield ``(user, items before, item)`` of each row. New users are added to ``users``, ``{user id: number}``."""
    reader = csv.reader(lines(path), strict=True)
    count = 0
    try:
        header = next(reader, [])
        for name in COLUMNS:
            if header.count(name) != 1:
                one = "one" if name in header else "a"
                raise DataError(f"{path}:1: expected {one} column {name}, got {cut(', '.join(header), 200)}")
        user_at, history_at, item_at = map(header.index, COLUMNS)
        line = reader.line_num + 1
        for row in reader:
            if row:  # not an empty line
                if len(row) != len(header):
                    raise DataError(f"{path}:{line}: expected {len(header)} fields, got {len(row)}")
                named = [*map(str, _history(row[history_at], path, line)), row[item_at].strip()]
                items = [item_number.get(item) for item in named]
                if None in items:
                    unknown = named[items.index(None)]
                    raise DataError(f"{path}:{line}: item {cut(repr(unknown))} is not in the index")
                yield users.setdefault(row[user_at], len(users)), items[:-1], items[-1]
                count += 1
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not a readable CSV file: {error}") from None
    if not count:
        raise DataError(f"{path}:2: expected at least one row")


def _history(written, path, line):
    try:
        history = json.loads(written)
    except (ValueError, RecursionError):  # not JSON, an int of thousands of digits, or nested thousands deep
        history = None
    if not isinstance(history, list) or not all(type(item) is int for item in history):
        raise DataError(
            f"{path}:{line}: history_item_id: expected a list of item ids such as [3, 17], got {written[:60]!r}"
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
    """Yield ``(user, the latest items before, item)`` of every item of a timeline that has others before it."""
    for user, items in timelines:
        for i in range(1, len(items)):
            yield user, items[max(0, i - HISTORY) : i], items[i]
