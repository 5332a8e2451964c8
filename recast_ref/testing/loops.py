"""The definitions as plain loops over numbers: slow, and sharing nothing with :mod:`recast_ref.reference`.

The same names and arguments again, so that the reference can itself be checked: ``recast-ref check
recast_ref.reference:recast --against loops``. Arguments are not checked.
"""

import math
from fractions import Fraction

import torch

from ..reference import Contrast, Hybrid, PolicyLoss, ReCast, Repair


def _index(values):
    return torch.tensor(values, dtype=torch.int64)


def _like(rows, tensor):
    return torch.tensor(rows, dtype=tensor.dtype).view(tensor.shape)


def _keys(tie_break, rewards):
    return torch.zeros(rewards.shape).tolist() if tie_break is None else tie_break.tolist()


def _sets(predictions, targets):
    """For each prompt: the SIDs each of its responses names, and its targets, as sets."""
    for responses, wanted in zip(predictions.tolist(), targets.tolist()):
        yield (
            [{tuple(p) for p in response if min(p) >= 0} for response in responses],
            {tuple(t) for t in wanted if min(t) >= 0},
        )


def _phi(p, t):
    matched = 0
    while matched < len(t) and p[matched] == t[matched]:
        matched += 1
    return 10.0 ** (matched - len(t)) if matched else 0.0


def structural_scores(predictions, targets):
    rows = []
    for responses, wanted in _sets(predictions, targets):
        best = [[max((_phi(p, t) for t in wanted), default=0.0) for p in sorted(named)] for named in responses]
        rows.append([math.fsum(each) / len(each) if each else 0.0 for each in best])
    return torch.tensor(rows, dtype=torch.float32).view(predictions.shape[:2])


def hit_rewards(predictions, targets):
    rows = [[float(bool(named & wanted)) for named in responses] for responses, wanted in _sets(predictions, targets)]
    return torch.tensor(rows, dtype=torch.float32).view(predictions.shape[:2])


def group_regimes(rewards):
    return _index([min(sum(r > 0 for r in row), 2) for row in rewards.tolist()])


def group_advantages(rewards, normalize=True, eps=1e-6):
    rows = []
    for row in rewards.tolist():
        row = [Fraction(r) for r in row]  # exact: nothing is rounded, overflows or vanishes but the answer
        mean, std = Fraction(0), Fraction(1)
        if len(row) > 1:
            mean, spread = sum(row) / len(row), max(row) - min(row)
            variance = sum((r - mean) ** 2 for r in row) / (len(row) - 1)
            std = spread * Fraction(math.sqrt(variance / spread**2)) if spread else Fraction(0)
        rows.append([float((r - mean) / (std + Fraction(eps)) if normalize else r - mean) for r in row])
    return _like(rows, rewards)


def repair(rewards, scores, repairable=None, tie_break=None):
    new_rewards, new_scores, slots = rewards.detach().clone(), scores.detach().clone(), []
    usable = [True] * len(rewards) if repairable is None else repairable.tolist()
    for q, (r, u, key) in enumerate(zip(rewards.tolist(), scores.tolist(), _keys(tie_break, rewards))):
        slot = -1
        if r and usable[q] and not any(x > 0 for x in r):
            slot = min(range(len(r)), key=lambda i: (u[i], -key[i], i))
            new_rewards[q, slot] = new_scores[q, slot] = 1.0
        slots.append(slot)
    return Repair(_index(slots), new_rewards, new_scores)


def contrast(rewards, scores, weight=1.0, negative_weight=None, tie_break=None):
    negative_weight = weight if negative_weight is None else negative_weight
    positives, negatives, rows = [], [], []
    for r, u, key in zip(rewards.tolist(), scores.tolist(), _keys(tie_break, rewards)):
        index, row = range(len(r)), [0.0] * len(r)
        positive = min((i for i in index if r[i] > 0), key=lambda i: (-r[i], -key[i], i), default=-1)
        negative = min((i for i in index if r[i] <= 0), key=lambda i: (-u[i], -key[i], i), default=-1)
        if positive < 0 or negative < 0:
            positive = negative = -1
        else:
            row[positive], row[negative] = weight, -negative_weight
        positives.append(positive), negatives.append(negative), rows.append(row)
    return Contrast(_index(positives), _index(negatives), _like(rows, rewards))


def recast(rewards, scores, repairable=None, weight=1.0, negative_weight=None, tie_break=None):
    slot, rewards, scores = repair(rewards, scores, repairable, tie_break)
    return ReCast(slot, *contrast(rewards, scores, weight, negative_weight, tie_break))


def recast_from_sids(predictions, targets, weight=1.0, negative_weight=None, tie_break=None):
    rewards, scores = hit_rewards(predictions, targets), structural_scores(predictions, targets)
    repairable = torch.tensor([bool(wanted) for _, wanted in _sets(predictions, targets)], dtype=torch.bool)
    return recast(rewards, scores, repairable, weight, negative_weight, tie_break)


def hybrid(rewards, scores, repairable=None, weight=1.0, negative_weight=0.3, tie_break=None, normalize=True, eps=1e-6):
    slots, positives, negatives, pairs = (
        part.tolist() for part in recast(rewards, scores, repairable, weight, negative_weight, tie_break)
    )
    rows = []
    for q, (r, whole) in enumerate(zip(rewards.tolist(), group_advantages(rewards, normalize, eps).tolist())):
        if any(x > 0 for x in r):
            positives[q] = negatives[q] = -1
            rows.append(whole)
        else:
            rows.append(pairs[q])
    return Hybrid(_index(slots), _index(positives), _index(negatives), _like(rows, rewards))


def choose_anchor(targets, values, tie_break=None):
    chosen = []
    for sids, value, key in zip(targets.tolist(), values.tolist(), _keys(tie_break, values)):
        real = [i for i, sid in enumerate(sids) if min(sid) >= 0]
        chosen.append(min(real, key=lambda i: (-value[i], -key[i], i), default=-1))
    return _index(chosen)


def nearness(predictions, targets):
    rows = []
    for (responses, _), wanted in zip(_sets(predictions, targets), targets.tolist()):
        named = set().union(*responses)
        rows.append([max((_phi(p, t) for p in named), default=0.0) if min(t) >= 0 else 0.0 for t in wanted])
    return torch.tensor(rows, dtype=torch.float32).view(targets.shape[:2])


def anchor_weights(logps, alpha=0.5, largest=4.0):
    powers = [alpha * logp for logp in logps.tolist()]
    top = max(powers, default=0.0)
    p = [math.exp(power - top) for power in powers]  # in units of the likeliest
    return _like([min(each * len(p) / math.fsum(p), largest) for each in p], logps)


def branch_mask(positive_tokens, negative_tokens):
    *lead, length = positive_tokens.shape
    shape, rows = (math.prod(lead), length), []
    for p, n in zip(positive_tokens.reshape(shape).tolist(), negative_tokens.reshape(shape).tolist()):
        rows.append([p[: t + 1] != n[: t + 1] for t in range(length)])
    return torch.tensor(rows, dtype=torch.bool).view(positive_tokens.shape)


def token_logps(logits, tokens):
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    picked = []
    for row, token in zip(wide.reshape(-1, wide.shape[-1]), tokens.flatten().tolist()):
        top = row.detach().max()
        picked.append(row[token] - top - (row - top).exp().sum().log())
    return torch.stack(picked).view(tokens.shape) if picked else wide.sum(dim=-1)


def policy_loss(
    logps,
    old_logps,
    advantages,
    mask,
    ref_logps=None,
    clip_low=0.2,
    clip_high=0.28,
    dual_clip=3.0,
    kl_coef=0.0,
    aggregate="token-mean",
):
    """verl's loss token by token, on 0-d tensors so that autograd gives its gradient."""
    dtype = torch.float64 if torch.float64 in (logps.dtype, old_logps.dtype, advantages.dtype) else torch.float32
    advantages = advantages.detach()
    zero = logps.new_zeros((), dtype=dtype) + 0 * torch.where(mask.bool(), logps, 0.0).to(dtype).sum()
    rows = []
    for b in range(logps.shape[0]):
        row = []
        for t in range(logps.shape[1]):
            if not mask[b, t]:
                continue
            logp = logps[b, t].to(dtype)
            a = float(advantages[b] if advantages.dim() == 1 else advantages[b, t])
            ratio = (logp - old_logps[b, t].detach()).clamp(-20, 20).exp()
            size = ratio.item()
            held = min(max(size, 1 - clip_low), 1 + clip_high)
            clipped = -a * size < -a * held
            policy = zero.detach() - a * held if clipped else -a * ratio
            if a < 0 and policy.item() > -a * dual_clip:
                policy = zero.detach() - a * dual_clip
            kl = zero.detach()
            if ref_logps is not None:
                x = (ref_logps[b, t].detach() - logp).clamp(-20, 20)
                kl = (x.exp() - x - 1).clamp(-10, 10)
            row.append((policy, kl, float(clipped)))
        if row:
            rows.append(row)

    def reduce(part):
        if not rows:
            return zero
        sums = [sum(token[part] for token in row) for row in rows]
        if aggregate == "token-mean":
            return sum(sums) / sum(map(len, rows))
        if aggregate == "seq-mean-token-mean":
            sums = [s / len(row) for s, row in zip(sums, rows)]
        return sum(sums) / len(rows)

    policy, kl = reduce(0) + zero, reduce(1) + zero
    clipped = sum(token[2] for row in rows for token in row) / max(sum(map(len, rows)), 1)
    return PolicyLoss(policy + kl_coef * kl, policy, kl, zero.new_tensor(clipped))


def logits_loss(
    logits,
    tokens,
    old_logps,
    advantages,
    mask,
    ref_logps=None,
    clip_low=0.2,
    clip_high=0.28,
    dual_clip=3.0,
    kl_coef=0.0,
    aggregate="token-mean",
    inplace_backward=False,
):
    kept = mask.bool()
    logps = token_logps(torch.where(kept[..., None], logits, 0.0), tokens.where(kept, 0))
    options = (clip_low, clip_high, dual_clip, kl_coef, aggregate)
    return policy_loss(logps, old_logps, advantages, mask, ref_logps, *options)
