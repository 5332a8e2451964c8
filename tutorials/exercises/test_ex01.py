import pytest
import torch

from recast_ref.reference import group_advantages

REWARDS = torch.tensor([[0.0, 0, 0, 0], [1.0, 0, 0, 0], [1.0, 1, 0, 0], [1.0, 1, 1, 1]])


@pytest.mark.ex01_1
def test_advantages_without_spread(ex):
    assert torch.equal(ex.advantages_without_spread(REWARDS), group_advantages(REWARDS, normalize=False))


@pytest.mark.ex01_2
@pytest.mark.parametrize(
    "p, g, chance", [(0.5, 2, 0.5), (0.01, 8, 0.0773), (0.9, 4, 0.3438), (0.3, 1, 0.0), (0.0, 8, 0.0)]
)
def test_chance_of_signal(ex, p, g, chance):
    assert ex.chance_of_signal(p, g) == pytest.approx(chance, abs=1e-4)


@pytest.mark.ex01_3
def test_wasted(ex):
    assert ex.wasted(REWARDS) == 0.5  # the first and the last group
    assert ex.wasted(REWARDS[1:3]) == 0
    assert ex.wasted(torch.full((2, 7), 0.7)) == 1  # alike, whatever they are
    assert ex.wasted(torch.tensor([[-1.0, 1, -1], [-1.0, -1, -1]])) == 0.5
