"""Laws about anchors: which target is chosen, how near the group came to each, and how much each counts."""

import math

import torch
from hypothesis import strategies as st

from . import strategies
from .kinds import NotApplicable
from .laws import demand, index, index_answer, law, same, size


def _real(targets):
    return (targets >= 0).all(dim=-1)


# ---- which target


@law("choose_anchor")
def largest_value(subject, case):
    """The chosen target is real, and no real one has a larger value; -1 exactly where a prompt has none."""
    got = subject.answer(case)
    chosen, real = got["chosen"], _real(case["targets"])
    demand((chosen < 0) == ~real.any(dim=1), "a choice where there is no target, or none where there is one", got)
    here = chosen.clamp(min=0)[:, None]
    demand((chosen < 0) | real.gather(1, here)[:, 0], "the choice is padding", got)
    most = case["values"].masked_fill(~real, -torch.inf).amax(dim=1)
    demand((chosen < 0) | (case["values"].gather(1, here)[:, 0] == most), "another target has a larger value", got)


@law("choose_anchor", more=lambda draw, case, subject: {"junk": draw(st.sampled_from([math.nan, math.inf, 9.0]))})
def padding_has_no_influence(subject, case, junk):
    """What stands at padding has no influence: its value and key, NaN included, and its other codes."""
    real = _real(case["targets"])
    dirty = {name: case[name].masked_fill(~real, junk) for name in ("values", "tie_break") if name in case}
    dirty["targets"] = case["targets"].where(real[..., None] | (case["targets"] < 0), case["targets"] + 1)
    same(subject.answer(case | dirty), subject.answer(case), f"depends on a value of {junk} at padding")


# ---- how near


def _some_targets(draw, case, subject):
    k = size(subject.kind, case, "K")
    which = draw(st.lists(st.integers(0, k - 1), max_size=3)) if k else []
    return {"which": torch.tensor(which, dtype=torch.int64)}


@law("nearness", more=_some_targets)
def targets_apart(subject, case, which):
    """Targets do not see each other: picking, repeating or leaving out targets picks the same answers."""
    picked = subject.answer(index(subject.kind, case, "K", which))
    same(picked, index_answer(subject.kind, subject.answer(case), "K", which), "depends on the other targets")


@law("nearness")
def whoever_names_it(subject, case):
    """Which response names a SID has no influence, nor how often: the group counts as one set."""
    one = case["predictions"].flatten(1, 2)[:, None]
    twice = torch.cat([one, one], dim=2)
    for predictions in (one, twice.transpose(1, 2)):
        same(subject.answer(case | {"predictions": predictions}), subject.answer(case), "depends on who names a SID")


@law("nearness")
def named_is_nearest(subject, case):
    """Nearness is in [0, 1]: 1 exactly where a response names the target, 0 at padding and where nothing is named."""
    got = subject.answer(case)
    near, targets, named = got["nearness"], case["targets"], case["predictions"].flatten(1, 2)
    demand(((near >= 0) & (near <= 1)).all(dim=1), "nearness outside [0, 1]", got)
    hit = (targets[:, :, None] == named[:, None]).all(dim=-1).any(dim=-1) & _real(targets)
    demand(((near == 1) == hit).all(dim=1), "1 for a target that nobody named, or less for one that is named", got)
    nothing = ~_real(targets) | ~_real(named).any(dim=1, keepdim=True)
    demand((~nothing | (near == 0)).all(dim=1), "nearness at padding, or where nothing is named", got)


# ---- how much it counts


def _largest(case):
    """In the dtype of the answer."""
    return torch.tensor(case.get("largest", 4.0)).to(case["logps"].dtype)


@law("anchor_weights", dtype=None)
def bounded(subject, case):
    """Every weight is a number in [0, largest], in the dtype of the log-probs, however far apart these are."""
    got = subject.answer(case)
    weights = got["weights"]
    demand(weights.dtype == case["logps"].dtype, f"answered {weights.dtype} for {case['logps'].dtype}", got)
    demand((weights >= 0) & (weights <= _largest(case)), "a weight outside [0, largest]", got)


@law("anchor_weights")
def mean_is_one(subject, case):
    """The mean weight of a batch is 1 where none is cut off, and 1 at most where some are."""
    got = subject.answer(case)
    mean, cut = got["weights"].double().mean(), (got["weights"] >= _largest(case)).any()
    demand(mean <= 1 + 1e-6, lambda _: f"the mean is {mean.item():.6g}", got)
    demand(cut | (mean >= 1 - 1e-6), lambda _: f"the mean is {mean.item():.6g}, and none is cut off", got)


@law("anchor_weights")
def likelier_weighs_more(subject, case):
    """Of two anchors the likelier weighs no less, and equally likely ones weigh the same."""
    got = subject.answer(case)
    weights, logps = got["weights"], case["logps"]
    less = (logps[:, None] <= logps) & (weights[:, None] > weights)
    demand(~less.any(dim=1), "a likelier anchor weighs less", got)


@law("anchor_weights")
def power_of_p(subject, case):
    """Weights that are not cut off are in proportion to ``p ** alpha``: their logarithms differ by ``alpha`` times those of ``p``."""
    got = subject.answer(case)
    weights, alpha = got["weights"].double(), case.get("alpha", 0.5)
    told = (weights > 1e-30) & (weights < _largest(case))  # the others were cut, or vanish in float32
    logs, scaled = weights.clamp(min=1e-30).log(), alpha * case["logps"].double()
    gap = (logs[:, None] - logs) - (scaled[:, None] - scaled)
    wrong = told[:, None] & told & (gap.abs() > 1e-4)
    demand(~wrong.any(dim=1), "not in proportion to p ** alpha", got)


@law("anchor_weights")
def nothing_at_alpha_0(subject, case):
    """With ``alpha = 0``, which is supervised learning, every anchor weighs 1."""
    if not subject.takes("alpha"):
        raise NotApplicable("it takes no alpha")
    got = subject.answer(case | {"alpha": 0.0})
    same(got, {"weights": torch.ones_like(got["weights"])}, "is not 1 at alpha = 0")


@law("anchor_weights", more=lambda draw, case, subject: {"shift": draw(st.sampled_from([-math.log(2), -100.0, 3.0]))})
def shift_of_logps(subject, case, shift):
    """How likely an anchor is counts beside the others only: with all of them half as likely, nothing changes."""
    wide = case["logps"].double()
    moved, before = (subject.answer(case | {"logps": logps}) for logps in (wide + shift, wide))
    same(moved, before, f"differs after adding {shift:.3g}", rtol=1e-5, atol=1e-9)  # wide + shift is rounded


@law("anchor_weights")
def cut_alone(subject, case):
    """What is cut off a weight is given to no other: ``w(largest) = min(w(without), largest)``."""
    if not subject.takes("largest"):
        raise NotApplicable("it takes no largest")
    got = subject.answer(case)
    whole = subject.answer(case | {"largest": 1e4})["weights"]  # more than there are anchors
    same(got, {"weights": whole.clamp(max=case.get("largest", 4.0))}, "is not what it is uncut, cut off")


@law(
    "anchor_weights",
    more=lambda draw, case, subject: {"order": draw(strategies.permutations(1, len(case["logps"])))[0]},
)
def batch_order(subject, case, order):
    """Permuting the prompts permutes the weights."""
    after = subject.answer(case | {"logps": case["logps"][order]})
    same(after, {"weights": subject.answer(case)["weights"][order]}, "does not follow its prompt")


@law("anchor_weights", prompts=(0, 1))
def none_or_one(subject, case):
    """A batch without anchors gets no weights, and an anchor that stands alone weighs 1."""
    got = subject.answer(case)
    demand(got["weights"] == 1, "an anchor that stands alone does not weigh 1", got)
