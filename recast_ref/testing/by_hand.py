"""Tables worked by hand: arguments and the answer they should get, for each kind."""

import math

import torch

T = torch.tensor
INF = math.inf


def _group(rewards, scores, tie_break=None, repairable=None, **options):
    case = {"rewards": T([rewards]), "scores": T([scores])}
    if tie_break is not None:
        case["tie_break"] = T([tie_break])
    if repairable is not None:
        case["repairable"] = T([repairable])
    return case | options


def _row(cells):
    return T([[float(cell) for cell in cells]])


def _repair(rewards, scores, tie_break, slot, repairable=None):
    case = _group(rewards, scores, tie_break, repairable)
    after = {"rewards": case["rewards"].clone(), "scores": case["scores"].clone()}
    if slot >= 0:
        after["rewards"][0, slot] = after["scores"][0, slot] = 1.0
    return case | {"expected": {"slot": T([slot]), **after}}


def _pair(group, positive, negative, advantages, slot=None):
    slots = {} if slot is None else {"slot": T([slot])}
    pair = {"positive": T([positive]), "negative": T([negative]), "advantages": _row(advantages)}
    return group | {"expected": slots | pair}


REPAIR = [
    _repair([0.0, 0, 0], [0.1, 0.0, 0.01], None, 1),
    _repair([0.0, 0, 0], [0.1, 0.0, 0.0], None, 1),  # tie: the lowest index
    _repair([0.0, 0, 0], [0.1, 0.0, 0.0], [9.0, 0.2, 0.7], 2),  # tie: the largest key among the tied
    _repair([0.0, 0, 0], [0.1, 0.0, 0.0], [9.0, -INF, -INF], 1),
    _repair([0.0, 0, 0], [0.1, 0.0, 0.0], [9.0, 0.5, 0.5], 1),  # and equal keys: the lowest index
    _repair([0.0, 1, 0], [0.1, 1.0, 0.0], None, -1),  # a hit: untouched
    _repair([0.0, 0.2, 0], [0.1, 0.1, 0.0], None, -1),  # a graded reward is a hit
    _repair([0.0, 0, 0], [0.1, 0.0, 0.01], None, -1, repairable=False),
    _repair([0.0], [0.0], None, 0),
    _repair([-1.0, 1, -1], [0.1, 1.0, 0.0], None, -1),  # -1 and +1
    _repair([-1.0, -1, -1], [0.1, 0.0, 0.01], None, 1),  # no hit, whatever the misses got
    _repair([0.0, -0.5, 0], [0.1, 0.2, 0.01], None, 2),  # a penalty does not choose the slot
    _repair([-0.5, 0.2, 0], [0.1, 0.1, 0.0], None, -1),
]

CONTRAST = [
    _pair(_group([0.0, 1, 0], [0.1, 1.0, 0.01]), 1, 0, [-1, 1, 0]),
    # Graded: 0.5 is neither the strongest nor a negative.
    _pair(_group([0.5, 1, 0], [0.9, 1.0, 0.01]), 1, 2, [0, 1, -1]),
    _pair(_group([1.0, 1, 0, 0], [1.0, 1.0, 0.1, 0.1]), 0, 2, [1, 0, -1, 0]),  # ties: the lowest index
    _pair(_group([1.0, 1, 0, 0], [1.0, 1.0, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]), 1, 3, [0, 1, 0, -1]),  # the largest key
    _pair(_group([0.0, 1, 0], [0.1, 1.0, 0.01], weight=2.0), 1, 0, [-2, 2, 0]),
    _pair(_group([0.0, 1, 0], [0.1, 1.0, 0.01], weight=2.0, negative_weight=0.5), 1, 0, [-0.5, 2, 0]),
    _pair(_group([0.0, 1, 0], [0.1, 1.0, 0.01], negative_weight=0.0), 1, 0, [0, 1, 0]),
    _pair(_group([1.0, 1, 1], [1.0, 1.0, 1.0]), -1, -1, [0, 0, 0]),  # no negative
    _pair(_group([0.0, 1, 0], [-INF, 1.0, -INF]), 1, 0, [-1, 1, 0]),  # any score that can be ranked
    _pair(_group([-1.0, 1, -1], [0.1, 1.0, 0.01]), 1, 0, [-1, 1, 0]),  # -1 and +1
    _pair(_group([-0.5, 1, 0], [0.1, 1.0, 0.01]), 1, 0, [-1, 1, 0]),  # misses are ranked by u alone, penalty or not
    _pair(_group([0.0, 1, -0.5], [0.1, 1.0, 0.1], [0.2, 0.1, 0.3]), 1, 2, [0, 1, -1]),
    _pair(_group([-2.0, 0.1, 3.0], [0.1, 1.0, 1.0]), 2, 0, [-1, 0, 1]),
]


def _sids(predictions, targets, answer):
    case = {"predictions": T([[predictions]]), "targets": T([targets])}
    return case | {"expected": answer}


def _scored(which):
    targets = [[12, 7, 201], [44, 1, 2], [-1, 7, 201], [12, 9, -1]]  # the last two are padding
    rows = [
        ([[12, 7, 201]], 1.0, 1.0),
        ([[12, 7, 40]], 0.1, 0.0),
        ([[12, 9, 201]], 0.01, 0.0),
        ([[30, 7, 201]], 0.0, 0.0),
        ([[12, 7, 201], [30, 7, 201]], 0.5, 1.0),  # the mean over the set
        ([[12, 7, 40], [12, 7, 40]], 0.1, 0.0),  # a duplicate counts once
        ([[12, 7, 201], [30, 7, 201], [12, 7, 201]], 0.5, 1.0),  # among others too
        ([[12, 7, 40], [12, 7, -1]], 0.1, 0.0),  # padding does not count
        ([[-1, -1, -1]], 0.0, 0.0),  # an empty set
        ([[44, 1, 2], [12, 7, 40]], 0.55, 1.0),  # each against the target it agrees with best
    ]
    table = [_sids(named, targets, {which: _row([u if which == "scores" else r])}) for named, u, r in rows]
    for matched in range(16):  # fifteen codes, the most there may be, among 99 SIDs that match nothing
        named = [[i if i < matched else i + 1 for i in range(15)]] + [[100 + j] + [0] * 14 for j in range(99)]
        u = (10.0 ** (matched - 15) if matched else 0.0) / 100
        r = float(matched == 15)
        table.append(_sids(named, [list(range(15))], {which: _row([u if which == "scores" else r])}))
    return table


def _grpo(rewards, advantages, **options):
    wide = {"dtype": torch.float64}
    return {"rewards": T([rewards], **wide), **options, "expected": {"advantages": T([advantages], **wide)}}


GRPO = [
    _grpo([0.0] * 8, [0.0] * 8),
    _grpo([1.0] * 8, [0.0] * 8),
    # mean 1/8; sum of squares 7/8; std sqrt(1/8); (1 - 1/8) / sqrt(1/8) = 7 / sqrt(8)
    _grpo([1.0] + [0.0] * 7, [7 / math.sqrt(8)] + [-1 / math.sqrt(8)] * 7),
    _grpo([1.0] * 2 + [0.0] * 6, [1.6202] * 2 + [-0.54006] * 6),
    _grpo([1.0] + [0.0] * 7, [0.875] + [-0.125] * 7, normalize=False),
    _grpo([1.0] + [0.0] * 7, [0.875 / (8**-0.5 + 1)] + [-0.125 / (8**-0.5 + 1)] * 7, eps=1.0),
    _grpo([1.0], [1.0]),  # a group of one keeps its reward
    _grpo([-0.5], [-0.5]),
    _grpo([0.7] * 7, [0.0] * 7),  # their sum is not 7 * 0.7 in floating point
    _grpo([0.95] * 31, [0.0] * 31, normalize=False),
    _grpo([-1.0] * 3, [0.0] * 3),
    # mean -1/3; squares 4/9, 16/9, 4/9; std sqrt(4/3): (-2/3, 4/3, -2/3) / sqrt(4/3)
    _grpo([-1.0, 1, -1], [-1 / math.sqrt(3), 2 / math.sqrt(3), -1 / math.sqrt(3)]),
    # a hit, a miss, and a penalty for its format: mean 1/6, std sqrt(7/12)
    _grpo([1.0, 0, -0.5], [5 / math.sqrt(21), -1 / math.sqrt(21), -4 / math.sqrt(21)]),
    _grpo([1.0, 0, -0.5], [5 / 6, -1 / 6, -2 / 3], normalize=False),
    # far from 0, where a difference of squares would cancel: (2 / 3) / sqrt(1 / 3)
    _grpo([2.0**20 + 1, 2.0**20, 2.0**20], [2 / math.sqrt(3), -1 / math.sqrt(3), -1 / math.sqrt(3)]),
    # std 1e-6 / sqrt(2), so that the default eps is most of the divisor: 0.5e-6 / (0.7071e-6 + 1e-6)
    _grpo([1e-6, 0.0], [0.5 / (math.sqrt(0.5) + 1), -0.5 / (math.sqrt(0.5) + 1)]),
]

REGIMES = [
    {"rewards": T([[0.0] * 4, [1.0, 0, 0, 0], [1.0, 1, 0, 0], [1.0] * 4]), "expected": {"regimes": T([0, 1, 2, 2])}},
    {"rewards": T([[0.25, 0.0], [0.25, 3.0]]), "expected": {"regimes": T([1, 2])}},
    {"rewards": T([[-1.0, -1.0], [-1.0, 1.0], [-0.5, 0.0]]), "expected": {"regimes": T([0, 1, 0])}},
]


def _target(values, chosen, tie_break=None, padded=0):
    """Targets of two codes each, the last few of which are padding."""
    real = [[12, i] for i in range(len(values) - padded)]
    case = {"targets": T([real + [[12, -1], [-1, 7]][:padded]]), "values": T([values])}
    return case | ({} if tie_break is None else {"tie_break": T([tie_break])}) | {"expected": {"chosen": T([chosen])}}


CHOICES = [
    _target([-9.0, -4.0, -5.0], 1),
    _target([-9.0, -4.0, -1.0, 0.0], 1, padded=2),
    _target([-4.0, -4.0], 0),  # tie: the lowest index
    _target([-4.0, -9.0, -4.0, -4.0], 2, [0.1, 9.0, 0.2, 0.2]),  # tie: the largest key, then the lowest index
    _target([-4.0, -4.0, 0.0], 1, [0.1, 0.2, 9.0], padded=1),
    _target([-INF, -INF, 0.0], 0, padded=1),  # no worse than any other
    _target([-INF, -INF, 0.0], 1, [-INF, 0.0, INF], padded=1),
    _target([-9.0, -4.0, math.nan, math.nan], 1, [0.0, 0.0, math.nan, math.nan], padded=2),
    _target([0.0, 0.0], -1, padded=2),
]

NEAR = [
    {
        # (12, 9), (44, 0) and (30, 2) are named; the fourth target is padding
        "predictions": T([[[[12, 9], [44, 0]], [[44, -1], [30, 2]]]]),
        "targets": T([[[12, 7], [30, 2], [50, 9], [44, -1], [44, 1]]]),
        "expected": {"nearness": _row([0.1, 1, 0, 0, 0.1])},
    },
    # The nearest of several, not their mean.
    _sids([[12, 7, 40], [12, 1, 1], [5, 5, 5]], [[12, 7, 201]], {"nearness": _row([0.1])}),
    _sids([[-1, -1]], [[12, 7]], {"nearness": _row([0])}),
]

_P = T([0.01, 0.04, 0.16, 0.04])  # square roots 0.1, 0.2, 0.4, 0.2: mean 0.225


def _weights(logps, weights, **options):
    return {"logps": logps, **options, "expected": {"weights": T(weights)}}


WEIGHTS = [
    _weights(_P.log(), [0.1 / 0.225, 0.2 / 0.225, 0.4 / 0.225, 0.2 / 0.225]),
    _weights(_P.log(), [0.1 / 0.225, 0.2 / 0.225, 1.5, 0.2 / 0.225], largest=1.5),
    _weights(_P.log(), [0.16, 0.64, 2.56, 0.64], alpha=1.0),  # mean 0.0625
    _weights(_P.log(), [1.0] * 4, alpha=0.0),
    _weights(_P.log() - 1000, [0.1 / 0.225, 0.2 / 0.225, 0.4 / 0.225, 0.2 / 0.225]),  # no p of these is above 0
    _weights(T([0.0, *[-99.0] * 9]), [4.0, *[0.0] * 9]),  # 10, cut to 4
    _weights(T([-5.0]), [1.0]),
]


BRANCH = [
    {
        "positive_tokens": T([[12, 7, 201]] * 4),
        "negative_tokens": T([[12, 7, 40], [12, 9, 201], [12, 7, 201], [3, 7, 201]]),
        "expected": {"mask": T([[0, 0, 1], [0, 1, 1], [0, 0, 0], [1, 1, 1]]).bool()},
    }
]

LOGPS = [
    {"logits": T([[[0.0, 0.0]]]), "tokens": T([[1]]), "expected": {"logps": T([[-math.log(2)]])}},
    {"logits": T([[[0.0, -INF, 0.0]] * 2]), "tokens": T([[0, 1]]), "expected": {"logps": T([[-math.log(2), -INF]])}},
    # 1 / (1 + 2 + 5), whatever is added to the logits
    {
        "logits": T([[[0.0, math.log(2), math.log(5)]]]).double() + 1000,
        "tokens": T([[0]]),
        "expected": {"logps": T([[-math.log(8)]])},
    },
]


def _token(ratio, advantage, policy, clipped=0.0, gap=None, kl=None, kl_coef=None, **options):
    """One token with a given ratio, and ``gap = ref_logp - logp``."""
    case = {
        "logps": T([[math.log(ratio)]]).double(),
        "old_logps": T([[0.0]]).double(),
        "advantages": T([advantage]).double(),
        "mask": T([[True]]),
        **options,
    }
    expected = {"loss": policy, "policy": policy, "clip_fraction": clipped}
    if gap is not None:
        case |= {"ref_logps": case["logps"] + gap}
        expected |= {"kl": kl}
    if kl_coef is not None:
        case |= {"kl_coef": kl_coef}
        expected["loss"] = policy + kl_coef * kl
    return case | {"expected": expected}


POLICY = [
    _token(1.0, 1.0, -1.0),
    _token(1.1, 1.0, -1.1),
    _token(1.5, 1.0, -1.28, 1.0),  # a positive is not pushed past 1 + clip_high
    _token(0.5, 1.0, -0.5),  # below the range it still pulls back
    _token(0.5, -1.0, 0.8, 1.0),  # a negative is not pushed below 1 - clip_low
    _token(1.5, -1.0, 1.5),
    _token(2.9, -1.0, 2.9),
    _token(5.0, -1.0, 3.0),  # dual clip
    _token(5.0, -2.0, 6.0),
    _token(5.0, -1.0, 4.0, dual_clip=4.0),
    _token(5.0, 1.0, -3.0, 1.0, clip_high=2.0),
    _token(0.3, -1.0, 0.5, 1.0, clip_low=0.5),
    _token(math.exp(50), -1.0, math.exp(20), dual_clip=1e10),  # the log-ratio is clamped to 20
    _token(math.exp(-50), 1e9, -1e9 * math.exp(-20)),  # and to -20
    _token(1.0, 0.0, 0.0, gap=0.0, kl=0.0),
    _token(1.0, 0.0, 0.0, gap=math.log(2), kl=2 - math.log(2) - 1),
    _token(1.0, 0.0, 0.0, gap=-math.log(2), kl=0.5 + math.log(2) - 1),
    _token(1.0, 0.0, 0.0, gap=2.5, kl=math.exp(2.5) - 3.5),  # 8.68
    _token(1.0, 0.0, 0.0, gap=50.0, kl=10.0),  # kl is clamped to 10
    _token(1.0, 0.0, 0.0, gap=-50.0, kl=10.0),
    _token(1.0, 1.0, -1.0, gap=math.log(2), kl=1 - math.log(2), kl_coef=0.5),
    _token(1.0, 1.0, -1.0, gap=math.log(2), kl=1 - math.log(2), kl_coef=1.0),
    {  # no hint of the KL in the loss unless it is asked for; a row without tokens is in no mean
        "logps": torch.zeros(3, 3),
        "old_logps": torch.zeros(3, 3),
        "advantages": T([[-1.0, -2.0, -3.0], [-10.0, 9.0, 9.0], [9.0, 9.0, 9.0]]),
        "mask": T([[1, 1, 1], [1, 0, 0], [0, 0, 0]]),
        "ref_logps": torch.ones(3, 3),
        "expected": {"loss": 4.0, "policy": 4.0, "kl": math.e - 2, "clip_fraction": 0.0},  # 16 / 4
    },
]
_ragged = POLICY[-1]
for _how, _value in (
    ("token-mean", 16 / 4),
    ("seq-mean-token-mean", (2 + 10) / 2),
    ("seq-mean-token-sum", (6 + 10) / 2),
):
    POLICY.append({k: v for k, v in _ragged.items() if k != "ref_logps"} | {"aggregate": _how})
    POLICY[-1]["expected"] = {"loss": _value, "policy": _value, "kl": 0.0}


def _from_logps(case):
    """The same table for :func:`logits_loss`: a token of log-prob ``l`` in a vocabulary of two."""
    case = dict(case)
    logps = case.pop("logps").double()
    shift = 60.0  # far enough below 0 for every log-prob of the table to be one
    for name in ("old_logps", "ref_logps"):
        if name in case:
            case[name] = case[name].double() - shift
    p = logps - shift
    logits = torch.stack([p, torch.log1p(-p.exp())], dim=-1)
    return {"logits": logits, "tokens": torch.zeros(p.shape, dtype=torch.int64), **case}


TABLES = {
    "structural_scores": _scored("scores"),
    "hit_rewards": _scored("rewards"),
    "group_regimes": REGIMES,
    "group_advantages": GRPO,
    "repair": REPAIR,
    "contrast": [
        *CONTRAST,
        _pair(_group([0.0, 0, 0], [0.1, 0.2, 0.3]), -1, -1, [0, 0, 0]),  # no positive
        _pair(_group([-1.0, -0.5, 0], [0.1, 0.2, 0.3]), -1, -1, [0, 0, 0]),
    ],
    "recast": [
        *(case | {"expected": {"slot": T([-1])} | case["expected"]} for case in CONTRAST),
        _pair(_group([0.0, 0, 0], [0.1, 0.0, 0.01]), 1, 0, [-1, 1, 0], slot=1),
        _pair(_group([0.0, 0, 0], [0.1, 0.0, 0.0], [0.5, 0.1, 0.9]), 2, 0, [-1, 0, 1], slot=2),
        _pair(_group([0.0, 0, 0], [0.1, 0.0, 0.01], None, False), -1, -1, [0, 0, 0], slot=-1),
        _pair(_group([0.0], [0.0]), -1, -1, [0], slot=0),  # its anchor has no negative
        _pair(_group([-1.0, -1, -1], [0.1, 0.0, 0.01]), 1, 0, [-1, 1, 0], slot=1),  # only penalties: repaired
        _pair(_group([-0.5, 0, -0.5], [0.1, 0.01, 0.0]), 2, 0, [-1, 0, 1], slot=2),
        _pair(_group([-0.5, 0], [0.1, 0.01], None, False), -1, -1, [0, 0], slot=-1),
    ],
    "recast_from_sids": [
        _pair(
            {"predictions": T([[[[12, 7, 40]], [[30, 2, 11]], [[12, 9, 201]]]]), "targets": T([[[12, 7, 201]]])},
            *(1, 0, [-1, 1, 0], 1),
        ),
        _pair(
            {"predictions": T([[[[5, 1, 2]], [[5, 1, 3]], [[44, 0, 8]]]]), "targets": T([[[5, 1, 3]]])},
            1,
            0,
            [-1, 1, 0],
            -1,
        ),
        _pair({"predictions": T([[[[5, 1, 2]], [[5, 1, 3]]]]), "targets": T([[[5, 1, -1]]])}, -1, -1, [0, 0], -1),
    ],
    "token_advantages": [
        {
            "responses": T([[[12, 7, 40], [30, 2, 11], [12, 9, 201]]]),
            "targets": T([[12, 7, 201]]),
            "expected": {"advantages": T([[[-1.0] * 3, [1.0] * 3, [0.0] * 3]])},
        }
    ],
    "branch_mask": BRANCH,
    "choose_anchor": CHOICES,
    "nearness": NEAR,
    "anchor_weights": WEIGHTS,
    "hybrid": [
        _pair(_group([0.0, 0, 0], [0.1, 0.0, 0.01]), 1, 0, [-0.3, 1, 0], slot=1),
        _pair(
            _group([0.0, 0, 0], [0.1, 0.0, 0.0], [0.5, 0.1, 0.9], weight=2.0, negative_weight=0.5),
            *(2, 0, [-0.5, 0, 2], 2),
        ),
        _pair(_group([0.0, 0, 0], [0.1, 0.0, 0.01], None, False), -1, -1, [0, 0, 0], slot=-1),
        _pair(_group([0.0], [0.0]), -1, -1, [0], slot=0),  # its anchor has no negative
        _pair(_group([-1.0, -1, -0.5], [0.1, 0.0, 0.01]), 1, 0, [-0.3, 1, 0], slot=1),  # penalties among misses only
        # A hit: GRPO, and no anchor. Mean 1/4, std 1/2; then mean 1/6, std sqrt(7/12).
        _pair(_group([0.0, 0, 1, 0], [0.1, 0.0, 1.0, 0.0], weight=2.0), -1, -1, [-0.5, -0.5, 1.5, -0.5], slot=-1),
        _pair(_group([1.0, 0, -0.5], [1.0, 0.1, 0.0]), -1, -1, [x / math.sqrt(21) for x in (5, -1, -4)], slot=-1),
        _pair(_group([0.0, 1], [0.1, 1.0], normalize=False), -1, -1, [-0.5, 0.5], slot=-1),
        _pair(_group([0.0, 1], [0.1, 1.0], eps=1.0), -1, -1, [-0.5 / (1 + 0.5**0.5), 0.5 / (1 + 0.5**0.5)], slot=-1),
        _pair(_group([1.0, 1], [1.0, 1.0]), -1, -1, [0, 0], slot=-1),
        _pair(_group([1.0], [1.0]), -1, -1, [1], slot=-1),
    ],
    "token_logps": LOGPS,
    "policy_loss": POLICY,
    "logits_loss": [_from_logps(case) for case in POLICY],
}
