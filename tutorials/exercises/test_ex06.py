import pytest
import torch

PROMPTS = torch.tensor([10, 20, 7])
RESPONSES = torch.tensor([[3, 5, 1], [2, 2, 9], [4, 4, 4]])
PAIRS = torch.tensor([[True, True, False], [False, True, True], [False, False, False]])
ALL = torch.ones(3, 3, dtype=torch.bool)


@pytest.mark.ex06_1
@pytest.mark.parametrize(
    "kept, share_prompt, count",
    [
        (ALL, False, 3 * 37 + 34),
        (ALL, True, 37 + 34),
        (PAIRS, False, 2 * 10 + 8 + 2 * 20 + 11),
        (PAIRS, True, 10 + 8 + 20 + 11),  # nobody reads the prompt of a group that was skipped
        (torch.zeros(3, 3, dtype=torch.bool), True, 0),
    ],
)
def test_step_tokens(ex, kept, share_prompt, count):
    assert int(ex.step_tokens(PROMPTS, RESPONSES, kept, share_prompt)) == count


@pytest.mark.ex06_2
@pytest.mark.parametrize("prompt, response", [(31, 2), (500, 3), (30, 3), (3, 100), (1, 1), (10**17, 3)])
def test_break_even(ex, prompt, response):
    g = ex.break_even(prompt, response)
    assert isinstance(g, int)
    assert 2 * (prompt + response) < prompt + g * response
    assert not 2 * (prompt + response) < prompt + (g - 1) * response


@pytest.mark.ex06_3
@pytest.mark.parametrize(
    "rollout, update, g, width",
    [
        (1, 0, 8, 8),  # a free update: nothing to gain
        (1, 1, 8, 14),
        (2, 7, 32, 137),
        (4, 1, 8, 9),
        (1, 5, 2, 2),  # a group of two already is the pair
    ],
)
def test_affordable_width(ex, rollout, update, g, width):
    assert ex.affordable_width(rollout, update, g) == width
