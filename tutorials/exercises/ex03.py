"""Exercises of tutorial 3. ``pytest tutorials/exercises -m ex03`` checks them."""


def add_gt(rewards):
    """Exercise 1. MiniOneRec's rule: the last response of every group becomes the ground truth. rewards (Q, G) ->
    (slot, rewards, lost): slot int64 (Q,), where the ground truth went; the new rewards (Q, G), the argument left as it was;
    and lost bool (Q,), whether the group was changed although it needed nothing: it had a hit, and the response that went
    was not a hit."""
    raise NotImplementedError("add_gt")


def sft_share(p, g):
    """Exercise 2. Without division by the deviation, the expected update with repair is the policy gradient plus a part of
    SFT. Which share of its length is the part of SFT? p in [0, 1], g >= 1 -> a float; 0 where there is no update at all."""
    raise NotImplementedError("sft_share")


def forgotten_weights(anchor_logps, replaced_logps, advantage=1.0, clip_low=0.2, clip_high=0.28):
    """Exercise 3. The old log-probs in an anchor's slot are still those of the response it replaced. What does each token's
    gradient of log-prob get multiplied by, compared to a first update done right? Both (N, T) -> (N, T), not negative. The
    advantage is a number, above or below 0 (a broken reward could make it so); leave the dual clip out."""
    raise NotImplementedError("forgotten_weights")
