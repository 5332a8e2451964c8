"""verl's custom reward function: 1 for an answer that names the target, else 0."""

from recast_ref.trainers.sids import Sids


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    sids = Sids.like(ground_truth)
    return float(bool(set(sids.read(solution_str)) & set(sids.read(ground_truth))))
