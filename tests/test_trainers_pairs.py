"""What any trainer shares: which rows an update keeps, SIDs as text and token ids, and the trie of a catalogue."""

import random
import re

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from recast_ref.trainers.pairs import ARMS, branch_advantages, choose_pairs
from recast_ref.trainers.sids import OnlyTheTrie, Sids, Trie, pad_sids

T = torch.tensor


# ---- rows


@st.composite
def batches(draw, levels=(1, 3), sizes=(1, 4), groups=(0, 4)):
    """Flat rows of groups of unequal size, in any order, each row's tie key its own: arguments of ``choose_pairs``."""
    n = draw(st.integers(*levels))
    sid = st.tuples(*[st.sampled_from([0, 0, 1, 2])] * n)
    rows = []
    for group in range(draw(st.integers(*groups))):
        targets = draw(st.lists(sid, max_size=2))
        for _ in range(draw(st.integers(*sizes))):
            named = draw(st.lists(sid, max_size=2))
            gated = draw(st.sampled_from([None, None, 0.0, -0.5, 2.0]))  # a reward that does not go by the SIDs
            hit = float(any(s in targets for s in named))
            rows.append((f"q{group}", hit if gated is None else gated, named, targets))
    rows = draw(st.permutations(rows))
    keys = draw(st.permutations(range(len(rows))))
    return {
        "groups": [row[0] for row in rows],
        "rewards": T([row[1] for row in rows], dtype=torch.float32),
        "named": [row[2] for row in rows],
        "targets": [row[3] for row in rows],
        "tie_break": T(keys, dtype=torch.float32),
    }


def some_rows(batch, rows):
    """The batch of those rows, in that order."""
    return {name: x[rows] if torch.is_tensor(x) else [x[row] for row in rows] for name, x in batch.items()}


def by_group(batch):
    members = {}
    for row, group in enumerate(batch["groups"]):
        members.setdefault(group, []).append(row)
    return members


def plain(batch, group, rows, weight=1.0, negative_weight=None):
    """Repair and contrast of one group as loops: the rows of its pair (or none) and whether the first is the anchor."""
    reward, key = batch["rewards"].tolist(), batch["tie_break"].tolist()
    named, targets = batch["named"], batch["targets"][rows[0]]

    def score(row):
        best = [
            max([sum(a[:i] == b[:i] for i in range(1, len(a) + 1)) for b in targets], default=0)
            for a in set(named[row])
        ]
        return sum(10 ** (m - 1) if m else 0 for m in best) / max(len(best), 1)

    hits = [row for row in rows if reward[row] > 0]
    anchor = None
    if not hits and targets:
        anchor = min(rows, key=lambda row: (score(row), -key[row]))
    positive = anchor if anchor is not None else max(hits, key=lambda row: (reward[row], key[row]), default=None)
    if positive is None:
        return None, None, False
    names = {targets[0]} if positive == anchor else set(named[positive])
    misses = [row for row in rows if row != positive and reward[row] <= 0 and not (names and set(named[row]) == names)]
    negative = max(misses, key=lambda row: (score(row), key[row]), default=None)
    return (positive, negative, positive == anchor) if negative is not None else (None, None, False)


@given(batches())
def test_pairs_agree_with_plain_loops(path, batch):
    pairs = choose_pairs(**batch, functions=path)
    expected, anchors, skipped = [], {}, []
    for group, rows in by_group(batch).items():
        positive, negative, repaired = plain(batch, group, rows)
        if positive is None:
            skipped.append(group)
            continue
        expected += [positive, negative]
        if repaired:
            anchors[positive] = batch["targets"][positive][0]
    assert pairs.rows == expected and pairs.anchors == anchors and pairs.skipped == skipped
    assert pairs.repaired == [batch["groups"][row] for row in anchors]
    assert torch.equal(pairs.advantages, T([1.0, -1.0] * (len(expected) // 2)))


@given(batches(sizes=(3, 3)), st.sampled_from([None, 0.2]))
def test_where_no_rows_contradict_each_other_it_is_recast_to_the_bit(path, batch, negative_weight):
    members = list(by_group(batch).values())
    assume(members and not choose_pairs(**batch, functions=path).contradicted)
    levels = next((len(sid) for sids in (*batch["named"], *batch["targets"]) for sid in sids), 1)
    targets = pad_sids([batch["targets"][rows[0]] for rows in members], levels)
    named = pad_sids([batch["named"][row] for rows in members for row in rows], levels).unflatten(0, (-1, 3))
    rows = T(members)
    slot, positive, negative, advantages = path.recast(
        batch["rewards"][rows],
        path.structural_scores(named, targets),
        T([len(batch["targets"][group[0]]) > 0 for group in members]),
        negative_weight=negative_weight,
        tie_break=batch["tie_break"][rows],
    )
    pairs = choose_pairs(**batch, negative_weight=negative_weight, functions=path)
    kept = positive >= 0
    both = torch.stack([positive, negative], dim=1)[kept]
    assert pairs.rows == rows[kept].gather(1, both).flatten().tolist()
    assert torch.equal(pairs.advantages, advantages[kept].gather(1, both).flatten())
    assert torch.equal(pairs.every_advantage[rows], advantages)
    at = kept & (slot >= 0)
    assert list(pairs.anchors) == rows[at].gather(1, slot[at][:, None]).flatten().tolist()


@given(batches(), st.sampled_from(ARMS), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(batch, arm, shuffle):
    order = list(range(len(batch["groups"])))
    shuffle.shuffle(order)
    one, other = choose_pairs(**batch, arm=arm), choose_pairs(**some_rows(batch, order), arm=arm)
    where = {row: at for at, row in enumerate(order)}
    assert sorted(where[row] for row in one.rows) == sorted(other.rows)
    assert {where[row]: sid for row, sid in one.anchors.items()} == other.anchors
    assert torch.allclose(one.every_advantage[order], other.every_advantage, atol=1e-6)
    assert one.regimes == other.regimes
    for name in ("repaired", "skipped", "contradicted"):
        assert sorted(getattr(one, name)) == sorted(getattr(other, name))


@given(batches(), st.sampled_from(ARMS))
def test_groups_do_not_see_each_other(batch, arm):
    whole, members = choose_pairs(**batch, arm=arm), by_group(batch)
    rows, anchors, skipped = [], {}, []
    for mine in members.values():
        alone = choose_pairs(**some_rows(batch, mine), arm=arm)
        rows += [mine[row] for row in alone.rows]
        anchors |= {mine[row]: sid for row, sid in alone.anchors.items()}
        skipped += alone.skipped
        assert torch.equal(alone.every_advantage, whole.every_advantage[mine])
    assert whole.rows == rows and whole.anchors == anchors and whole.skipped == skipped


@given(batches(), st.sampled_from(ARMS))
def test_what_every_answer_has_in_common(batch, arm):
    before = {name: x.clone() if torch.is_tensor(x) else list(x) for name, x in batch.items()}
    pairs = choose_pairs(**batch, arm=arm)
    members = by_group(batch)
    assert all(torch.equal(batch[n], x) if torch.is_tensor(x) else batch[n] == x for n, x in before.items())
    hits = {group: sum(batch["rewards"][row] > 0 for row in rows) for group, rows in members.items()}
    assert {g: ("all_zero", "single_hit", "multi_hit")[min(hits[g], 2)] for g in members} == pairs.regimes
    assert len(pairs.rows) == len(set(pairs.rows)) == len(pairs.advantages)
    assert torch.equal(pairs.every_advantage[pairs.rows], pairs.advantages)
    assert pairs.every_advantage.count_nonzero() == pairs.advantages.count_nonzero()
    kept = {batch["groups"][row] for row in pairs.rows}
    assert kept.isdisjoint(pairs.skipped) and kept | set(pairs.skipped) == set(members)
    for row, sid in pairs.anchors.items():  # a group with a hit is untouched
        assert hits[batch["groups"][row]] == 0 and batch["targets"][row][0] == sid and row in pairs.rows
    assert arm != "contrast" or not pairs.anchors
    if arm != "repair":
        for positive, negative in zip(pairs.rows[::2], pairs.rows[1::2]):
            assert batch["groups"][positive] == batch["groups"][negative]
            names = [pairs.anchors[positive]] if positive in pairs.anchors else batch["named"][positive]
            assert set(names) != set(batch["named"][negative]) or not names


@given(batches(), st.booleans())
def test_the_repair_arm_keeps_whole_groups_with_the_advantages_of_grpo(path, batch, normalize):
    pairs = choose_pairs(**batch, arm="repair", normalize=normalize, eps=1e-4, functions=path)
    for group, rows in by_group(batch).items():
        rewards = batch["rewards"][rows].clone()
        anchor = [i for i, row in enumerate(rows) if row in pairs.anchors]
        rewards[anchor] = 1
        expected = path.group_advantages(rewards[None], normalize, 1e-4)[0]
        assert torch.equal(pairs.every_advantage[rows], expected)
        assert (group in pairs.skipped) == bool((expected == 0).all())
        assert len(anchor) == int((batch["rewards"][rows] <= 0).all() and len(batch["targets"][rows[0]]) > 0)


def test_a_format_gate_does_not_set_the_target_against_itself():
    target, near, far = (12, 7, 201), (12, 7, 40), (30, 2, 11)
    groups, targets = ["q"] * 3, [[target]] * 3
    exact = [[near], [target], [far]]  # the second names the target, in a form that the reward does not accept
    pairs = choose_pairs(groups, torch.zeros(3), exact, targets)
    assert pairs.rows == [2, 0] and pairs.anchors == {2: target} and pairs.contradicted == ["q"]
    only = choose_pairs(groups, torch.zeros(3), [[target]] * 3, targets)
    assert only.rows == [] and only.anchors == {} and only.skipped == only.contradicted == ["q"]
    assert torch.equal(only.every_advantage, torch.zeros(3))
    accepted = choose_pairs(groups, T([1.0, 0, 0]), [[target], [target, target], [near]], targets)
    assert accepted.rows == [0, 2] and accepted.contradicted == ["q"]


@pytest.mark.parametrize("arm", ARMS)
def test_nothing_to_pair(arm):
    for rewards, targets in ((torch.ones(3), [[(1,)]] * 3), (torch.zeros(3), [[]] * 3), (torch.zeros(0), [])):
        pairs = choose_pairs(["q"] * len(rewards), rewards, [[(0,)]] * len(rewards), targets, arm=arm)
        assert pairs.rows == [] and pairs.anchors == {} and len(pairs.advantages) == 0
        assert pairs.skipped == ["q"][: len(rewards)]


@given(st.integers(0, 3), st.integers(1, 4), st.data())
def test_branch_advantages_count_from_where_the_negative_leaves(n, length, data):
    rows = data.draw(
        st.lists(st.lists(st.integers(0, 1), min_size=length, max_size=length), min_size=2 * n, max_size=2 * n)
    )
    advantages = T([1.0, -0.2] * n)
    weighed = branch_advantages(advantages, T(rows, dtype=torch.int64).view(2 * n, length))
    for i in range(n):
        positive, negative = rows[2 * i], rows[2 * i + 1]
        assert weighed[2 * i].tolist() == [1.0] * length
        assert (
            weighed[2 * i + 1].tolist()
            == T([-0.2 * (positive[: t + 1] != negative[: t + 1]) for t in range(length)]).tolist()
        )


GOOD = {"groups": ["q", "q"], "rewards": torch.zeros(2), "named": [[(1, 2)], []], "targets": [[(1, 3)]] * 2}


@pytest.mark.parametrize(
    "bad, error, words",
    [
        ({"arm": "grpo"}, ValueError, "arm: expected one of recast, repair, contrast, got 'grpo'"),
        ({"rewards": [0.0, 0.0]}, TypeError, "rewards: expected a torch.Tensor, got list"),
        ({"rewards": torch.zeros(2, 1)}, ValueError, "rewards: expected shape (B,), got (2, 1)"),
        ({"rewards": T([0.0, float("nan")])}, ValueError, "rewards: expected finite values, got nan at [1]"),
        ({"groups": ["q"]}, ValueError, "groups: expected one for each of the 2 rewards, got 1"),
        (
            {"named": [[(1, 2)], [(1,)]]},
            ValueError,
            "named: expected SIDs of 2 codes as the first has, got (1,) in row 1",
        ),
        ({"targets": [[(1, 3)], []]}, ValueError, "targets: expected the same for all rows of group 'q', row 1 has []"),
        ({"tie_break": torch.zeros(3)}, ValueError, "tie_break: expected shape (B=2,), got (3,)"),
        ({"weight": 0}, ValueError, "weight: expected a finite number > 0, got 0"),
        ({"negative_weight": -1}, ValueError, "negative_weight: expected a finite number >= 0"),
    ],
)
def test_bad_rows_are_named(bad, error, words):
    with pytest.raises(error, match=re.escape(words)):
        choose_pairs(**{**GOOD, **bad})


# ---- SIDs as text


TEMPLATES = ["<s_a_{}><s_b_{}><s_c_{}>", "<a_{}><b_{}><c_{}>", "<a_{}>", "<a_{}><b_{}><c_{}><d_{}>", "(item {}, {})"]
codes = st.integers(0, 8191) | st.integers(0, 10**18 - 1)


@st.composite
def written(draw):
    """A form, SIDs, and a text with them between other text, pieces of SIDs among it."""
    sids = Sids(draw(st.sampled_from(TEMPLATES)))
    named = draw(st.lists(st.tuples(*[codes] * sids.levels), max_size=3))
    pieces = ["<|sid_begin|>", "<a_1>", "<s_a_1><s_b_2>", "<b_", "7", "><", "(item ", "\n"]
    other = (st.text(max_size=5) | st.sampled_from(pieces)).filter(lambda piece: not sids.read(piece))
    text = draw(other)
    for sid in named:
        text += sids.write(sid) + draw(other)
    return sids, named, text


@given(written(), st.text(max_size=5))
def test_what_is_written_is_read_back_whatever_stands_around_it(drawn, thought):
    sids, named, text = drawn
    assert sids.read(text) == named
    assert sids.read(f"<think>{thought}{sids.write((3,) * sids.levels)}</think>{text}") == named
    assert sids.read(text.replace("><", "> <")) == named  # as some tokenizers decode


@given(st.sampled_from(TEMPLATES[:4]), st.lists(codes, min_size=4, max_size=4), st.text(max_size=3))
def test_the_form_of_a_sid_is_seen_in_one(template, numbers, around):
    text = Sids(template).write(numbers[: template.count("{}")])
    assume(not re.search("[<>a-z_]", around))
    assert Sids.like(around + text + around).template == template
    assert Sids.like(text + text).template == template


@pytest.mark.parametrize(
    "text",
    ["", "<a_1><b_2>", "<a_1><c_3><b_2>", "<a_1><b_2><b_3>", "<a_1><b_2><c_>", "<a_01><b_2><c_3>", "<a_1>,<b_2><c_3>"]
    + ["<a_1><b_2><c_-3>", "<A_1><b_2><c_3>", "<s_a_1><s_b_2><s_c_3>", f"<a_{10**19}><b_2><c_3>", "<a_١><b_2><c_3>"]
    + ["<think><a_1><b_2><c_3></think>", "<think><a_1><b_2><c_3>", "<a_1><b_2><c_3></think>"],
)
def test_garbage_is_not_a_sid(text):
    assert Sids("<a_{}><b_{}><c_{}>").read(text) == []


@pytest.mark.parametrize("template", ["", "item", "{}", "{}-{}", "<a_{}{}>", "<a_{}>1{}>", "<a_1{}>"])
def test_a_template_that_could_not_be_read_back_is_refused(template):
    with pytest.raises(ValueError, match="sid_template: expected text with a {} for each code"):
        Sids(template)


def test_a_text_without_a_sid_has_no_form():
    with pytest.raises(ValueError, match="expected a SID such as .* got 'B00001'; give sid_template"):
        Sids.like("B00001")


class Letters:
    """A tokenizer with a token for each run of characters that ``pieces`` matches, and for each other character."""

    def __init__(self, pieces=r"<\|\w+\|>|</?think>|<[a-z]_[0-9]+>"):
        self.pieces, self.words = pieces, []

    def encode(self, text):
        return [self._id(word) for word in re.findall(f"{self.pieces}|.", text, re.DOTALL)]

    def __call__(self, text, **_):
        return {"input_ids": self.encode(text)}

    def _id(self, word):
        if word not in self.words:
            self.words.append(word)
        return self.words.index(word)

    def batch_decode(self, rows, **_):
        return ["".join(self.words[i] for i in row) for row in rows]


@given(written(), st.sampled_from([Letters(), Letters("(?!x)x")]))
def test_token_ids_are_read_through_their_text(drawn, tokenizer):
    """One token a code, or one a character."""
    sids, named, text = drawn
    ids = tokenizer.encode(text)
    assert sids.read_ids(tokenizer, [ids, []]) == [named, []]
    found = sids.find(tokenizer, ids)
    assert (found is None) == (named == [])
    if named:
        start, end = found
        assert tokenizer.batch_decode([ids[start:end]]) == [sids.write(named[-1])]
        assert sids.read_ids(tokenizer, [ids[:start]])[0] == named[:-1]


SHARED = Letters(r"<\|\w+\|>|</?think>|[ \n]<|>[.<]|.")  # tokens that hold characters around a SID too


@given(written(), st.sampled_from([Letters(), Letters("(?!x)x"), SHARED]), st.data())
def test_what_stands_around_the_sid_that_gives_way_stays(drawn, tokenizer, data):
    sids, named, text = drawn
    assume(named)
    sid = data.draw(st.tuples(*[codes] * sids.levels))
    end = tokenizer._id("<|end|>")
    anchor = sids.overwrite(tokenizer, tokenizer.encode(text), sid, [end], limit=10**6)
    before = text[: text.rindex(sids.write(named[-1]))]
    assert tokenizer.batch_decode([anchor])[0].startswith(before + sids.write(sid)) and anchor[-1] == end


def test_a_token_that_the_sid_shares_with_text_around_it_is_written_again():
    answer, end = SHARED.encode("ok</think> <a_3>."), SHARED._id("<|end|>")
    anchor = Sids("<a_{}>").overwrite(SHARED, answer, (7,), [end], limit=100)
    assert SHARED.batch_decode([anchor]) == ["ok</think> <a_7>.<|end|>"]


# ---- the trie


def tries(items=(1, 6), length=(1, 3), tokens=4):
    answer = st.lists(st.integers(0, tokens - 1), min_size=length[0], max_size=length[1])
    return st.lists(answer, min_size=items[0], max_size=items[1])


END = 5


def after(answers, prefix):
    """What may follow, by looking through the list."""
    follow = {
        row[len(prefix)]
        for row in ([*a, END] for a in answers)
        if row[: len(prefix)] == prefix and len(row) > len(prefix)
    }
    return follow or {END}


@given(tries(), st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=1, max_size=4))
@example([[0]], [[0, 5, 0]])
@example([[0, 1], [0]], [[0, 1, 5], [0, 5, 5]])  # one answer is the beginning of another
def test_a_trie_allows_what_the_list_of_answers_allows(answers, rows):
    trie = Trie(answers, END)
    nodes = trie.paths(T(rows))
    for row, path in zip(rows, nodes):
        for t in range(4):
            allowed = trie.allowed(path[t : t + 1], 9)[0].nonzero().flatten().tolist()
            assert set(allowed) == after(answers, row[:t]), (row, t)
            assert (path[t] >= 0) == any([*a, END][:t] == row[:t] for a in answers)


@given(tries(), st.data())
def test_a_walk_along_the_trie_names_an_item_and_ends(answers, data):
    """A prompt of any width, and a prefix that has left the trie: it ends."""
    trie, width = Trie(answers, END), data.draw(st.integers(0, 3))
    only, row = OnlyTheTrie(trie), [0] * width
    for _ in range(4):
        scores = only(T([row], dtype=torch.int64).view(1, -1), torch.zeros(1, 9))
        row.append(data.draw(st.sampled_from((scores[0] == 0).nonzero().flatten().tolist())))
        assert ((scores == 0) | (scores == -torch.inf)).all()
    answer = row[width:]
    assert answer[: answer.index(END)] in answers and set(answer[answer.index(END) :]) == {END}
    lost = OnlyTheTrie(trie)
    lost(torch.zeros(1, width, dtype=torch.int64), torch.zeros(1, 9))
    scores = lost(T([[0] * width + [8]]), torch.zeros(1, 9))
    assert scores[0].argmax() == END and (scores[0] == 0).sum() == 1


@given(tries(items=(2, 5)), st.data())
def test_logps_are_those_of_the_softmax_over_what_is_allowed(answers, data):
    trie = Trie(answers, END)
    answer = [*data.draw(st.sampled_from(answers)), END]
    values = st.lists(st.floats(-8, 8, width=16), min_size=7, max_size=7)
    logits = T(data.draw(st.lists(values, min_size=len(answer), max_size=len(answer))), requires_grad=True)
    nodes = trie.paths(T([answer]))[0, :-1]
    logps, entropies = trie.logps(logits, nodes, T(answer))
    for t, token in enumerate(answer):
        inside = sorted(after(answers, answer[:t]))
        expected = torch.distributions.Categorical(logits=logits[t, inside].double())
        assert logps[t].item() == pytest.approx(expected.logits[inside.index(token)].item(), abs=1e-5)
        assert entropies[t].item() == pytest.approx(expected.entropy().item(), abs=1e-5)
    (logps.sum() + entropies.sum()).backward()
    outside = ~trie.allowed(nodes, 7)
    assert logits.grad.isfinite().all() and (logits.grad[outside] == 0).all()
    again = trie.logps(logits, nodes, T(answer), entropy_gradient=False)
    assert torch.equal(again[0], logps) and torch.equal(again[1], entropies) and not again[1].requires_grad
    half = trie.logps(logits.detach().half(), nodes, T(answer))[0]
    assert half.dtype == torch.float32


def test_a_catalogue_of_a_million_items():
    """No table of nodes x vocabulary: that would be 10^10 cells."""
    generator = random.Random(0)
    answers = [[generator.randrange(8192), 8192 + generator.randrange(8192), 16384 + i % 8192] for i in range(10**6)]
    trie = Trie(answers, 24576)
    assert len(trie.edges) < 4 * 10**6
    rows = T([[*answer, 24576] for answer in answers[::1000]])
    nodes = trie.paths(rows)
    assert (nodes >= 0).all()
    assert trie.allowed(nodes[:, 2], 24577)[torch.arange(1000), rows[:, 2]].all()


@pytest.mark.parametrize("answers", [[], [[1], []]])
def test_an_empty_catalogue_is_refused(answers):
    with pytest.raises(ValueError, match="catalogue: expected at least one item, and no empty one"):
        Trie(answers, END)
