import pytest
import torch

from recast_ref.reference import policy_loss
from recast_ref.reference.losses import AGGREGATES


@pytest.mark.ex05_1
@pytest.mark.parametrize("settings", [{}, {"clip_low": 0.0, "clip_high": 3.0, "dual_clip": 1.5}, {"dual_clip": 1e12}])
def test_slope(ex, settings):
    log_ratio = torch.tensor([-25.0, -19.0, -1.0, -0.3, -0.1, 0.0, 0.1, 0.3, 0.5, 1.0, 1.2, 3.0, 19.0, 25.0])
    log_ratio, advantages = torch.cartesian_prod(log_ratio + 1e-3, torch.tensor([2.0, 0.5, 0.0, -0.5, -2.0])).unbind(
        dim=1
    )
    old = -torch.rand(len(log_ratio), generator=torch.Generator().manual_seed(0))
    logps = (old + log_ratio)[:, None].requires_grad_()
    loss = policy_loss(logps, old[:, None], advantages, torch.ones_like(logps), **settings).loss * len(logps)
    wanted = torch.autograd.grad(loss, logps)[0].flatten()
    assert torch.allclose(ex.slope(logps.detach().flatten(), old, advantages, **settings), wanted, atol=1e-5)


@pytest.mark.ex05_2
def test_k3_pull(ex):
    generator = torch.Generator().manual_seed(0)
    for n in (2, 3, 10):
        logits = torch.randn(n, dtype=torch.float64, generator=generator, requires_grad=True)
        reference = torch.randn(n, dtype=torch.float64, generator=generator).softmax(dim=0)
        now = logits.log_softmax(dim=0)
        s = reference.log() - now
        mean = (now.detach().exp() * (s.exp() - s - 1)).sum()  # over draws, which are held fixed
        assert torch.allclose(ex.k3_pull(now.detach().exp(), reference), torch.autograd.grad(mean, logits)[0])


@pytest.mark.ex05_3
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_of_microbatches(ex, aggregate):
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(6) < torch.tensor([1, 6, 2, 0, 5, 0, 3, 0])[:, None]
    logps, old = (-torch.rand(2, 8, 6, generator=generator)).unbind()
    advantages = torch.randn(8, generator=generator)
    parts = [slice(0, 3), slice(3, 4), slice(4, 8)]  # the second has no token
    losses = [policy_loss(logps[p], old[p], advantages[p], mask[p], aggregate=aggregate).loss.item() for p in parts]
    whole = policy_loss(logps, old, advantages, mask, aggregate=aggregate).loss.item()
    assert ex.of_microbatches(losses, [mask[p] for p in parts], aggregate) == pytest.approx(whole, abs=1e-5)
    assert ex.of_microbatches([0.0], [mask[3:4]], aggregate) == 0
