"""Loaders on good and broken files, splits, and the refusal of leaks."""

import codecs
import gzip
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recast_ref.lab import checkpoints, minionerec, reading, recbole, synthetic
from recast_ref.lab.semantic_ids import Trie, collisions
from recast_ref.lab.worlds import HISTORY, DataError, Pairs, World, leaks, load_world, split_last

TIMELINES = st.lists(st.lists(st.integers(0, 9), max_size=14), max_size=6)


# ---- splits


@given(TIMELINES)
def test_leave_one_out(timelines):
    train, valid, test, dropped = split_last(timelines)
    assert not leaks(train, test).any() and not leaks(valid, test).any()
    assert len(train) + len(valid) + len(test) + dropped == sum(max(len(t) - 1, 0) for t in timelines)
    assert len(test) == sum(len(t) > 1 for t in timelines)
    for user, history, target in zip(test.user, test.history, test.target):
        assert target == timelines[user][-1]
        assert [i for i in history if i >= 0] == timelines[user][:-1][-HISTORY:]
    for user, history, target in zip(train.user, train.history, train.target):
        shown = [i for i in history if i >= 0]
        assert any(
            timelines[user][: i + 1][-len(shown) - 1 :] == [*shown, target] for i in range(len(timelines[user]) - 2)
        )


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_leak_is_refused(split):
    clean, test = Pairs.of([(0, [1], 2)]), Pairs.of([(0, [1, 2], 3), (1, [0], 2)])
    sids = np.zeros((4, 3), dtype=np.int64)
    World("w", sids, clean, clean, test, 1)
    with pytest.raises(AssertionError, match=f"1 {split} pairs have a target of the same user's test rows"):
        World("w", sids, **{"train": clean, "valid": clean, "test": test, split: Pairs.of([(0, [1], 3)])}, base_pairs=1)


def test_a_world_survives_its_state(tmp_path):
    world = load_world(write_folder(tmp_path))
    checkpoints.save(tmp_path / "world.pt", world.state(), {})
    again = World.from_state(checkpoints.load(tmp_path / "world.pt", {}))
    assert (again.name, again.base_pairs, again.notes) == (world.name, world.base_pairs, world.notes)
    assert np.array_equal(again.sids, world.sids)
    assert all(rows_of(getattr(again, part)) == rows_of(getattr(world, part)) for part in ("train", "valid", "test"))


def test_the_synthetic_world_is_what_it_says():
    world = synthetic.make()
    again = synthetic.make()
    assert all(np.array_equal(getattr(world.train, f), getattr(again.train, f)) for f in ("user", "history", "target"))
    assert len(world.sids) == 48 * 8 * 8 and collisions(world.sids) == 0
    assert len(world.test) == synthetic.USERS
    last, target = world.sids[world.train.history[:, -1]], world.sids[world.train.target]
    follows = (target == np.stack([last[:, 0], (last[:, 1] + 1) % 8, (last[:, 2] + 3) % 8], axis=1)).all(axis=1)
    assert 0.08 < follows.mean() < 0.14  # 10 % by rule, and some by chance
    assert not np.array_equal(synthetic.make(seed=1).train.target[:50], world.train.target[:50])


# ---- MiniOneRec folders


INDEX = {str(i): [f"<a_{i % 3}>", f"<b_{i % 2}>", f"<c_{i}>"] for i in range(8)}
ROWS = [("u1", "[0]", 1), ("u1", "[0, 1]", 2), ("u2", "[3, 4]", 5), ("u1", "[0, 1, 2]", 0)]


def write_folder(folder, index=INDEX, valid=ROWS, test=(("u1", "[1, 2, 0]", 3), ("u2", "[3, 4, 5]", 6)), train=None):
    (folder / "Toys.index.json").write_text(index if isinstance(index, str) else json.dumps(index, indent=0))
    for split, rows in (("train", train), ("valid", valid), ("test", test)):
        if rows is not None:
            lines = ["user_id,history_item_title,history_item_id,item_id"]
            lines += rows if rows and isinstance(rows[0], str) else [f'{u},"a\nb","{h}",{i}' for u, h, i in rows]
            (folder / f"Toys_{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


def rows_of(pairs):
    return {
        (int(u), tuple(int(i) for i in h if i >= 0), int(t)) for u, h, t in zip(pairs.user, pairs.history, pairs.target)
    }


def test_a_folder_without_a_train_file(tmp_path):
    world = load_world(write_folder(tmp_path))
    assert world.sids[5].tolist() == [2, 1, 5]
    assert rows_of(world.test) == {(0, (1, 2, 0), 3), (1, (3, 4, 5), 6)}
    steps = {(0, (0,), 1), (0, (0, 1), 2), (0, (0, 1, 2), 0), (1, (3,), 4), (1, (3, 4), 5)}
    assert rows_of(world.train) | rows_of(world.valid) == steps
    assert len(world.train) + len(world.valid) == len(steps)


def test_a_folder_with_a_train_file_in_subfolders(tmp_path):
    write_folder(tmp_path, valid=[("u2", "[3]", 4)], train=[("u1", "[0]", 1), ("u2", "[]", 3), ("u2", "[3]", 6)])
    for split in ("train", "valid", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / f"Toys_{split}.csv").rename(tmp_path / split / "Toys_2018.csv")
    world = load_world(tmp_path)
    assert rows_of(world.train) == {(0, (0,), 1), (1, (), 3)}  # u2's 6 is a test target
    assert rows_of(world.valid) == {(1, (3,), 4)}
    assert "1 pairs dropped" in world.notes[-1]


SPLIT_ROWS = {"train": [("u1", "[0]", 1)], "valid": [("u1", "[0, 1]", 2)], "test": [("u1", "[0, 1, 2]", 3)]}


def write_files(root, *paths):
    """CSV files with the rows of their folder's split, else of the one that ends their name; indexes; other files."""
    for path in map(root.joinpath, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        split = path.parent.name if path.parent.name in SPLIT_ROWS else path.stem.split("_")[-1]
        table = ["user_id,history_item_id,item_id", *(f'{u},"{h}",{i}' for u, h, i in SPLIT_ROWS.get(split, []))]
        path.write_text(json.dumps(INDEX) if path.name.endswith(".index.json") else "\n".join(table) + "\n")
    return root


def checkout(*names, splits=("train", "valid", "test")):
    """The paths of MiniOneRec's data/Amazon."""
    dated = [f"{name}_5_2016-10-2018-11" for name in names]
    return [
        *(f"index/{name}.{kind}" for name in names for kind in ("index.json", "item.json", "emb-qwen-td.npy")),
        *(f"{split}/{name}.csv" for split in splits for name in dated),
        *(f"info/{name}.txt" for name in dated),
    ]


def flat(*names):
    return [f"{name}{end}" for name in names for end in (".index.json", "_train.csv", "_valid.csv", "_test.csv")]


@pytest.mark.parametrize(
    "paths, index",
    [
        (checkout("Toys", "Office_Products"), "index/Toys.index.json"),
        (checkout("Toys", "Office_Products"), "index/Office_Products.index.json"),
        (flat("Toys", "Games"), "Toys.index.json"),
        (["Toys.index.json", "train/Toys.csv", "valid/Toys_valid.csv", "test/Toys_2018.csv"], "Toys.index.json"),
        # names of which one begins with the other
        (checkout("Toys", "Toys_2", "Toys_2018", "Toys_small", "Toysets"), "index/Toys.index.json"),
        (checkout("Toys", "Toys_2", "Toys_2018", "Toys_small", "Toysets"), "index/Toys_2.index.json"),
        (checkout("Toys", "Toys_2", "Toys_2018", "Toys_small", "Toysets"), "index/Toys_2018.index.json"),
        ([*checkout("Toys_2", "Toys_small")[6:], *checkout("Toys")], "index/Toys.index.json"),
        # names with a split's word
        (checkout("Test_Tubes", "train", "My_valid_test"), "index/Test_Tubes.index.json"),
        (checkout("Test_Tubes", "train", "My_valid_test"), "index/train.index.json"),
        (checkout("Test_Tubes", "train", "My_valid_test"), "index/My_valid_test.index.json"),
        (flat("A", "A_test"), "A.index.json"),
        (flat("A", "A_test"), "A_test.index.json"),
    ],
)
def test_an_index_file_finds_its_csv_files(tmp_path, monkeypatch, paths, index):
    name = index.split("/")[-1].removesuffix(".index.json")
    where = write_files(tmp_path, *paths) / index
    files = minionerec.files_of(where)
    assert list(files) == ["train", "valid", "test"]
    for split, path in files.items():
        assert re.fullmatch(rf"{name}(_5_2016-10-2018-11|_2018)?(_{split})?", path.stem)
        assert split in (path.parent.name, path.stem.split("_")[-1])
    world = load_world(where)
    assert world.name == name and len(world.sids) == len(INDEX)
    assert [rows_of(part) for part in (world.train, world.valid, world.test)] == [
        {(0, (0,), 1)},
        {(0, (0, 1), 2)},
        {(0, (0, 1, 2), 3)},
    ]
    for folder, relative in ((tmp_path, index), (where.parent, where.name)):  # as it is typed there
        monkeypatch.chdir(folder)
        again = load_world(relative)
        assert (again.name, rows_of(again.test)) == (name, rows_of(world.test))


def test_an_index_file_behind_a_link(tmp_path):
    write_files(tmp_path / "data", *checkout("Toys", "Games"))
    (tmp_path / "link").symlink_to(tmp_path / "data" / "index")
    assert load_world(tmp_path / "link" / "Toys.index.json").name == "Toys"


def test_an_index_file_without_a_train_file(tmp_path):
    paths = checkout("Toys", "Games", splits=("valid", "test"))
    world = load_world(write_files(tmp_path, *paths, "train/Games_5_2016-10-2018-11.csv") / "index" / "Toys.index.json")
    assert rows_of(world.train) | rows_of(world.valid) == {(0, (0,), 1), (0, (0, 1), 2)}
    assert "no train file" in world.notes[0]


def test_a_folder_with_several_worlds_lists_what_to_type(tmp_path):
    write_files(tmp_path, *checkout("Toys", "Office Products"))
    with pytest.raises(DataError) as caught:
        load_world(tmp_path)
    message = str(caught.value)
    assert "\n" not in message and "2 worlds" in message
    typed = shlex.split(message.partition("choose one: ")[2])
    named = [typed[i + 1] for i, word in enumerate(typed) if word == "--world"]
    assert [load_world(path).name for path in named] == ["Office Products", "Toys"]


@pytest.mark.parametrize(
    "paths, words",
    [
        (
            ["index/Toys.index.json", "valid/Toys.csv", "test/Toys_small.csv", "test/Toys_2_5_2016-10-2018-11.csv"],
            [
                "Toys_test.csv in ",
                "Toys.csv in ",
                "index/test or ",
                "found none among ",
                "valid/Toys.csv",
                "test/Toys_small.csv",
            ],
        ),
        (["index/Toys.index.json"], ["Toys_valid.csv in ", "Toys_5_2016-10-2018-11", "found none"]),
        (
            ["index/Toys.index.json", "valid/Toys.csv", "test/Toys.csv", "test/Toys_5_2016-10-2018-11.csv"],
            ["expected one file Toys_test.csv", "found ", "test/Toys.csv, ", "test/Toys_5_2016-10-2018-11.csv"],
        ),
    ],
)
def test_csv_files_that_are_missing_or_not_clear(tmp_path, paths, words):
    with pytest.raises(DataError) as caught:
        load_world(write_files(tmp_path, *paths) / "index" / "Toys.index.json")
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "paths",
    [
        flat("Train_Sets"),
        checkout("Train_test_sets"),
        ["a/My_test.index.json", "valid/My_test.csv", "test/My_test.csv", "train/My_test.csv"],
        [f"train_data/{path}" for path in flat("Toys")],
    ],
)
def test_a_name_with_a_word_of_a_split(tmp_path, paths):
    world = load_world(write_files(tmp_path, *paths))
    assert world.name == tmp_path.name
    assert (rows_of(world.train), rows_of(world.test)) == ({(0, (0,), 1)}, {(0, (0, 1, 2), 3)})


@given(st.lists(st.integers(0, 5), min_size=2, max_size=25), st.integers(2, 10))
def test_cut_histories_are_merged_into_the_timeline(items, window):
    rows = [(0, items[max(0, i - window) : i], items[i]) for i in range(1, len(items))]
    merged = minionerec.merge_histories(rows)
    assert merged == [(0, items)]


def test_a_row_that_does_not_connect_starts_another_timeline():
    rows = [(0, [1], 2), (0, [7, 2], 3), (1, [1], 2), (0, [2, 3], 4), (0, [], 5)]
    assert minionerec.merge_histories(rows) == [(0, [1, 2]), (0, [7, 2, 3, 4]), (1, [1, 2]), (0, [5])]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"index": "{"}, "Toys.index.json:1: not JSON"),
        ({"index": "[]"}, "Toys.index.json:1: expected an object"),
        (
            {"index": {**INDEX, "8": ["<a_1>", "<b_1>"]}},
            "item 8: expected codes like <a_0><b_0><c_0>, got ['<a_1>', '<b_1>']",
        ),
        ({"index": {**INDEX, "8": ["<a_1>", "<b_1>", "c_1"]}}, "item 8: expected codes like"),
        ({"index": {**INDEX, "8": 3}}, "item 8: expected codes like"),
        ({"test": None}, "expected exactly one *test*.csv file, found none"),
        ({"valid": ["u1,x,[0],1,5"]}, "Toys_valid.csv:2: expected 4 fields"),
        ({"valid": ["u1,x,[0],1", "u1,x,[0]"]}, "Toys_valid.csv:3: expected 4 fields"),
        (
            {"valid": ['u1,"x\ny",[0],1', "u1,x,__import__('os'),1"]},
            "Toys_valid.csv:4: history_item_id: expected a list of item ids",
        ),
        ({"valid": ["u1,x,[0.5],1"]}, "Toys_valid.csv:2: history_item_id: expected a list of item ids"),
        ({"valid": ["u1,x,[99],1"]}, "Toys_valid.csv:2: item '99' is not in the index"),
        ({"valid": ["u1,x,[0],no"]}, "Toys_valid.csv:2: item 'no' is not in the index"),
        ({"valid": ['u1,"x,[0],1']}, "Toys_valid.csv:"),
        ({"valid": []}, "Toys_valid.csv:2: expected at least one row"),
        ({"valid": [f"u1,x,{'[' * 50_000},1"]}, "Toys_valid.csv:2: history_item_id: expected a list of item ids"),
        ({"valid": [f"u1,x,[{'9' * 5000}],1"]}, "Toys_valid.csv:2: history_item_id: expected a list of item ids"),
        (
            {"index": "[" * 50_000},
            "Toys.index.json:1: expected an object of item id -> list of codes, got deeper nesting",
        ),
        ({"index": '{"0": ' + "9" * 5000 + "}"}, "Toys.index.json:1: expected an object"),
        ({"index": '{"0": ["<a_0>"],\n"1": ["<a_1>"],\n"0": ["<a_2>"]}'}, "Toys.index.json:3: item 0 comes twice"),
        (
            {"index": {**INDEX, "8": ["<a_1>", "<b_1>", f"<c_{'9' * 5000}>"]}},
            "item 8: expected codes below 65,536, got",
        ),
        ({"index": {**INDEX, "8": ["<a_1>", "<b_1>", f"<c_{2**64}>"]}}, "item 8: expected codes below 65,536, got"),
        ({"index": {**INDEX, "8": ["<a_1>", "<b_1>", "<c_65536>"]}}, "item 8: expected codes below 65,536, got"),
        ({"index": {"0": [f"<{c}_0>" for c in "abcdefghijklmnop"]}}, "item 0: expected at most 15 codes, got"),
        (
            {"index": {str(i): [f"<a_{i}>", f"<b_{i}>", "<c_65535>"] for i in range(1100)}},
            "Toys.index.json: these 1,100 items with codes up to 65,535 need a trie of 144,244,736 cells, more than",
        ),
    ],
)
def test_a_broken_folder_names_file_line_and_fault(tmp_path, change, words):
    with pytest.raises(DataError) as caught:
        load_world(write_folder(tmp_path, **change))
    assert words in str(caught.value)


def test_what_the_limits_let_pass(tmp_path):
    """The largest code and the longest SID: they load, and a policy can be made of them."""
    index = {str(i): [f"<{c}_{65535 if c == 'o' and i else i}>" for c in "abcdefghijklmno"] for i in range(8)}
    world = load_world(write_folder(tmp_path, index=index))
    assert world.sids.shape == (8, 15) and world.sids.max() == 65535
    assert Trie.cells(world.sids) == sum(table.numel() for table in Trie(world.sids).children)


@given(hnp.arrays(np.int64, st.tuples(st.integers(1, 20), st.integers(1, 4)), elements=st.integers(0, 5)))
def test_the_cells_of_a_trie_are_counted_without_making_it(sids):
    assert Trie.cells(sids) == sum(table.numel() for table in Trie(sids).children)


@pytest.mark.parametrize("twice", ["user_id", "history_item_id", "item_id"])
def test_a_column_that_comes_twice(tmp_path, twice):
    write_folder(tmp_path)
    (tmp_path / "Toys_test.csv").write_text(f"user_id,history_item_id,item_id,{twice}\nu1,[0],3,3\n")
    with pytest.raises(DataError, match=f"Toys_test.csv:1: expected one column {twice}, got user_id, "):
        load_world(tmp_path)


def test_a_missing_column(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "Toys_test.csv").write_text("user_id,item_id\nu1,3\n")
    with pytest.raises(DataError, match="Toys_test.csv:1: expected a column history_item_id, got user_id, item_id"):
        load_world(tmp_path)


def test_index_errors_give_the_line(tmp_path):
    folder = write_folder(tmp_path, index={**INDEX, "8": []})
    with pytest.raises(DataError, match=r"Toys.index.json:42: item 8"):  # 8 items of 5 lines and a brace come before
        load_world(folder)


def test_the_real_interactions(amazon):
    world = load_world(amazon)
    assert (len(world.sids), len(world.test), len(world.valid)) == (3686, 4533, 1500)
    assert collisions(world.sids) == 31
    assert not leaks(world.train, world.test).any()
    assert (world.train.history[:, -1] >= 0).all()


# ---- RecBole


HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float"


def write_inter(path, lines, header=HEADER):
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_recbole_orders_by_time_and_keeps_the_last(tmp_path):
    lines = ["ann\tx\t5\t30", "ann\ty\t1\t10", "bob\tx\t3\t1", "ann\tz\t2\t20", "bob\tw\t3\t1"]
    timelines, items = recbole.read(write_inter(tmp_path / "a.inter", lines))
    assert [t.tolist() for t in timelines] == [[1, 2, 0], [0, 3]] and items == 4


def test_a_recbole_world(tmp_path):
    rng = np.random.default_rng(0)
    lines = [f"u{u}\ti{i}\t3\t{t}" for u in range(60) for t, i in enumerate(rng.integers(90, size=9))]
    world = load_world(write_inter(tmp_path / "toy.inter", lines))
    assert world.name == "toy" and world.sids.shape == (len({line.split("\t")[1] for line in lines}), 3)
    assert len(world.test) == 60 and "SID" in world.describe()


@pytest.mark.parametrize(
    "lines, header, words",
    [
        (["a\tb\t1\t2", "a\tb\t1"], HEADER, "x.inter:3: expected 4 tab-separated fields, got 3"),
        (["a\tb\t1\tnoon"], HEADER, "x.inter:2: timestamp: expected a number, got 'noon'"),
        (["a\tb\t1\tnan"], HEADER, "x.inter:2: timestamp: expected a number, got 'nan'"),
        ([], "user_id:token,item_id:token", "x.inter:1: expected a tab-separated column"),
        (["a\tb\t1\t2"], HEADER, "x.inter:2: expected users with at least four interactions"),
        (
            [],
            HEADER + "\titem_id:float",
            "x.inter:1: expected one tab-separated column item_id, got user_id, item_id, ",
        ),
        (
            [],
            "user_id:float\t" + HEADER,
            "x.inter:1: expected one tab-separated column user_id, got user_id, user_id, ",
        ),
    ],
)
def test_a_broken_inter_file(tmp_path, lines, header, words):
    with pytest.raises(DataError) as caught:
        load_world(write_inter(tmp_path / "x.inter", lines, header))
    assert words in str(caught.value)


# ---- any file


def worlds_files(folder):
    """A world in each format; the files of its interactions."""
    (folder / "toys").mkdir()
    write_folder(folder / "toys", train=[("u1", "[0]", 1), ("u2", "[]", 3)])
    rng = np.random.default_rng(0)
    lines = [f"u{u}\ti{i}\t3\t{t}" for u in range(20) for t, i in enumerate(rng.integers(30, size=6))]
    write_inter(folder / "toy.inter", lines)
    return {"toys": folder / "toys" / "Toys_test.csv", "toy.inter": folder / "toy.inter"}


def same(world, other):
    parts = ("train", "valid", "test")
    return np.array_equal(world.sids, other.sids) and all(
        np.array_equal(a, b)
        for part in parts
        for a, b in zip(vars(getattr(world, part)).values(), vars(getattr(other, part)).values())
    )


@pytest.mark.parametrize("where", ["toys", "toy.inter"])
def test_files_as_people_keep_them(tmp_path, where):
    """With a BOM, with Windows's line ends, gzipped: the same world."""
    path = worlds_files(tmp_path)[where]
    good, world = path.read_bytes(), load_world(tmp_path / where)
    for changed in (codecs.BOM_UTF8 + good, good.replace(b"\n", b"\r\n")):
        path.write_bytes(changed)
        assert same(load_world(tmp_path / where), world)
    path.unlink()
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(good))
    again = load_world(packed if where == "toy.inter" else tmp_path / where)
    assert same(again, world) and again.name == world.name
    packed.write_bytes(packed.read_bytes()[:-12])
    with pytest.raises(DataError, match=f"{packed.name}:.* not a whole gzip file"):
        load_world(packed if where == "toy.inter" else tmp_path / where)
    packed.write_bytes(good)
    with pytest.raises(DataError, match=f"{packed.name}:1: not a whole gzip file"):
        load_world(packed if where == "toy.inter" else tmp_path / where)


@pytest.mark.parametrize("where", ["toys", "toy.inter"])
def test_files_that_are_no_text_or_cut_or_no_files(tmp_path, where):
    path = worlds_files(tmp_path)[where]
    good = path.read_bytes()
    first, second, rest = good.split(b"\n", 2)
    for changed, words in (
        (b"\n".join([first, second.replace(b"u", b"\xff"), rest]), ":2: not UTF-8 text: invalid start byte"),
        (good.decode().encode("utf-16"), ":1: not UTF-8 text: invalid start byte"),
        (good[:-1], f":{good.count(bytes([10]))}: the file ends inside this line: was it cut?"),
        (good[:-2], f":{good.count(bytes([10]))}: the file ends inside this line: was it cut?"),
        (b"", ":1: expected a "),
        (b"0" * (reading.LONGEST_LINE + 1), ":1: expected lines of at most 16,777,216 bytes"),
    ):
        path.write_bytes(changed)
        with pytest.raises(DataError, match=re.escape(f"{path}{words}")):
            load_world(tmp_path / where)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=re.escape(f"{path}: expected a regular file")):
        load_world(tmp_path / where)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match=re.escape(f"{path}: expected a regular file")):
        load_world(tmp_path / where)


def test_an_index_that_is_no_text_gives_the_line_and_one_with_a_bom_is_read(tmp_path):
    write_folder(tmp_path)
    path = tmp_path / "Toys.index.json"
    good, world = path.read_bytes(), load_world(tmp_path)
    path.write_bytes(codecs.BOM_UTF8 + good)
    assert same(load_world(tmp_path), world)
    path.write_bytes(good.replace(b"<a_1>", b"<a_\xe9>", 1))
    with pytest.raises(
        DataError, match=f"Toys.index.json:{good[: good.index(b'<a_1>')].count(bytes([10])) + 1}: not UTF-8"
    ):
        load_world(tmp_path)


@given(st.sets(st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"])), min_size=3, max_size=9))
@example({"a\x0cb", "a\x1cb", "a\x85b", "a\u2028b", "a"})
def test_an_id_may_hold_what_unicode_calls_a_line_break(ids):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.inter"
        rows = [f"{user}\t{item}\t3\t{t}" for user in ids for t, item in enumerate(sorted(ids))]
        path.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
        timelines, items = recbole.read(path)
    assert items == len(ids) and [t.tolist() for t in timelines] == [list(range(items))] * items


@given(st.text())
def test_what_is_printed_is_one_line_without_control_characters(text):
    assert reading.printable(text).isprintable() and len(reading.printable(text).splitlines()) <= 1


@pytest.mark.parametrize("items", [3_000, 30_000])
def test_memory_is_linear_in_the_events_of_a_user(tmp_path, items):
    """A process with little more memory than its imports take: every event with its whole history would need 3.6 GB."""
    rng = np.random.default_rng(0)
    chosen = rng.permutation(30_000) % items
    write_inter(tmp_path / "x.inter", [f"u\ti{i}\t3\t{t}" for t, i in enumerate(chosen)])
    code = f"""
import resource, sklearn.cluster, sklearn.decomposition
from recast_ref.lab.worlds import load_world

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 700_000_000,) * 2)
print(len(load_world({str(tmp_path / "x.inter")!r}).test))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment)
    assert result.stdout == "1\n", result.stderr[-500:]


def test_no_world(tmp_path):
    with pytest.raises(FileNotFoundError, match="no world at"):
        load_world(tmp_path / "nope")
    (tmp_path / "a.txt").touch()
    (tmp_path / "a.item.json").touch()
    for name in ("a.txt", "a.item.json"):
        with pytest.raises(DataError, match="expected an .*index.json file, a folder with one, or a RecBole"):
            load_world(tmp_path / name)
