import pytest
import torch

from recast_ref.reference import branch_mask, policy_loss, recast_from_sids


@pytest.mark.ex04_1
@pytest.mark.parametrize("shared", [None, 0, 2])
@pytest.mark.parametrize("weight, negative_weight", [(1.0, 1.0), (1.0, 0.3), (2.0, 0.0)])
@pytest.mark.parametrize("lengths", [(3, 3), (3, 5), (4, 2)])
def test_fresh_loss(ex, weight, negative_weight, lengths, shared):
    place = torch.arange(max(lengths))
    advantages = torch.stack([torch.full(place.shape, weight), -negative_weight * (place >= (shared or 0))])
    logps = -torch.rand(advantages.shape, generator=torch.Generator().manual_seed(0))
    loss = policy_loss(logps, logps, advantages, place < torch.tensor(lengths)[:, None]).loss.item()
    assert ex.fresh_loss(weight, negative_weight, lengths, shared) == pytest.approx(loss, abs=1e-6)


@pytest.mark.ex04_2
@pytest.mark.parametrize("p1, p2, g", [(0.3, 0.5, 8), (0.5, 0.9, 2), (0.1, 0.2, 4)])
def test_chance_to_learn(ex, p1, p2, g):
    n, generator = 20_000, torch.Generator().manual_seed(0)
    right = torch.rand(n, g, 2, generator=generator) < torch.tensor([p1, p2])
    answers = torch.cat([2 - right.long(), torch.full((n, g, 1), 2)], dim=-1)  # the target is (1, 1, 1)
    target = torch.ones(n, 1, 3, dtype=torch.int64)
    picked = recast_from_sids(answers[:, :, None], target)
    negative = answers[torch.arange(n), picked.negative]
    simulated = branch_mask(target[:, 0], negative).float().mean(dim=0)
    assert list(ex.chance_to_learn(p1, p2, g)) == pytest.approx(simulated.tolist(), abs=0.015)


@pytest.mark.ex04_3
@pytest.mark.parametrize("g", [1, 2, 8])
def test_mean_push(ex, g):
    policy = torch.tensor([0.5, 0.3, 0.15, 0.05])
    n = 200_000
    draws = torch.multinomial(policy, n * g, replacement=True, generator=torch.Generator().manual_seed(0)).view(n, g)
    simulated = policy - draws.amin(dim=1).bincount(minlength=4) / n
    assert torch.allclose(ex.mean_push(policy, g), simulated, atol=0.006)
