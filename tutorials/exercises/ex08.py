"""Exercises of tutorial 8. ``pytest tutorials/exercises -m ex08`` checks them."""


def join(a, b):
    """Exercise 1. Two parts of a row into the whole.

    A part is ``(largest, total)``, two floats: the largest of its numbers, and the sum of ``exp(x - largest)`` over them. A part
    whose numbers are all ``-inf``, or that has none, is ``(-inf, 0.0)``. A part that holds a NaN has ``total = nan``, and so
    must every whole that it is in. Uses ``math`` only.
    """
    raise NotImplementedError("join")


def entropy(row):
    """Exercise 2. The entropy in nats, ``-sum(p * log(p))``, of the softmax of the numbers that the iterator ``row`` gives.

    Each number can be had once, and only a few may be kept. Large ones must not overflow; ``-inf`` is an outcome of
    probability 0, and adds nothing. Uses ``math`` only.
    """
    raise NotImplementedError("entropy")


def entropy_gradient(logits, lse, entropies, g):
    """Exercise 3. The gradient of the entropies to the logits.

    Args:
        logits: float32 or bfloat16 ``(N, V)``; may be ``-inf``, where the gradient is 0.
        lse: float64 ``(N,)``, the log-sum-exp of each row.
        entropies: float64 ``(N,)``, the entropy of each row.
        g: float32 ``(N,)``, the gradient that comes in.

    Returns:
        ``(N, V)`` in the dtype of the logits, rounded once: the arithmetic is float32 or wider.
    """
    raise NotImplementedError("entropy_gradient")
