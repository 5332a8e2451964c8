"""Solutions of tutorial 9."""

import torch

from recast_ref.reference import group_advantages
from recast_ref.testing import breaks, demand
from recast_ref.testing.laws import index

T = torch.tensor


def counterexamples():
    return {
        # Two misses with a score each take a part of the -1.
        "sparsity": {"rewards": T([[1.0, 0, 0]]), "scores": T([[1.0, 0.1, 0.1]])},
        # The only miss has a score of 0: nobody takes the -1.
        "zero_sum": {"rewards": T([[1.0, 0]]), "scores": T([[1.0, 0]])},
        # Shares of a sum are not shares of places: 0.1 and 0.3 are 1 : 3, the places 0 and 1 are not, nor are 1 and 2.
        "only_the_order_of_scores": {
            "rewards": T([[1.0, 0, 0]]),
            "scores": T([[1.0, 0.1, 0.3]]),
            "scale": 1.0,
            "shift": 1.0,
        },
    }


@breaks(
    "agreement", "by_hand", "spread_is_one", because="the baseline is the mean of the others, and nothing is divided"
)
def leave_one_out(rewards):
    # r - (sum - r) / (G - 1). It is Dr. GRPO's advantage times G / (G - 1): the sum is 0 still.
    size = rewards.shape[1]
    if size < 2:
        return torch.zeros_like(rewards, requires_grad=False)
    return group_advantages(rewards, normalize=False) * (size / (size - 1))


def bystanders(subject, case):
    """Leaving out a response that was not chosen changes nothing for the others."""
    got = subject.answer(case)
    place = torch.arange(case["rewards"].shape[1])
    chosen = got["advantages"][0] != 0
    if "slot" in got:  # a rule like contrast answers none; asking for it would make the law say nothing
        chosen = chosen | (place == got["slot"][0])
    for bystander in place[~chosen]:
        rest = place[place != bystander]
        without = subject.answer(index(subject.kind, case, "G", rest))
        unchanged = torch.equal(without["advantages"], got["advantages"][:, rest])
        demand(unchanged, f"leaving out response {bystander} changes the advantages of others", got)
