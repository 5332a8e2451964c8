"""Solutions of tutorial 10."""


def first_loss(advantages, lengths, average):
    # With equal lengths and weights of 1 and 1 both are 0, with 1 and 0.2 both are -0.4, from the first step to the last:
    # the loss says how rows are weighed, not how good the policy is. With "row" lengths do not matter at all.
    if average == "row":
        return -sum(advantages) / len(advantages)
    return -sum(a * n for a, n in zip(advantages, lengths, strict=True)) / sum(lengths)


def all_zero_bounds(reward, zero_std, width):
    # With a share h of groups that have only hits, the others of a spread above 0 have from 1 to width - 1 hits each:
    #     h + (1 - zero_std) / width <= reward <= h + (1 - zero_std) (width - 1) / width
    mixed = 1 - zero_std
    most_hits = min(zero_std, reward - mixed / width)
    fewest_hits = max(0.0, reward - mixed * (width - 1) / width)
    return zero_std - most_hits, zero_std - fewest_hits


def logps_under(logits, answer, catalogue):
    logps = logits.new_empty(len(answer))
    for t, token in enumerate(answer):
        allowed = sorted({other[t] for other in catalogue if other[:t] == answer[:t]})
        logps[t] = logits[t, token] - logits[t, allowed].logsumexp(dim=0)
    return logps
