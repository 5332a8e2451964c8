"""Argument checks: bad input is met at the door, with a message that names the argument, what came and what is wanted.

Each function of :mod:`recast_ref.reference` begins with one of those at the end of this file. :mod:`recast_ref.fast` calls
the same one to put into words what a kernel refused, and its fake kernels call it with ``values=False``: shapes, dtypes and
devices, but no values.
"""

import math
import numbers

import torch

HALF = (torch.float16, torch.bfloat16)
AGGREGATES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum")
MOST_LEVELS = 15  # phi is summed as an integer of L digits, which has to fit in int64 with room for the sum
OPTIONAL = ("repairable", "tie_break", "ref_logps")

_KINDS = {
    "floating": ("float32, float64, float16 or bfloat16", lambda dtype: dtype in (torch.float32, torch.float64, *HALF)),
    "int64": ("torch.int64", lambda dtype: dtype == torch.int64),
    "bool": ("torch.bool", lambda dtype: dtype == torch.bool),
    "0/1": ("bool, or a numeric dtype holding only 0 and 1", lambda dtype: not dtype.is_complex),
}

# A group with a gap has no mean and cannot be ranked, so it goes as a whole.
_FROM_TRL = (
    "; TRL gives NaN where a reward function returns None: drop those prompts first, "
    "rewards[~rewards.isnan().any(dim=1)]"
)


def dense(**tensors):
    """Refuse what no kernel takes: anything but tensors (``None`` for optional ones), and sparse or nested tensors."""
    for name, value in tensors.items():
        if isinstance(value, torch.Tensor):
            if value.is_nested:
                raise TypeError(f"{name}: expected a dense tensor, got a nested one; pad it first")
            if value.layout is not torch.strided:
                raise TypeError(f"{name}: expected a dense tensor, got layout {value.layout}; call .to_dense() first")
        elif value is not None or name not in OPTIONAL:
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")


class Arguments:
    """The tensors of one call, held to each other.

    Dimensions are named by letters: the first tensor that uses a letter fixes its size, later ones must agree. All
    tensors must be on the device of the first. ``"... T"`` stands for any number of leading dimensions.
    """

    def __init__(self):
        self.sizes = {}
        self.device = None
        self.device_of = None

    def tensor(self, name, value, dims, kind, hint=""):
        """Return ``value`` if it is a tensor of the named dimensions and kind (a key of ``_KINDS``), else raise.

        ``hint`` is added to what the message says is wanted.

        Raises:
            TypeError: not a tensor, a sparse or nested one, or another dtype.
            ValueError: another shape or device.
        """
        dense(**{name: value})
        wanted, accepts = _KINDS[kind]
        if not accepts(value.dtype):
            raise TypeError(f"{name}: expected {wanted}, got {value.dtype}")
        if not self._shape_agrees(value.shape, dims.split()):
            wanted = f"{self._describe(dims)} {hint}".rstrip()
            raise ValueError(f"{name}: expected shape {wanted}, got {tuple(value.shape)}")
        if self.device is None:
            self.device, self.device_of = value.device, name
        elif value.device != self.device:
            raise ValueError(f"{name}: expected device {self.device}, where {self.device_of} is, got {value.device}")
        return value

    def _shape_agrees(self, shape, letters):
        shape, sizes = tuple(shape), dict(self.sizes)
        if letters[0] == "...":
            letters = letters[1:]
            cut = len(shape) - len(letters)
            if cut < 0 or sizes.setdefault("...", shape[:cut]) != shape[:cut]:
                return False
            shape = shape[cut:]
        if len(shape) != len(letters) or any(sizes.setdefault(n, size) != size for n, size in zip(letters, shape)):
            return False
        self.sizes = sizes
        return True

    def _describe(self, dims):
        letters = dims.split()
        parts = []
        for letter in letters:
            size = self.sizes.get(letter)
            if size is None:
                parts.append(letter)
            elif letter == "...":
                parts.extend(str(s) for s in size)
            else:
                parts.append(f"{letter}={size}")
        return "(" + ", ".join(parts) + ("," if len(parts) == 1 else "") + ")"


def refuse(name, bad, tensor, wanted, if_nan=""):
    """Raise ``ValueError`` if any element of the bool tensor ``bad`` is set, showing the first such value and its place.

    ``if_nan`` is added where that value is NaN: where it may come from, and what to do.
    """
    if bad.any():
        place = tuple(bad.nonzero()[0].tolist())
        value = tensor[place].item()
        hint = if_nan if math.isnan(value) else ""
        raise ValueError(f"{name}: expected {wanted}, got {value} at {list(place)}{hint}")


def number(name, value, low, include_low=True, dtype=None):
    """Return ``value`` as a float if it is a finite real number ``>= low`` (``> low`` without ``include_low``), else raise.

    With ``dtype``, it must not overflow, or vanish, in that dtype.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        hint = "; call .item() on it" if isinstance(value, torch.Tensor) else ""
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}{hint}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (low < number < math.inf or (include_low and number == low)):  # in words that torch.compile can trace
        raise ValueError(f"{name}: expected a finite number {'>=' if include_low else '>'} {low}, got {value}")
    if dtype is not None and number:
        limits = torch.finfo(dtype)  # and no tensor of it: torch.compile could not trace what that becomes
        # Half a step above the largest, and above 0, are still rounded to it.
        half_a_step = limits.max * limits.eps / (4 - 2 * limits.eps)
        if number - limits.max >= half_a_step or 2 * number <= limits.smallest_normal * limits.eps:
            becomes = "inf" if number > 1 else "0.0"
            raise ValueError(f"{name}: expected a number that {dtype} can hold, got {value}, which becomes {becomes}")
    return number


def flag(name, value):
    """Return ``value`` if it is True or False, else raise: a number given by position would pass for one."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return value


# ---- the arguments of each function: first how they fit together, then their values


def sid_tensors(predictions, targets, tie_break=None, values=True):
    """Check SIDs, and the tie keys that go with them."""
    arguments = Arguments()
    arguments.tensor("predictions", predictions, "Q G M L", "int64")
    arguments.tensor("targets", targets, "Q K L", "int64")
    count, levels = predictions.shape[2:]
    if not 1 <= levels <= MOST_LEVELS:
        raise ValueError(f"predictions: expected 1 to {MOST_LEVELS} codes per SID (last dimension), got {levels}")
    most = (2**63 - 1) // 10 ** (levels - 1)
    if count > most:
        raise ValueError(f"predictions: expected at most {most} SIDs of {levels} codes in a response, got {count}")
    _can_be_ranked(arguments, values, tie_break=tie_break)


def reward_tensor(rewards, values=True):
    """Check the rewards of groups: any finite ones."""
    Arguments().tensor("rewards", rewards, "Q G", "floating")
    if values:
        _finite(rewards)


def group_tensors(rewards, scores, repairable=None, tie_break=None, values=True):
    """Check the tensors that describe groups. Scores and tie keys are only ranked, so all but NaN will do."""
    arguments = Arguments()
    arguments.tensor("rewards", rewards, "Q G", "floating")
    if repairable is not None:
        arguments.tensor("repairable", repairable, "Q", "bool")
    _can_be_ranked(arguments, values, scores=scores, tie_break=tie_break)
    if values:
        _finite(rewards)


def _finite(rewards):
    refuse("rewards", ~rewards.isfinite(), rewards, "finite values", _FROM_TRL)


def _can_be_ranked(arguments, values, **tensors):
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None or name not in OPTIONAL}
    for name, tensor in given.items():
        arguments.tensor(name, tensor, "Q G", "floating")
    for name, tensor in given.items() if values else ():
        refuse(name, tensor.isnan(), tensor, "values that can be ranked")


def pair_weights(weight, negative_weight, dtype):
    """Return ``w`` and ``w_neg`` as floats; ``w_neg`` is ``w`` unless it is given. Advantages of ``dtype`` must hold them."""
    dtype = dtype if dtype.is_floating_point else None  # the rewards are then refused
    weight = number("weight", weight, low=0, include_low=False, dtype=dtype)
    if negative_weight is None:
        return weight, weight
    return weight, number("negative_weight", negative_weight, low=0, dtype=dtype)


def branch_tensors(positive_tokens, negative_tokens):
    """Check the tokens of two responses."""
    arguments = Arguments()
    arguments.tensor("positive_tokens", positive_tokens, "... T", "int64")
    arguments.tensor("negative_tokens", negative_tokens, "... T", "int64")


def anchor_tensors(targets, ranked, tie_break=None, values=True):
    """Check the targets that anchors are chosen from, and what ranks them: the argument ``values``, and the tie keys."""
    arguments = Arguments()
    arguments.tensor("targets", targets, "Q K L", "int64")
    arguments.tensor("values", ranked, "Q K", "floating")
    if tie_break is not None:
        arguments.tensor("tie_break", tie_break, "Q K", "floating")
    if values:
        real = (targets >= 0).all(dim=-1)
        refuse("values", ranked.isnan() & real, ranked, "values that can be ranked")
        if tie_break is not None:
            refuse("tie_break", tie_break.isnan() & real, tie_break, "values that can be ranked")


def anchor_logps(logps, values=True):
    """Check the log-probs of anchors."""
    Arguments().tensor("logps", logps, "Q", "floating")
    if values:
        refuse("logps", ~logps.isfinite(), logps, "finite values: the policy must be able to say the anchor")


def anchor_options(alpha, largest, dtype):
    """Return the two numbers as floats. Weights of ``dtype`` must hold the largest."""
    alpha = number("alpha", alpha, low=0)
    if alpha > 1:
        raise ValueError(f"alpha: expected a number in [0, 1], 0 for SFT and 1 for the policy gradient, got {alpha}")
    dtype = dtype if dtype.is_floating_point else None  # the log-probs are then refused
    return alpha, number("largest", largest, low=1, dtype=dtype)


def logit_tensors(logits, tokens, values=True):
    """Check logits and the tokens that were drawn from them."""
    arguments = Arguments()
    arguments.tensor("logits", logits, "... T V", "floating")
    arguments.tensor("tokens", tokens, "... T", "int64")
    _some_vocabulary(logits, tokens)
    if values:
        _in_vocabulary(logits, tokens)
    return arguments


def _some_vocabulary(logits, tokens):
    if logits.shape[-1] == 0 and tokens.numel() > 0:
        raise ValueError(f"logits: expected a vocabulary, V >= 1 (last dimension), got {tuple(logits.shape)}")


def _in_vocabulary(logits, tokens, unmasked=True):
    size = logits.shape[-1]
    refuse("tokens", unmasked & ((tokens < 0) | (tokens >= size)), tokens, f"values in [0, V={size})")


def loss_tensors(logps, old_logps, advantages, mask, ref_logps=None, values=True):
    """Check log-probs, advantages and mask."""
    arguments = Arguments()
    arguments.tensor("logps", logps, "B T", "floating")
    _beside(arguments, old_logps, advantages, mask, ref_logps)
    if values:
        _zero_or_one(mask)


def logits_loss_tensors(logits, tokens, old_logps, advantages, mask, ref_logps=None, values=True):
    """Check logits and tokens, and what a loss of log-probs is given beside them. Only the unmasked tokens are looked at."""
    arguments = Arguments()
    arguments.tensor("logits", logits, "B T V", "floating")
    arguments.tensor("tokens", tokens, "B T", "int64")
    _beside(arguments, old_logps, advantages, mask, ref_logps)
    _some_vocabulary(logits, tokens)
    if values:
        _zero_or_one(mask)
        _in_vocabulary(logits, tokens, mask.bool())


def _beside(arguments, old_logps, advantages, mask, ref_logps):
    arguments.tensor("old_logps", old_logps, "B T", "floating")
    if isinstance(advantages, torch.Tensor) and advantages.dim() == 1:
        arguments.tensor("advantages", advantages, "B", "floating")
    else:
        arguments.tensor("advantages", advantages, "B T", "floating", hint="or (B,)")
    arguments.tensor("mask", mask, "B T", "0/1")
    if ref_logps is not None:
        arguments.tensor("ref_logps", ref_logps, "B T", "floating")


def _zero_or_one(mask):
    refuse("mask", (mask != 0) & (mask != 1), mask, "only 0 and 1")


def loss_options(clip_low, clip_high, dual_clip, kl_coef, aggregate, has_ref):
    """Return the four numbers as floats, and ``aggregate``."""
    clip_low = number("clip_low", clip_low, low=0, dtype=torch.float32)
    clip_high = number("clip_high", clip_high, low=0, dtype=torch.float32)
    dual_clip = number("dual_clip", dual_clip, low=1, include_low=False, dtype=torch.float32)
    kl_coef = number("kl_coef", kl_coef, low=0, dtype=torch.float32)
    if kl_coef > 0 and not has_ref:
        raise ValueError(f"ref_logps: needed for kl_coef={kl_coef}, got None; pass them, or kl_coef=0")
    if not isinstance(aggregate, str) or aggregate not in AGGREGATES:
        raise ValueError(f"aggregate: expected one of {', '.join(AGGREGATES)}, got {aggregate!r}")
    return clip_low, clip_high, dual_clip, kl_coef, aggregate
