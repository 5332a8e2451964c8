"""Solutions of tutorial 2."""

from recast_ref.reference import structural_scores


def longest_safe_list(levels):
    # With a hit among m, u is at least 1/m. A miss has at most 0.1, if all it names share all codes but the last. At m = 10
    # the two tie; at 11 the hit loses. With one code a miss has 0, and no list is too long.
    return 10 if levels > 1 else None


def best_answers(sids, chances):
    # Each item is a prompt's target once, and each is an answer once: phi of all pairs, weighted by the target's chance.
    n = len(sids)
    phi = structural_scores(sids[None, :, None].expand(n, -1, -1, -1), sids[:, None])  # (targets, answers)
    return int(chances.argmax()), int((chances[:, None] * phi).sum(dim=0).argmax())


def without_sets(predictions, targets):
    # A set of one has no duplicates: score each SID as a response of its own, then take the mean.
    q, g, m, levels = predictions.shape
    each = structural_scores(predictions.reshape(q, g * m, 1, levels), targets).view(q, g, m)
    real = (predictions >= 0).all(dim=-1)
    return each.sum(dim=-1) / real.sum(dim=-1).clamp(min=1)  # padding scores 0
