"""Argument checks: bad input is met at the door, with a message that names the argument, what came and what is wanted."""

import math
import numbers

import torch

HALF = (torch.float16, torch.bfloat16)

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
            TypeError: not a tensor, or another dtype.
            ValueError: another shape or device.
        """
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
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


def group_tensors(rewards=None, scores=None, repairable=None, tie_break=None):
    """Check the tensors that describe groups, those that are not ``None``: shapes, dtypes, device, and values.

    Rewards must be finite, scores and tie keys must not be NaN (they are only ranked).
    """
    arguments = Arguments()
    if rewards is not None:
        arguments.tensor("rewards", rewards, "Q G", "floating")
        refuse("rewards", ~rewards.isfinite(), rewards, "finite values", _FROM_TRL)
    if scores is not None:
        arguments.tensor("scores", scores, "Q G", "floating")
        refuse("scores", scores.isnan(), scores, "values that can be ranked")
    if repairable is not None:
        arguments.tensor("repairable", repairable, "Q", "bool")
    if tie_break is not None:
        arguments.tensor("tie_break", tie_break, "Q G", "floating")
        refuse("tie_break", tie_break.isnan(), tie_break, "values that can be ranked")


def number(name, value, low, include_low=True, dtype=None):
    """Return ``value`` as a float if it is a finite real number ``>= low`` (``> low`` without ``include_low``), else raise.

    With ``dtype``, it must not overflow, or vanish, in that dtype.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < low or (number == low and not include_low):
        raise ValueError(f"{name}: expected a finite number {'>=' if include_low else '>'} {low}, got {value}")
    if dtype is not None and number:
        stored = torch.tensor(number, dtype=torch.float64).to(dtype).item()
        if not math.isfinite(stored) or stored == 0:
            raise ValueError(f"{name}: expected a number that {dtype} can hold, got {value}, which becomes {stored}")
    return number


def flag(name, value):
    """Return ``value`` if it is True or False, else raise: a number given by position would pass for one."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return value
