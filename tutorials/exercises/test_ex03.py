import itertools

import pytest
import torch

from recast_ref.reference import group_advantages, policy_loss, repair


@pytest.mark.ex03_1
def test_add_gt(ex):
    rewards = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1]])
    before = rewards.clone()
    slot, new, lost = ex.add_gt(rewards)
    assert torch.equal(rewards, before)
    assert slot.tolist() == [2] * 5 and slot.dtype == torch.int64
    assert new.tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 1], [1, 1, 1], [1, 0, 1]]
    assert lost.tolist() == [False, True, False, True, False]


def pulls(p, g):
    """By all groups of two items, the first one the target: how hard the update pulls, without repair and with it."""
    pulls = []
    for mend in (False, True):
        logits = torch.tensor([p, 1 - p], dtype=torch.float64).log().requires_grad_()
        logps, gain = logits.log_softmax(dim=0), 0.0
        for group in itertools.product((0, 1), repeat=g):
            items = torch.tensor(group)
            rewards = (items == 0).double()[None]
            chance = logps.detach()[items].sum().exp()
            if mend:
                slot, rewards, _ = repair(rewards, rewards)
                items = items.masked_fill(torch.arange(g) == slot, 0)
            gain = gain + chance * (group_advantages(rewards, normalize=False)[0] * logps[items]).mean()
        pulls.append(torch.autograd.grad(gain, logits)[0][0].item())
    return pulls


@pytest.mark.ex03_2
@pytest.mark.parametrize("p, g", [(0.1, 2), (0.01, 8), (0.3, 5), (0.9, 3)])
def test_sft_share(ex, p, g):
    plain, mended = pulls(p, g)
    assert ex.sft_share(p, g) == pytest.approx(1 - plain / mended, rel=1e-6)


@pytest.mark.ex03_2
def test_sft_share_at_the_ends(ex):
    assert ex.sft_share(0.0, 8) == 1 and ex.sft_share(1.0, 8) == 0
    assert ex.sft_share(0.5, 1) == 0 and ex.sft_share(0.0, 1) == 0


@pytest.mark.ex03_3
@pytest.mark.parametrize("advantage", [1.0, -1.0, 2.0])
@pytest.mark.parametrize("clips", [{}, {"clip_low": 0.4, "clip_high": 0.1}])
def test_forgotten_weights(ex, advantage, clips):
    generator = torch.Generator().manual_seed(0)
    anchor, replaced = (-2 * torch.rand(50, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    mask, advantages = torch.ones(50, 3), torch.full((50,), advantage, dtype=torch.float64)

    def gradient(old):
        logps = anchor.clone().requires_grad_()
        policy_loss(logps, old, advantages, mask, dual_clip=1e9, **clips).loss.backward()
        return logps.grad

    expected = gradient(replaced) / gradient(anchor)
    assert torch.allclose(ex.forgotten_weights(anchor, replaced, advantage, **clips), expected)
