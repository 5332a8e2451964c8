"""Exercises of tutorial 10. ``pytest tutorials/exercises -m ex10`` checks them. They need no trainer."""


def first_loss(advantages, lengths, average):
    """Exercise 1. The loss that a trainer logs at the first update on a batch, without KL.

    Every ratio is 1 there, so a token of answer i adds ``-advantages[i]``, whatever the policy is.

    Args:
        advantages: a float for each answer.
        lengths: how many tokens each has.
        average: ``"token"``, over all tokens of the batch (TRL's ``loss_type="dapo"``, its default); ``"row"``, over the
            tokens of each answer, then over the answers (``"grpo"``).

    Returns:
        float.
    """
    raise NotImplementedError("first_loss")


def all_zero_bounds(reward, zero_std, width):
    """Exercise 2. How large the share of all-zero groups can be, and how small, by the logs of plain GRPO.

    Each reward is 0 or 1. A group that has only hits has a spread of 0 too, so ``frac_reward_zero_std`` alone does not say.

    Args:
        reward: the mean reward of all answers.
        zero_std: the share of groups whose rewards are all equal.
        width: answers in a group.

    Returns:
        ``(low, high)``, two floats. Any share between them may be assumed to occur, as with very many groups.
    """
    raise NotImplementedError("all_zero_bounds")


def logps_under(logits, answer, catalogue):
    """Exercise 3. Log-probs of an answer's tokens under a catalogue, without a trie.

    At each token, the softmax is over the tokens with which some answer of the catalogue goes on after what was said so far.

    Args:
        logits: float32 ``(T, V)``, the model's before each token of the answer.
        answer: list of T token ids, one of the catalogue.
        catalogue: list of lists of token ids, none of them the beginning of another.

    Returns:
        float32 ``(T,)``.
    """
    raise NotImplementedError("logps_under")
