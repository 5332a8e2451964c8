import math

import pytest
import torch

ROLLOUTS = [0, 10, 20, 40, 80]


@pytest.mark.ex07_1
@pytest.mark.parametrize(
    "baseline, arm, share",
    [
        ([1, 2, 3, 4, 4], [1, 2, 4, 5, 6], 0.25),
        ([1, 2, 3, 4, 4], [1, 5, 3, 5, 6], 0.5),  # the first crossing did not last
        ([1, 2, 6, 5, 4], [1, 2, 3, 4, 4], 0.5),  # the end counts, not the best
        ([1, 2, 3, 4, 4], [1, 5, 5, 5, 3], None),
        ([3, 2, 2, 2, 2], [3, 2, 2, 3, 3], 0.0),
    ],
)
def test_lasting_budget(ex, baseline, arm, share):
    assert ex.lasting_budget(ROLLOUTS, baseline, arm) == share


@pytest.mark.ex07_2
@pytest.mark.parametrize(
    "p, g, cost",
    [
        ([0.5], 2, 4.0),
        ([0.1, 0.5], 2, 2 / 0.34),
        ([0.0, 0.5], 2, 8.0),  # half of the draws are for nothing
        ([1.0, 0.5], 4, 4 / 0.4375),
        ([0.0, 1.0], 8, math.inf),
    ],
)
def test_resampling_cost(ex, p, g, cost):
    assert float(ex.resampling_cost(torch.tensor(p), g)) == pytest.approx(cost, rel=1e-5)


@pytest.mark.ex07_3
def test_difference(ex):
    assert ex.difference([1.0, 5.0, 9.0], [2.0, 7.0, 10.0]) == pytest.approx((4 / 3, 1 / 3))
    assert ex.difference([3.0, 3.0], [2.0, 2.0]) == pytest.approx((-1.0, 0.0))
