"""Laws about who is repaired, who is chosen, and what they get: the signals."""

import torch
from hypothesis import strategies as st

from . import loops, strategies
from .kinds import NotApplicable
from .laws import demand, law, same

RULES = ("contrast", "recast", "recast_from_sids", "token_advantages")  # answer the advantages of a pair
REPAIRING = ("recast", "recast_from_sids")  # mark the slot as well
BY_SCORE = ("repair", "contrast", "recast", "hybrid")  # are given rewards and scores


def _world(subject, case):
    """Rewards, scores, and what can be repaired, of the groups before repair; from SIDs by the plain loops."""
    if subject.kind.name == "group_advantages":
        return case["rewards"], None, torch.zeros(len(case["rewards"]), dtype=torch.bool)
    if subject.kind.name in BY_SCORE:
        r, u, usable = case["rewards"], case["scores"], case.get("repairable")
        usable = torch.ones(len(r), dtype=torch.bool) if usable is None else usable
        return r, u, usable & (subject.kind.name != "contrast")
    if subject.kind.name == "token_advantages":
        predictions, targets = case["responses"][:, :, None], case["targets"][:, None]
    else:
        predictions, targets = case["predictions"], case["targets"]
    usable = (targets >= 0).all(dim=-1).any(dim=-1)
    return loops.hit_rewards(predictions, targets), loops.structural_scores(predictions, targets), usable


def _missed(r):
    """A miss may have a penalty."""
    return r <= 0


def _advantages(got):
    """``A`` with one number a response, ``(Q, G)``, of the largest size where there is one a token."""
    advantages = got["advantages"]
    if advantages.dim() == 2:
        return advantages
    most, least = advantages.amax(dim=2), advantages.amin(dim=2)
    return torch.where(most > -least, most, least)


# ---- repair


def _slot(subject, case):
    got = subject.answer(case)
    r, u, usable = _world(subject, case)
    return got, got["slot"], r, u, usable


@law("repair", *REPAIRING, "hybrid")
def no_repair_with_a_hit(subject, case):
    """A group with a hit, however small its reward, is never repaired: ``slot = -1`` where any ``r > 0``."""
    got, slot, r, _, _ = _slot(subject, case)
    demand((slot < 0) | ~(r > 0).any(dim=1), "repaired although it has a hit", got)


@law("repair", *REPAIRING, "hybrid")
def repairs_what_it_can(subject, case):
    """A group without a hit is repaired if its prompt has a target: ``slot >= 0``; else it is left alone."""
    got, slot, r, _, usable = _slot(subject, case)
    empty = ~(r > 0).any(dim=1)
    demand((slot >= 0) | ~(empty & usable), "not repaired although it has no hit", got)
    demand((slot < 0) | usable, "repaired although its prompt has no target", got)


@law("repair", *REPAIRING, "hybrid")
def lowest_slot(subject, case):
    """The anchor takes the place of a response with the lowest score, ``u_slot = min_i u_i``."""
    got, slot, _, u, _ = _slot(subject, case)
    replaced = u.gather(1, slot.clamp(min=0)[:, None])[:, 0]
    demand((slot < 0) | (replaced == u.amin(dim=1)), "the slot has not the lowest score", got)


@law("repair")
def touches_only_the_slot(subject, case):
    """Rewards and scores are those that came, but for ``r_slot = u_slot = 1``, in their own dtypes."""
    got = subject.answer(case)
    is_slot = torch.arange(case["scores"].shape[1]) == got["slot"][:, None]
    for name in ("rewards", "scores"):
        demand(got[name].dtype == case[name].dtype, f"{name}: answered {got[name].dtype} for {case[name].dtype}", got)
        demand(got[name] == case[name].masked_fill(is_slot, 1.0), f"{name}: not what came, with 1 at the slot", got)


@law("repair")
def repairs_once(subject, case):
    """What was repaired has a hit, so repairing again changes nothing."""
    once = subject.answer(case)
    again = subject.answer(case | {"rewards": once["rewards"], "scores": once["scores"]})
    demand((again["slot"] < 0) | (once["slot"] < 0), "repaired a second time", again, once)


# ---- the pair


@law(*RULES)
def sparsity(subject, case):
    """At most two responses of a group have an advantage: one above 0, one below."""
    got = subject.answer(case)
    a = _advantages(got)
    demand(((a > 0).sum(dim=1) <= 1) & ((a < 0).sum(dim=1) <= 1), "more than one response above 0, or below", got)


@law("group_advantages", *RULES, options=False)
def zero_sum(subject, case):
    """The advantages of a group sum to 0 (where both sides weigh the same; a group of one has no other side)."""
    got = subject.answer(case)
    a = got["advantages"].double()
    if a.shape[1] == 1:
        return
    total = a.flatten(start_dim=1).sum(dim=1)
    most = a.abs().flatten(start_dim=1).amax(dim=1)
    demand(total.abs() <= 1e-5 * (1 + most), lambda q: f"the advantages sum to {total[q].item():.4g}, not 0", got)


@law("contrast", *REPAIRING)
def marks(subject, case):
    """``A = +w`` at ``positive``, ``-w_neg`` at ``negative``, 0 elsewhere; two different responses, or none (-1, -1)."""
    got = subject.answer(case)
    positive, negative = got["positive"], got["negative"]
    demand((positive < 0) == (negative < 0), "one of the pair is missing", got)
    demand((positive != negative) | (positive < 0), "the pair is one response", got)
    a = got["advantages"]
    g = torch.arange(a.shape[1])
    weight = case.get("weight", 1.0)
    expected = torch.where(g == positive[:, None], weight, 0.0)
    expected = torch.where(g == negative[:, None], -case.get("negative_weight", weight), expected)
    demand(a == expected, "the advantages are not +w and -w_neg at the pair", got, {**got, "advantages": expected})


@law("contrast", *REPAIRING, "hybrid")
def strongest_positive(subject, case):
    """``positive`` has the largest reward of its group, above 0; in a repaired group it is the anchor."""
    got = subject.answer(case)
    positive = got["positive"]
    r, _, usable = _world(subject, case)
    chosen = r.gather(1, positive.clamp(min=0)[:, None])[:, 0]
    hit = (r > 0).any(dim=1)
    demand((positive < 0) | hit | usable, "a pair without a hit or an anchor", got)
    demand((positive < 0) | ~hit | (chosen == r.amax(dim=1)), "the positive has not the largest reward", got)
    if "slot" in got:
        demand((positive < 0) | hit | (positive == got["slot"]), "the positive is not the anchor", got)


@law("contrast", *REPAIRING, "hybrid")
def hardest_negative(subject, case):
    """``negative`` missed, and of all responses that missed and stayed it has the largest score."""
    got = subject.answer(case)
    negative = got["negative"]
    r, u, _ = _world(subject, case)
    missed = _missed(r)
    if "slot" in got:
        missed = missed & (torch.arange(r.shape[1]) != got["slot"][:, None])
    here = negative.clamp(min=0)[:, None]
    demand((negative < 0) | missed.gather(1, here)[:, 0], "the negative is a hit or the anchor", got)
    most = u.masked_fill(~missed, -torch.inf).amax(dim=1)
    demand((negative < 0) | (u.gather(1, here)[:, 0] == most), "another that missed has a larger score", got)


@law(*RULES, "group_advantages", "hybrid", options=False)
def learnable(subject, case):
    """A group with a positive and a negative, after repair where there is one, has an advantage above 0 and one below."""
    got = subject.answer(case)
    a = _advantages(got)
    r, _, usable = _world(subject, case)
    hit, missed = (r > 0).any(dim=1), _missed(r).sum(dim=1)
    both = torch.where(hit, missed >= 1, usable & (missed >= 2))
    demand(~both | ((a > 0).any(dim=1) & (a < 0).any(dim=1)), "nothing is learned from it", got)


@law(*RULES)
def silent(subject, case):
    """A group whose responses all hit, or that has no hit and cannot be repaired, has no advantages."""
    r, _, usable = _world(subject, case)
    hit, missed = (r > 0).any(dim=1), _missed(r).sum(dim=1)
    nothing = torch.where(hit, missed == 0, ~usable | (missed < 2))
    got = subject.answer(case)
    demand(~nothing | (_advantages(got) == 0).all(dim=1), "an advantage where there is nothing to compare", got)
    for name in ("positive", "negative"):
        if name in got:
            demand(~nothing | (got[name] < 0), f"{name}: a pair where there is nothing to compare", got)


@law("hybrid")
def whole_group_with_a_hit(subject, case):
    """A group with a hit has GRPO's advantages, all of its responses, and no anchor: ``slot = positive = negative = -1``."""
    got = subject.answer(case)
    hit = (case["rewards"] > 0).any(dim=1)
    options = {name: case[name] for name in ("normalize", "eps") if name in case}
    whole = loops.group_advantages(case["rewards"], **options)
    answers = [{"advantages": a.masked_fill(~hit[:, None], 0)} for a in (got["advantages"], whole)]
    same(*answers, "is not GRPO's where there is a hit")
    for name in ("slot", "positive", "negative"):
        if name in got:
            demand(~hit | (got[name] < 0), f"{name}: an anchor where there is a hit", got)


@law("hybrid")
def anchor_against_one(subject, case):
    """A group without a hit has ``A = +w`` at ``positive``, ``-w_neg`` at ``negative`` and 0 elsewhere; or none at all, where
    both are -1."""
    got = subject.answer(case)
    positive, negative, a = got["positive"], got["negative"], got["advantages"]
    hit, g = (case["rewards"] > 0).any(dim=1), torch.arange(a.shape[1])
    demand((positive < 0) == (negative < 0), "one of the pair is missing", got)
    expected = torch.where(g == positive[:, None], case.get("weight", 1.0), 0.0)
    expected = torch.where(g == negative[:, None], -case.get("negative_weight", 0.3), expected)
    demand(
        hit | (a == expected).all(dim=1), "not +w at the anchor and -w_neg at one other", got, {"advantages": expected}
    )


@law("hybrid")
def skipped(subject, case):
    """A group without a hit that cannot be repaired, or whose anchor would stand alone, is left out: every ``A`` is 0."""
    got = subject.answer(case)
    r, _, usable = _world(subject, case)
    nothing = ~(r > 0).any(dim=1) & (~usable | (r.shape[1] < 2))
    demand(~nothing | (got["advantages"] == 0).all(dim=1), "an advantage where there is nothing to compare", got)
    for name in ("positive", "negative"):
        if name in got:
            demand(~nothing | (got[name] < 0), f"{name}: a pair where there is nothing to compare", got)


def _equal(draw, case, subject):
    """Large groups too, and all dtypes: whether a mean of equal numbers is that number depends on both."""
    dtype = draw(strategies.of(torch.float32, torch.float64, torch.float16, torch.bfloat16))
    grade = draw(strategies.grades(dtype) | strategies.penalties(dtype))
    return {"rewards": torch.full((1, draw(st.integers(2, 40))), grade, dtype=dtype)}


@law("group_advantages", more=_equal)
def equal_rewards(subject, case):
    """A group of two or more whose rewards are all equal has ``A = 0`` exactly, whatever the reward, in every dtype."""
    got = subject.answer(case)
    demand((got["advantages"] == 0).all(dim=1), "an advantage where all rewards are equal", got)


@law(*RULES)
def signs(subject, case):
    """In a group with a hit, only a hit has an advantage above 0 and only a miss one below."""
    got = subject.answer(case)
    r, _, _ = _world(subject, case)
    a, hit = _advantages(got), (r > 0).any(dim=1)
    demand(~hit | ((a <= 0) | (r > 0)).all(dim=1), "a miss has an advantage above 0", got)
    demand(~hit | ((a >= 0) | _missed(r)).all(dim=1), "a hit has an advantage below 0", got)


@law(*RULES, "group_advantages", "hybrid")
def monotone(subject, case):
    """Where nothing is repaired, a larger reward has no smaller advantage: ``r_i > r_j`` gives ``A_i >= A_j`` (among the misses
    of a pair's group, where the score ranks, nothing follows from the reward)."""
    got = subject.answer(case)
    r, _, _ = _world(subject, case)
    if subject.kind.name != "group_advantages":
        r = r.clamp(min=0)
    a = got["advantages"]
    a = a[..., None] if a.dim() == 2 else a
    larger = r[:, :, None] > r[:, None]  # (Q, G, G)
    wrong = larger & (a[:, :, None] < a[:, None]).any(dim=-1)
    demand(~wrong.flatten(start_dim=1).any(dim=1), "a larger reward has a smaller advantage", got)


@law("group_advantages", more=lambda draw, case, subject: {"offset": draw(st.sampled_from([0.5, -0.7, 2.0, 2.0**20]))})
def offset_invariance(subject, case, offset):
    """Adding a constant to the rewards of a group of two or more changes nothing, ``A(r + c) = A(r)``, but by how the sums are
    rounded: that moves a reward by a part of the group's range, and an advantage by as much of the largest."""
    r = case["rewards"].double()
    if r.shape[1] > 1:
        moved = subject.answer(case | {"rewards": r + offset})["advantages"]
        a = subject.answer(case | {"rewards": r})["advantages"]
        most = torch.maximum(a.abs(), moved.abs()).amax(dim=1)
        rounding = torch.finfo(r.dtype).eps * (r.abs().amax(dim=1) + abs(offset)) / (r.amax(dim=1) - r.amin(dim=1))
        far = (moved - a).abs().amax(dim=1) > (1e-9 + 8 * rounding) * most
        demand(~far, f"advantages: differs after adding {offset}", {"advantages": moved}, {"advantages": a})


@law(
    "group_advantages",
    more=lambda draw, case, subject: {"scale": draw(st.sampled_from([0.5, 2.0, 1e-6, 1e6]))},
    options=False,
)
def spread_is_one(subject, case, scale):
    """Normalised advantages of a group have a standard deviation of 1 whatever the scale of its rewards (0 if all are
    equal)."""
    r = case["rewards"].double() * scale
    if r.shape[1] > 1:
        got = subject.answer(case | {"rewards": r})
        # Seen from the lowest: the deviation of equal rewards is 0, not a rounding error.
        std, spread = (r - r.amin(dim=1, keepdim=True)).std(dim=1), got["advantages"].std(dim=1)
        expected = std / (std + 1e-6)
        demand((spread - expected).abs() < 1e-9, lambda q: f"the deviation is {spread[q].item():.6g}", got)


@law("group_regimes")
def size_of_rewards(subject, case):
    """The regime counts hits; how large their rewards are, and how low those of the misses, does not matter."""
    plain = (case["rewards"] > 0).to(case["rewards"].dtype)
    same(subject.answer(case | {"rewards": plain}), subject.answer(case), "differs for rewards of 1 and 0")


def _scale(draw, case, subject):
    return {"scale": draw(st.sampled_from([0.5, 3.0, 100.0])), "shift": draw(st.sampled_from([0.0, -7.0, 1.0]))}


@law(*BY_SCORE, "choose_anchor", more=_scale)
def only_the_order_of_scores(subject, case, scale, shift):
    """Scores, and the values of targets, only rank: others in the same order change nobody's choice or advantage."""
    before = subject.answer(case)
    name = "values" if subject.kind.name == "choose_anchor" else "scores"
    order = case[name].unique(return_inverse=True)[1]  # 0, 1, 2, ...: what is done to these is not rounded
    after = subject.answer(case | {name: (order * scale + shift).to(case[name].dtype)})
    keep = [name for name in before if name in ("slot", "positive", "negative", "advantages", "chosen")]
    same(
        {n: after[n] for n in keep},
        {n: before[n] for n in keep},
        f"differs for the places of its scores * {scale} + {shift}",
    )


@law("repair", "contrast", *REPAIRING, "hybrid", "choose_anchor")
def ties(subject, case):
    """A tie goes to the largest key; equal keys, or none, to the lowest index."""
    got = subject.answer(case)
    if subject.kind.name == "choose_anchor":
        values, real = case["values"], (case["targets"] >= 0).all(dim=-1)
        tied = {"chosen": real & (values == values.masked_fill(~real, -torch.inf).amax(dim=1, keepdim=True))}
        _lost_a_tie(got, tied, case)
        return
    r, u, _ = _world(subject, case)
    missed = _missed(r)
    tied = {}
    if "slot" in got:
        tied["slot"] = u == u.amin(dim=1, keepdim=True)
        missed = missed & (torch.arange(r.shape[1]) != got["slot"][:, None])
    if "positive" in got:
        tied["positive"] = (r > 0) & (r == r.amax(dim=1, keepdim=True))
        tied["negative"] = missed & (u == u.masked_fill(~missed, -torch.inf).amax(dim=1, keepdim=True))
    if not tied:
        raise NotApplicable("it answers no slot, positive or negative")
    _lost_a_tie(got, tied, case)


def _lost_a_tie(got, tied, case):
    """Demand of each choice of an answer that of those it is tied with it has the largest key, or the lowest index."""
    for name, among in tied.items():
        keys = case.get("tie_break", torch.zeros(among.shape))
        for q, chosen in enumerate(got[name].tolist()):
            if chosen < 0 or not among[q, chosen]:
                continue  # what is chosen outside a tie is for other laws to judge
            best = min(among[q].nonzero().flatten().tolist(), key=lambda i: (-keys[q, i].item(), i))
            what = "key" if "tie_break" in case else "index"
            demand(
                _at(q, len(among), best == chosen),
                f"{name}: the tie went to {chosen}, expected {best} by its {what}",
                got,
            )


def _at(place, length, holds):
    whole = torch.ones(length, dtype=torch.bool)
    whole[place] = holds
    return whole


# ---- numbers


def _dtype(draw, case, subject):
    return {"dtype": draw(st.sampled_from(["float16", "bfloat16", "float32"]))}


@law(*BY_SCORE, "group_regimes", "group_advantages", more=_dtype)
def dtype(subject, case, dtype):
    """The same numbers in another dtype give the same choice, and what is answered in numbers has the dtype of the rewards and
    differs by its rounding."""
    dtype = getattr(torch, dtype)
    limits = torch.finfo(dtype)
    floats = {n: v for n, v in case.items() if isinstance(v, torch.Tensor) and v.dtype.is_floating_point}
    narrow = {name: value.to(dtype) for name, value in floats.items()}
    narrow["rewards"] = case["rewards"].clamp(limits.min / 2, limits.max / 2).to(dtype)  # half cannot hold every reward
    got = subject.answer(case | narrow)
    wide = subject.answer(case | {name: value.double() for name, value in narrow.items()})
    for name, (_, type_) in subject.kind.answer.items():
        if name in got and type_ == "float":
            demand(got[name].dtype == dtype, f"{name}: answered {got[name].dtype} for {dtype}", got)
            least = limits.smallest_normal * limits.eps
            if subject.kind.name in (
                "group_advantages",
                "hybrid",
            ):  # the mean is rounded as a part of the largest reward
                r, most = narrow["rewards"].double(), wide[name].abs().amax(dim=1)
                spread = r.amax(dim=1) - r.amin(dim=1)
                off = torch.where(spread > 0, limits.eps * r.abs().amax(dim=1) / spread * most, 0)
                least += 8 * off.max().item()
            same({name: got[name]}, {name: wide[name]}, f"differs in {dtype}", rtol=4 * limits.eps, atol=least)
        elif name in got:
            same({name: got[name]}, {name: wide[name]}, f"differs in {dtype}")


@law(*BY_SCORE, "group_regimes", "group_advantages", extremes=True, dtype=None)
def finite(subject, case):
    """Huge and tiny rewards, and infinite scores or keys, give finite advantages and the choice they should."""
    got = subject.answer(case)
    if "advantages" in got:
        demand(got["advantages"].isfinite().all(dim=1), "an advantage is not finite", got)
    known = getattr(loops, subject.kind.name)
    if subject.kind.name in BY_SCORE and not subject.takes("logps"):
        accepted = {name: value for name, value in case.items() if name != "logps"}
        expected = known(**accepted)._asdict()
        same(got, {n: v for n, v in expected.items() if n in ("slot", "positive", "negative")}, "differs")


# ---- tokens


@law("branch_mask")
def prefix(subject, case):
    """False exactly on the tokens that are shared from the start: ``mask_t = any(p_s != n_s for s <= t)``."""
    positive, negative = case["positive_tokens"], case["negative_tokens"]
    got = subject.answer(case)
    shared = (positive == negative).long().cumprod(dim=-1).bool()
    demand((got["mask"] == ~shared).all(), "not the tokens from the first difference on", got, {"mask": ~shared})


@law("branch_mask")
def symmetry(subject, case):
    """Either of the two leaves the other at the same token."""
    turned = {"positive_tokens": case["negative_tokens"], "negative_tokens": case["positive_tokens"]}
    same(subject.answer(turned), subject.answer(case), "differs with the two exchanged")


@law(
    "branch_mask",
    "token_advantages",
    more=lambda draw, case, subject: {"offset": draw(st.sampled_from([1, 1000, 2**40]))},
)
def renaming_tokens(subject, case, offset):
    """Codes are names: giving every code another number changes nothing."""
    named = {n: v for n, v in case.items() if isinstance(v, torch.Tensor) and v.dtype == torch.int64}
    renamed = {name: torch.where(value < 0, value, value + offset) for name, value in named.items()}
    same(subject.answer(case | renamed), subject.answer(case), "differs after renaming the codes")


# ---- scores


SCORES = ("structural_scores", "hit_rewards")
BY_SID = (*SCORES, "recast_from_sids", "nearness", "choose_anchor")


def _shuffled(draw, case, subject):
    m, k = case["predictions"].shape[2], case["targets"].shape[1]
    order = draw(strategies.permutations(1, m))[0]
    again = draw(st.lists(st.integers(0, m - 1), max_size=3)) if m else []  # some of them, so that their shares change
    return {"order": torch.cat([order, torch.tensor(again, dtype=torch.int64)]), "reverse": k > 1}


@law(*SCORES, "recast_from_sids", more=_shuffled)
def sets(subject, case, order, reverse):
    """The SIDs of a response, and the targets, are sets: order, copies and padding change nothing, to the last bit."""
    predictions, targets = case["predictions"], case["targets"]
    predictions = predictions[:, :, order]
    targets = torch.cat([targets.flip(1) if reverse else targets, torch.full_like(targets, -1)], dim=1)
    predictions = torch.cat([predictions, torch.full_like(predictions[:, :, :1], -1)], dim=2)
    again = subject.answer(case | {"predictions": predictions, "targets": targets})
    same(again, subject.answer(case), "depends on order, copies or padding", rtol=0, atol=0)


@law(*SCORES)
def between_0_and_1(subject, case):
    """Every score and reward is in [0, 1]; a response that names nothing, or a prompt without targets, gets 0."""
    (name,) = subject.kind.answer
    value = subject.answer(case)[name]
    demand(((value >= 0) & (value <= 1)).all(dim=1), f"{name} outside [0, 1]", {name: value})
    named = (case["predictions"] >= 0).all(dim=-1).any(dim=-1)
    wanted = (case["targets"] >= 0).all(dim=-1).any(dim=-1)
    demand(((value == 0) | (named & wanted[:, None])).all(dim=1), f"{name} above 0 for an empty set", {name: value})


@law(*SCORES, named=(1, 1))
def exact_match_is_best(subject, case):
    """A response that names one SID gets 1 exactly where that SID is a target."""
    (name,) = subject.kind.answer
    value = subject.answer(case)[name]
    r = loops.hit_rewards(case["predictions"], case["targets"])
    demand(((value == 1) == (r == 1)).all(dim=1), f"{name} is 1 for a miss, or less for a hit", {name: value})


@law(*BY_SID, more=lambda draw, case, subject: {"offset": draw(st.sampled_from([1, 1000, 2**40]))})
def renaming(subject, case, offset):
    """Codes are names: giving every code another number changes nothing."""
    sids = [name for name in ("predictions", "targets") if name in case]
    renamed = {n: torch.where(case[n] < 0, case[n], case[n] + offset) for n in sids}
    same(subject.answer(case | renamed), subject.answer(case), "differs after renaming the codes")


def _matched(draw, case, subject):
    levels = draw(st.integers(1, 5))
    matched = draw(st.integers(0, levels))
    target = torch.arange(levels)
    prediction = torch.where(target < matched, target, target + 1)
    return {"predictions": prediction[None, None, None], "targets": target[None, None], "matched": matched}


@law("structural_scores", "nearness", more=_matched)
def ten_times_a_code(subject, case, matched):
    """One more leading code that agrees is worth ten times as much: ``u = 10 ** (m - L)`` for ``m >= 1`` of ``L`` codes."""
    levels = case["targets"].shape[-1]
    expected = {subject.kind.main: torch.tensor([[10.0 ** (matched - levels) if matched else 0.0]])}
    same(subject.answer(case), expected, f"differs for {matched} of {levels} codes")
