"""Exercises of tutorial 9. ``pytest tutorials/exercises -m ex09`` checks them."""


def counterexamples():
    """Exercise 1. Groups that break laws for this rule, which stands in for ``contrast``:

        up = rewards / rewards.sum(dim=1, keepdim=True).clamp(min=1e-9)
        down = scores.masked_fill(rewards > 0, 0.0)
        return up - down / down.sum(dim=1, keepdim=True).clamp(min=1e-9)

    The hits share +1 by their rewards, the misses share -1 by their scores.

    Returns:
        ``{law: arguments}`` for three laws, each for one group of two or three responses: ``"sparsity"`` and ``"zero_sum"`` with
        ``{"rewards": (1, G), "scores": (1, G)}``, float32, a hit and a miss among them; ``"only_the_order_of_scores"`` with
        ``"scale"`` and ``"shift"`` beside them, two floats, scale > 0: instead of the scores the rule then gets their places in
        the order, 0 for the lowest, scaled and shifted.
    """
    raise NotImplementedError("counterexamples")


def leave_one_out(rewards):
    """Exercise 2. RLOO: the reward seen from the mean of the *other* responses of the group, no division by a spread.

    rewards ``(Q, G)`` -> advantages ``(Q, G)`` in their dtype, without a gradient. A response that is alone in its group
    gets 0. Rewards may be any finite numbers, and equal ones give 0 exactly: ``recast_ref.reference.group_advantages`` has done
    the careful part, without the division too. Declare with ``recast_ref.testing.breaks`` which laws about ``group_advantages`` it breaks: none too few, and none
    that holds after all.
    """
    raise NotImplementedError("leave_one_out")


def bystanders(subject, case):
    """Exercise 3. The law "leaving out a response that was not chosen changes nothing for the others".

    It is registered as ``law("contrast", "recast", prompts=(1, 1), options=False)``: one group, default weights. A response was
    chosen if it has an advantage, or if it is the slot that the anchor takes (where the rule answers one). Raise with
    ``demand`` of ``recast_ref.testing``; ``index(subject.kind, case, "G", which)`` of its module ``laws`` keeps the responses ``which``.
    """
    raise NotImplementedError("bystanders")
