"""Exercises of tutorial 4. ``pytest tutorials/exercises -m ex04`` checks them."""


def fresh_loss(weight, negative_weight, lengths, shared=None):
    """Exercise 1. The loss that a pair logs before its first step (token-mean, no KL): a float.

    The positive's advantage is ``weight``, the negative's ``-negative_weight``; ``lengths`` are their numbers of tokens, the
    positive's first. With ``shared``, the negative counts only from its branch point on: after its first ``shared`` tokens. Its
    tokens before that stay in the mask, with an advantage of 0.
    """
    raise NotImplementedError("fresh_loss")


def chance_to_learn(p1, p2, g):
    """Exercise 2. The chance that the published pair of a repaired group has a gradient on code 1, 2 and 3: three floats.

    The group has ``g >= 2`` independent answers of three codes, none of them a hit. An answer has the right first code with
    probability ``p1`` and, if so, the right second one with ``p2``.
    """
    raise NotImplementedError("chance_to_learn")


def mean_push(policy, g):
    """Exercise 3. How a step of size 1 on the negative alone (w = 1) moves each logit on average: (N,) -> (N,).

    ``policy (N,)`` holds the probabilities of N items, likeliest first. The negative is the likeliest item of ``g`` draws.
    """
    raise NotImplementedError("mean_push")
