import itertools

import pytest
import torch

from recast_ref.reference import policy_loss
from recast_ref.trainers.sids import Trie

HOW = {"token": "token-mean", "row": "seq-mean-token-mean"}


@pytest.mark.ex10_1
@pytest.mark.parametrize("average", ["token", "row"])
@pytest.mark.parametrize(
    "advantages, lengths",
    [
        ([1.0, -1.0], [4, 4]),  # as published: 0
        ([1.0, -0.2, 1.0, -0.2], [4, 4, 4, 4]),
        ([1.0, -1.0], [9, 4]),  # a thought in front of one
        ([2.5, -0.4, -0.4, -0.4, -0.4, -0.4, -0.5], [3, 4, 5, 6, 7, 8, 9]),
    ],
)
def test_first_loss(ex, advantages, lengths, average):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    logps = torch.zeros(mask.shape)
    expected = policy_loss(logps, logps, torch.tensor(advantages), mask=mask, aggregate=HOW[average]).loss
    assert float(ex.first_loss(advantages, lengths, average)) == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.ex10_2
@pytest.mark.parametrize("width", [2, 3])
def test_all_zero_bounds(ex, width):
    """Every batch of five groups lies within; and with the same logs some reach the bounds."""
    found = {}
    for hits in itertools.combinations_with_replacement(range(width + 1), 5):
        logged = sum(hits) / (5 * width), sum(count in (0, width) for count in hits) / 5
        found.setdefault(logged, []).append(hits.count(0) / 5)
    for (reward, zero_std), shares in found.items():
        low, high = ex.all_zero_bounds(reward, zero_std, width)
        assert low - 1e-9 <= min(shares) and max(shares) <= high + 1e-9, (reward, zero_std)
        assert min(shares) - low < 0.2 and high - max(shares) < 0.2, (reward, zero_std)  # a fifth is one group


@pytest.mark.ex10_2
@pytest.mark.parametrize(
    "reward, zero_std, width, bounds",
    [
        (0.0, 1.0, 8, (1.0, 1.0)),
        (1.0, 1.0, 8, (0.0, 0.0)),
        (0.3, 1.0, 8, (0.7, 0.7)),
        (0.01, 0.92, 8, (0.92, 0.92)),  # one hit in each group that has one
        (0.5, 0.6, 8, (0.15, 0.45)),
    ],
)
def test_all_zero_bounds_by_hand(ex, reward, zero_std, width, bounds):
    assert ex.all_zero_bounds(reward, zero_std, width) == pytest.approx(bounds)


@pytest.mark.ex10_3
def test_logps_under(ex):
    draw = torch.Generator().manual_seed(0)
    answers = [list(codes) + [9] for codes in itertools.product((1, 2), (3, 4, 5), (1, 6)) if sum(codes) % 4]
    trie, total = Trie([answer[:-1] for answer in answers], end=9), 0.0
    by_node = torch.randn(len(trie.edges) + 1, 12, generator=draw)  # the logits after each beginning
    for answer in answers:
        nodes = trie.paths(torch.tensor([answer]))[0, :-1]
        logits = by_node[nodes]
        got = ex.logps_under(logits, answer, answers)
        torch.testing.assert_close(got, trie.logps(logits, nodes, torch.tensor(answer))[0])
        total += got.sum().exp().item()
    assert total == pytest.approx(1)
