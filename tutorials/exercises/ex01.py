"""Exercises of tutorial 1. ``pytest tutorials/exercises -m ex01`` checks them."""


def advantages_without_spread(rewards):
    """Exercise 1. The reward seen from the mean of its group, and no division: rewards (Q, G) -> advantages (Q, G)."""
    raise NotImplementedError("advantages_without_spread")


def chance_of_signal(p, g):
    """Exercise 2. The probability that ``g`` independent answers, each a hit with probability ``p``, hold a hit and a miss."""
    raise NotImplementedError("chance_of_signal")


def wasted(rewards):
    """Exercise 3. The share of rollouts in groups in which every GRPO advantage is 0: rewards (Q, G) -> a float."""
    raise NotImplementedError("wasted")
