"""Exercises of tutorial 5. ``pytest tutorials/exercises -m ex05`` checks them."""


def slope(logps, old_logps, advantages, clip_low=0.2, clip_high=0.28, dual_clip=3.0):
    """Exercise 1. The derivative of each token's policy loss by its log-prob, without autograd: three (N,) -> (N,).

    The loss is the clipped surrogate with dual clip and the clamp of the log-ratio, no KL and no average. Values on the very
    edge of a zone are not tested.
    """
    raise NotImplementedError("slope")


def k3_pull(policy, reference):
    """Exercise 2. The mean gradient of k3 (not clamped) on the logits of ``policy = softmax(logits)``: (N,), (N,) -> (N,).

    Draws come from the policy and are held fixed. In closed form, without autograd: one line.
    """
    raise NotImplementedError("k3_pull")


def of_microbatches(losses, masks, aggregate):
    """Exercise 3. The loss of a batch from the losses of its parts: a float.

    ``losses`` are floats, what ``policy_loss`` gave each part with this ``aggregate``; ``masks`` are the parts' masks (B, T), which
    may differ in shape. The answer is what ``policy_loss`` would give all the rows at once: 0 if no row has a token.
    """
    raise NotImplementedError("of_microbatches")
