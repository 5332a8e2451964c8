"""Exercises of tutorial 6. ``pytest tutorials/exercises -m ex06`` checks them."""


def step_tokens(prompt_lengths, response_lengths, kept, share_prompt):
    """Exercise 1. How many tokens one pass reads for a batch of groups in which not all responses are kept.

    Args:
        prompt_lengths: int64 (Q,).
        response_lengths: int64 (Q, G).
        kept: bool (Q, G), the responses that enter the update. A group can be skipped: then none of its row is True.
        share_prompt: read each prompt once for its responses, or once for each of them.

    Returns:
        an int.
    """
    raise NotImplementedError("step_tokens")


def break_even(prompt, response):
    """Exercise 2. The smallest G from which on the pair, with one sequence per response, reads fewer tokens than the
    whole group with a shared prompt. ``prompt`` and ``response`` are lengths in tokens, and ints; so is the answer.
    """
    raise NotImplementedError("break_even")


def affordable_width(rollout, update, g):
    """Exercise 3. How wide a ReCast step can search in the time of a GRPO step.

    A step takes ``rollout`` seconds for each response that is drawn and ``update`` seconds for each that enters the
    update; these are ints, and other costs are 0. A GRPO step draws ``g`` responses, at least 2, and updates on all;
    a ReCast step updates on 2.
    Returns the largest G of a ReCast step that takes no longer, an int.
    """
    raise NotImplementedError("affordable_width")
