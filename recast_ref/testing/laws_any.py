"""Laws about any function of the reference, whatever it computes."""

import torch
from hypothesis import strategies as st

from . import strategies
from .by_hand import TABLES
from .kinds import KINDS, NotApplicable
from .laws import demand, index, index_answer, law, same, size

SELECTION = (
    "group_regimes",
    "group_advantages",
    "repair",
    "contrast",
    "recast",
    "recast_from_sids",
    "token_advantages",
    "hybrid",
    "choose_anchor",
)
SCORES = ("structural_scores", "hit_rewards", "nearness")
LOSSES = ("policy_loss", "logits_loss")
PROMPTS = SELECTION + SCORES


@law(*KINDS)
def form(subject, case):
    """Its answer has the documented fields, shapes and kinds of dtype: ``int64`` indices, floating advantages."""
    subject.answer(case)


@law(*KINDS)
def agreement(subject, case):
    """It answers what the function it is compared with answers: the last index, and numbers within rounding."""
    expected = subject.expected(case)
    same(subject.answer(case), expected, "differs")


@law(*KINDS, table=lambda kind: TABLES.get(kind, ()))
def by_hand(subject, case, expected):
    """It answers what was worked out by hand."""
    if subject.against is None:
        raise NotApplicable("there is nothing it should agree with")
    unknown = [name for name in case if not subject.takes(name)]
    if unknown:
        raise NotApplicable(f"it takes no {unknown[0]}")
    missing = [name for name in subject.required if name not in case]
    if missing:
        raise NotApplicable(f"it needs {missing[0]}, of which the tables have none")
    wanted = {name: torch.as_tensor(value) for name, value in expected.items()}
    got = subject.answer(case)
    wanted = {name: value.to(got[name].dtype) for name, value in wanted.items() if name in got}
    same(got, wanted, "is not what it should be", rtol=2e-5, atol=2e-6)


@law(*KINDS)
def pure(subject, case):
    """It leaves its arguments as they are, and the state that all code shares (default dtype and device, grad mode, threads,
    random states), and answers the same again, to the last bit."""
    before = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in case.items()}
    first = subject.answer(case)
    first = {name: value.detach().clone() for name, value in first.items()}
    for name, value in before.items():
        if isinstance(value, torch.Tensor):
            changed = not torch.equal(value, case[name])
            case[name] = value  # a later run must see what was drawn
            demand(not changed, f"{name}: changed by the call")
    again = subject.answer(case)
    same(again, first, "differs from one call to the next", rtol=0, atol=0)


@law(*PROMPTS, "anchor_weights")
def no_gradient(subject, case):
    """Selection carries no gradient, even where its arguments do."""
    floats = {n: v.clone().requires_grad_() for n, v in case.items() if _floats(v)}
    for name, value in subject.answer(case | floats).items():
        demand(not value.requires_grad, f"{name}: carries a gradient")


def _floats(value):
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point


def _some_prompts(draw, case, subject):
    q = size(subject.kind, case, "Q")
    return {"which": torch.tensor(draw(st.lists(st.integers(0, q - 1), min_size=1, max_size=3)), dtype=torch.int64)}


@law(*PROMPTS, more=_some_prompts)
def locality(subject, case, which):
    """Prompts do not see each other: picking, repeating or leaving out prompts picks the same answers, ``A(x[which]) =
    A(x)[which]``."""
    kind = subject.kind
    picked = subject.answer(index(kind, case, "Q", which))
    same(picked, index_answer(kind, subject.answer(case), "Q", which), "depends on the other prompts of the batch")


@law(*PROMPTS, more=lambda draw, case, subject: {"cut": draw(st.integers(0, size(subject.kind, case, "Q")))})
def concatenation(subject, case, cut):
    """The answer to a batch is that to its parts, one after the other; a part may be empty."""
    kind = subject.kind
    q = torch.arange(size(kind, case, "Q"))
    whole = subject.answer(case)
    parts = [subject.answer(index(kind, case, "Q", part)) for part in (q[:cut], q[cut:])]
    joined = {name: torch.cat([part[name] for part in parts]) for name in whole}
    same(joined, whole, "of the parts differs from that of the batch")


def _order(draw, case, subject):
    """An order of what is ranked, and arguments without a tie that an index would have to decide."""
    kind = subject.kind
    q, g = size(kind, case, "Q"), size(kind, case, kind.ranked)
    more = {"order": draw(strategies.permutations(1, g))[0]}
    keys = draw(strategies.permutations(q, g))
    if subject.takes("tie_break"):
        more["tie_break"] = keys.float()
    elif "scores" in case:
        more["scores"] = keys.to(case["scores"].dtype)
        more["rewards"] = torch.where(case["rewards"] > 0, keys + 1, case["rewards"]).to(case["rewards"].dtype)
    if subject.takes("logps"):
        more["logps"] = -1.0 - keys
    return more


@law(*PROMPTS, more=_order)
def permutation(subject, case, order):
    """Permuting the responses of a group, or the targets that are chosen from, permutes the answer, ``A(x[order]) =
    A(x)[order]``, where no tie is left to the index."""
    kind = subject.kind
    if "tie_break" in kind.arguments and "scores" not in kind.arguments and not subject.takes("tie_break"):
        raise NotApplicable("it takes no tie_break, so ties are left to the index")
    before = subject.answer(case)
    after = subject.answer(index(kind, case, kind.ranked, order))
    for name, value in after.items():
        if kind.answer[name][1] == "index" and value.numel():
            after[name] = torch.where(value < 0, -1, order[value.clamp(min=0)])
    expected = {
        name: value if kind.answer[name][1] == "index" else index_answer(kind, {name: value}, kind.ranked, order)[name]
        for name, value in before.items()
    }
    same(after, expected, "does not follow its responses")


@law(*KINDS)
def strides(subject, case):
    """It answers the same however its arguments lie in memory."""
    kind = subject.kind
    if kind.batch in "QB":  # twice over: even a batch of one has a second row then, to be read in the wrong place
        case = index(kind, case, kind.batch, torch.arange(size(kind, case, kind.batch)).repeat(2))
    expected = subject.answer(case)
    for layout in ("transposed", "stepped"):
        laid = {name: _lay(value, layout) for name, value in case.items()}
        same(subject.answer(laid), expected, f"differs for {layout} tensors")


def _lay(value, layout):
    if not isinstance(value, torch.Tensor) or not value.dim():
        return value
    if layout == "stepped":
        return torch.stack([value, torch.zeros_like(value)], dim=-1)[..., 0]
    order = list(range(value.dim()))[::-1]
    return value.permute(order).contiguous().permute(order)


def _nothing(subject, case):
    got = subject.answer(case)
    if all(value.numel() for value in case.values() if isinstance(value, torch.Tensor)):
        return
    ranked = case.get("rewards", case.get("values", torch.ones(())))
    for name, value in got.items():
        if subject.kind.answer[name][1] == "index":
            demand((value == -1) | torch.tensor(bool(ranked.numel())), f"{name}: not -1", got)
        elif not value.dim():
            demand(value == 0, f"{name}: {value.item()} for nothing", got)


@law(*PROMPTS, prompts=(0, 1), size=(0, 1), options=False)
def empty(subject, case):
    """A batch of no prompts, or of groups without responses, gets an empty answer, and -1 for an index."""
    _nothing(subject, case)


@law("branch_mask", "token_logps", *LOSSES, rows=(0, 1), tokens=(0, 1), options=False)
def empty_batch(subject, case):
    """A batch without rows, or without tokens, gets an empty answer; a loss of 0."""
    _nothing(subject, case)
