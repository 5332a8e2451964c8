import pytest
import torch

from recast_ref.reference import structural_scores


@pytest.mark.ex02_1
@pytest.mark.parametrize("levels", [1, 2, 3, 5])
def test_longest_safe_list(ex, levels):
    longest = ex.longest_safe_list(levels)
    target = torch.arange(1, levels + 1)
    far = torch.stack([torch.full((levels,), 100 + i) for i in range(11)])
    near = target.clone()
    near[-1] = 99  # the best a single miss can be

    def u(sids):
        return structural_scores(sids[None, None], target[None, None]).item()

    if levels == 1:
        assert longest is None
    else:
        assert u(torch.cat([target[None], far[: longest - 1]])) >= u(near[None])
        assert u(torch.cat([target[None], far[:longest]])) < u(near[None])


@pytest.mark.ex02_2
def test_best_answers(ex):
    sids = torch.tensor([[2, 1, 1]] + [[1, 1, c] for c in range(100)])
    chances = torch.tensor([0.05] + [0.006] * 99 + [0.007])
    assert ex.best_answers(sids, chances) == (0, 100)  # the tutorial's example, with one item a little more popular
    assert ex.best_answers(sids, torch.tensor([0.2] + [0.006] * 99 + [0.007])) == (0, 0)
    # The target of a prefix need not lie in the prefix of the most probable item.
    sids = torch.tensor([[1, 1], [2, 1], [2, 2], [2, 3]])
    assert ex.best_answers(sids, torch.tensor([0.30, 0.24, 0.23, 0.23])) == (0, 0)
    assert ex.best_answers(sids, torch.tensor([0.27, 0.25, 0.24, 0.24])) == (0, 1)


@pytest.mark.ex02_3
def test_without_sets(ex):
    hit, near, far, none = [12, 7, 201], [12, 7, 40], [30, 2, 11], [-1, -1, -1]
    predictions = torch.tensor([[[hit, hit, far], [near, near, none], [none, none, none], [none, far, hit]]])
    targets = torch.tensor([[hit, none]])
    assert ex.without_sets(predictions, targets)[0].tolist() == pytest.approx([2 / 3, 0.1, 0, 0.5])
    assert ex.without_sets(predictions, targets[:, 1:])[0].tolist() == [0, 0, 0, 0]
    two_prompts = torch.cat([predictions, predictions.flip(1)])
    two_targets = torch.tensor([[hit, none], [far, near]])
    assert ex.without_sets(two_prompts, two_targets)[1].tolist() == pytest.approx([0.55, 0, 1, 0.4])
