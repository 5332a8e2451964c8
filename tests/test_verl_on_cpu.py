"""The CPU platform for verl, without a trainer: samples, and log-probs under a catalogue. Skipped without verl."""

import pytest
import torch

pytest.importorskip("verl", reason="verl's trainer needs pip install -e '.[test,verl]'")

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer
from verl.utils.torch_functional import entropy_from_logits, logprobs_from_logits
from verl_on_cpu.catalogue import only_the_catalogue
from verl_on_cpu.rollout import Sampler
from verl_on_cpu.world import make_world

from recast_ref.trainers.sids import Trie

pytestmark = [pytest.mark.verl, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("verl"))


@pytest.fixture(scope="module")
def tokenizer(world):
    return AutoTokenizer.from_pretrained(world / "model")


@pytest.fixture(scope="module")
def catalogue(world):
    return (world / "catalogue.txt").read_text().split()


@pytest.fixture(scope="module", params=["catalogue", "whole vocabulary"])
def sampler(request, world, tokenizer, catalogue):
    trie = Trie(tokenizer(catalogue)["input_ids"], tokenizer.eos_token_id) if request.param == "catalogue" else None
    return Sampler(AutoModelForCausalLM.from_pretrained(world / "model"), tokenizer.eos_token_id, trie, seed=3)


def log_probs(sampler, prompt, answer, temperature=1.0):
    """Of an answer's tokens, over what the sampler draws from, by one forward pass: ``(T,)`` and ``(T, V)``."""
    with torch.no_grad():
        logits = sampler.model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] / temperature
    if sampler.trie:
        nodes = sampler.trie.paths(torch.tensor([answer]))[0, :-1]
        logits = logits.masked_fill(~sampler.trie.allowed(nodes, logits.shape[1]), -torch.inf)
    every = logits.log_softmax(dim=-1)
    return every[torch.arange(len(answer)), answer], every


prompts = st.lists(st.integers(2, 70), min_size=1, max_size=12)
few = settings(max_examples=10, deadline=None)


@few
@given(st.data())
def test_an_answer_depends_on_its_prompt_and_session_and_not_on_the_order_of_requests(sampler, data):
    requests = data.draw(st.lists(st.tuples(prompts, st.integers(0, 7)), min_size=1, max_size=6))
    order = data.draw(st.permutations(range(len(requests))))
    once = [sampler.sample(*request, length=4) for request in requests]
    again = {i: sampler.sample(*requests[i], length=4) for i in order}
    assert once == [again[i] for i in range(len(requests))]


def test_another_seed_step_prompt_or_session_is_another_draw(sampler):
    def answers():
        return [sampler.sample(prompt, session, 4)[0] for prompt in ([5, 9], [9, 5]) for session in range(8)]

    first, seed, step = answers(), sampler.seed, sampler.step
    assert len({tuple(answer) for answer in first}) > 12
    for name in ("seed", "step"):
        setattr(sampler, name, 100)
        assert sum(a == b for a, b in zip(first, answers())) < 4
        sampler.seed, sampler.step = seed, step
    assert answers() == first


@few
@given(
    prompt=prompts,
    session=st.integers(0, 100),
    length=st.integers(1, 5),
    temperature=st.sampled_from([0, 0.5, 1, 2]),
)
def test_answers_end_as_they_should_and_have_the_log_probs_that_they_were_drawn_by(
    sampler, tokenizer, catalogue, prompt, session, length, temperature
):
    answer, logps = sampler.sample(prompt, session, length, temperature)
    assert sampler.end not in answer[:-1]
    assert answer[-1] == sampler.end or len(answer) == length
    if sampler.trie and length >= 4:
        assert answer[-1] == sampler.end and tokenizer.decode(answer[:-1]) in catalogue
    own, every = log_probs(sampler, prompt, answer, temperature or 1.0)
    torch.testing.assert_close(torch.tensor(logps), own, atol=1e-4, rtol=1e-4)
    if temperature == 0:
        torch.testing.assert_close(own, every.max(dim=1).values, atol=1e-4, rtol=1e-4)


def test_sessions_are_draws_from_the_policy(sampler):
    draws, prompt = 300, [2, 4, 7, 1]
    first = torch.tensor([sampler.sample(prompt, session, 1)[0][0] for session in range(draws)])
    expected = log_probs(sampler, prompt, [first[0].item()])[1][0].exp()
    found = first.bincount(minlength=len(expected)) / draws
    assert ((found - expected).abs() <= 5 * (expected * (1 - expected) / draws).sqrt()).all()


@few
@given(prompt=prompts, chosen=st.lists(st.integers(0, 2047), min_size=2, max_size=6, unique=True))
def test_beams_are_the_best_answers_in_order(sampler, tokenizer, catalogue, prompt, chosen):
    """Where a search is as wide as the catalogue it finds all of it."""
    items = tokenizer([catalogue[i] for i in chosen])["input_ids"]
    narrow = Sampler(sampler.model, sampler.end, Trie(items, sampler.end))
    found = [narrow.beam(prompt, session, 4, len(items)) for session in range(len(items))]
    assert sorted(found) == sorted([*ids, sampler.end] for ids in items)
    totals = torch.stack([log_probs(narrow, prompt, answer)[0].sum() for answer in found])
    assert (totals.diff() <= 1e-4).all()


@few
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_the_engine_has_the_log_probs_and_entropies_of_the_trie(data, seed):
    """On rows of unequal lengths, by verl's own functions, with their gradients; other positions stay as they are."""
    length, vocabulary, end = 3, 9, 1
    answers = data.draw(st.lists(st.lists(st.integers(2, 8), min_size=length, max_size=length), min_size=1, max_size=8))
    trie = Trie(answers, end)
    rows = [[*answer, end] for answer in data.draw(st.lists(st.sampled_from(answers), min_size=1, max_size=4))]
    sizes = [data.draw(st.integers(1, 4)) for _ in rows]
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(len(rows), max(sizes) + length + 1, vocabulary, generator=generator)
    logits.requires_grad_()
    weight = torch.randn(2, len(rows), length + 1, generator=generator)

    masked = only_the_catalogue(trie, logits, jagged(rows, sizes))
    total, expected = 0, 0
    outside = torch.ones(logits.shape[:2], dtype=torch.bool)
    for row, (answer, size) in enumerate(zip(rows, sizes)):
        its, answer = slice(size - 1, size + length), torch.tensor(answer)
        outside[row, its] = False
        own = logprobs_from_logits(masked[row, its], answer), entropy_from_logits(masked[row, its])
        nodes = trie.paths(answer[None])[0, :-1]
        theirs = trie.logps(logits[row, its], nodes, answer)
        for i in range(2):
            torch.testing.assert_close(own[i], theirs[i])
            total = total + (weight[i, row] * own[i]).sum()
            expected = expected + (weight[i, row] * theirs[i]).sum()
    assert torch.equal(masked[outside], logits[outside])
    torch.testing.assert_close(*(torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (total, expected)))


def test_an_answer_outside_the_catalogue_is_refused_and_filler_is_not():
    trie, logits = Trie([[2, 3], [4, 5]], end=1), torch.zeros(2, 5, 9)
    batch = jagged([[2, 3, 1], [2, 5, 1]], [2, 2])
    with pytest.raises(ValueError, match=r"catalogue: .* \[2, 5, 1\]"):
        only_the_catalogue(trie, logits, batch)
    batch["loss_mask"] = torch.nested.nested_tensor([torch.ones(3), torch.zeros(3)], layout=torch.jagged)
    assert torch.equal(only_the_catalogue(trie, logits, batch)[1], logits[1])


def jagged(answers, prompt_lengths):
    columns = {
        "prompts": [torch.full((size,), 7) for size in prompt_lengths],
        "responses": [torch.tensor(answer) for answer in answers],
        "loss_mask": [torch.ones(len(answer)) for answer in answers],
    }
    return {name: torch.nested.nested_tensor(rows, layout=torch.jagged) for name, rows in columns.items()}
