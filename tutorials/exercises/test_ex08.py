import math

import pytest
import torch

INF = math.inf


def part(row):
    largest = max(row, default=-INF)
    return largest, sum(math.exp(x - largest) for x in row if x > -INF)


@pytest.mark.ex08_1
@pytest.mark.parametrize(
    "a, b",
    [
        ([1.0, 3.0], [2.0, 5.0, 1.0]),
        ([5.0], [1.0, 1.0]),
        ([1000.0, 999.0], [-1000.0]),
        ([-INF, 2.0], [-INF]),
        ([], [2.0, 3.0]),
        ([-INF], [-INF, -INF]),
    ],
)
def test_join(ex, a, b):
    for one, other in ((a, b), (b, a)):
        assert ex.join(part(one), part(other)) == pytest.approx(part(a + b))


@pytest.mark.ex08_1
def test_join_keeps_a_nan(ex):
    for other in (part([1.0]), part([1000.0]), part([]), part([-1000.0])):
        broken = (0.0, math.nan)
        assert math.isnan(ex.join(broken, other)[1]) and math.isnan(ex.join(other, broken)[1])


def exact(rows):
    logps = rows.double().log_softmax(dim=-1)
    return -torch.where(logps.isfinite(), logps.exp() * logps, 0.0).sum(dim=-1)


@pytest.mark.ex08_2
@pytest.mark.parametrize(
    "row",
    [
        [1.0, 3.0, 2.0, 5.0, 1.0],
        [5.0, 3.0, 3.0, 1.0],
        [0.0] * 100,
        [7.0],
        [1000.0, 999.0, 998.0],
        [-1000.0, -999.5],
        [-INF, 2.0, 1.0],
        [2.0, -INF, 3.0, -INF],
    ],
)
def test_entropy(ex, row):
    assert ex.entropy(iter(row)) == pytest.approx(exact(torch.tensor(row)).item(), abs=1e-9)


def kept(logits):
    return logits.double().logsumexp(dim=1), exact(logits)


@pytest.mark.ex08_3
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_entropy_gradient(ex, dtype):
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(5, 40, generator=generator)).to(dtype)
    g = torch.randn(5, generator=generator)
    leaf = logits.double().requires_grad_()
    (expected,) = torch.autograd.grad((exact(leaf) * g).sum(), leaf)
    got = ex.entropy_gradient(logits, *kept(logits), g)
    assert got.dtype == dtype and got.shape == logits.shape
    if dtype == torch.float32:
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-6)
    else:  # half a unit in the last place and a little
        torch.testing.assert_close(got.double(), expected, rtol=2**-8, atol=1e-6)


@pytest.mark.ex08_3
def test_entropy_gradient_of_the_impossible(ex):
    logits = torch.tensor([[0.0, -INF, 1.0], [4.0, -INF, -INF]])
    got = ex.entropy_gradient(logits, *kept(logits), torch.ones(2))
    short = ex.entropy_gradient(logits[:1, ::2], *kept(logits[:1, ::2]), torch.ones(1))
    assert torch.equal(got[:, 1], torch.zeros(2)) and (got[1] == 0).all()
    torch.testing.assert_close(got[:1, ::2], short)
