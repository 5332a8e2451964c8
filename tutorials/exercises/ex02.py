"""Exercises of tutorial 2. ``pytest tutorials/exercises -m ex02`` checks them."""


def longest_safe_list(levels):
    """Exercise 1. The largest ``m`` such that an answer of ``m`` distinct SIDs, a target among them, can never have a
    lower ``u`` than an answer without a hit, whatever both name. SIDs have ``levels`` codes, at least 1; ``None`` where
    no list is too long."""
    raise NotImplementedError("longest_safe_list")


def best_answers(sids, chances):
    """Exercise 2. What to say, if one item is to be said: sids int64 (N, L), all distinct, and chances (N,), how probable each
    is as the only target -> the indices (the best item by expected ``r``, the best item by expected ``u``)."""
    raise NotImplementedError("best_answers")


def without_sets(predictions, targets):
    """Exercise 3. ``u`` without the set on the prediction side: the mean over *all* SIDs of a response that are not padding,
    duplicates counted as often as they are there, of their best ``phi``; 0 if there are none. Let ``structural_scores`` do
    the work: predictions (Q, G, M, L), targets (Q, K, L) -> (Q, G)."""
    raise NotImplementedError("without_sets")
