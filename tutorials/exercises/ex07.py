"""Exercises of tutorial 7. ``pytest tutorials/exercises -m ex07`` checks them."""


def lasting_budget(rollouts, baseline, arm):
    """Exercise 1. The share of the baseline's rollouts after which an arm is as good as the baseline is at its end, and
    stays so.

    Args:
        rollouts: after how many rollouts each evaluation was, from 0 on; the last is the whole budget.
        baseline, arm: the score of each at these evaluations, as lists of the same length.

    Returns:
        the share at the first evaluation from which on no score of the arm is below the baseline's last, or None if there
        is none.
    """
    raise NotImplementedError("lasting_budget")


def resampling_cost(p, g):
    """Exercise 2. The expected number of rollouts that are drawn until one group has both a hit and a miss.

    For each try, a prompt is drawn at random from Q, and ``g`` responses to it. A response to prompt i hits with
    probability ``p[i]``, independently of the others. ``p`` is a tensor (Q,); the answer is a float, and infinite if no
    group ever has both.
    """
    raise NotImplementedError("resampling_cost")


def difference(a, b):
    """Exercise 3. How much better b is than a, and how sure that is: two lists of final scores, one per seed, to a mean
    and its standard error.

    The i-th value of each comes from the same seed, so from the same base policy, which is better with some seeds than
    with others.
    """
    raise NotImplementedError("difference")
