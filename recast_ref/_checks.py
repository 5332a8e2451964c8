"""Argument checks: bad input is met at the door, with a message that names the argument, what came and what is wanted."""

import math

import torch

_KINDS = {
    "floating": ("a floating-point dtype", lambda dtype: dtype.is_floating_point),
    "int64": ("torch.int64", lambda dtype: dtype == torch.int64),
    "bool": ("torch.bool", lambda dtype: dtype == torch.bool),
    "0/1": ("bool, or a numeric dtype holding only 0 and 1", lambda dtype: not dtype.is_complex),
}


class Arguments:
    """The tensors of one call, held to each other.

    Dimensions are named by letters: the first tensor that uses a letter fixes its size, later ones must agree. All
    tensors must be on the device of the first. ``"... T"`` stands for any number of leading dimensions.
    """

    def __init__(self):
        self.sizes = {}
        self.device = None
        self.device_of = None

    def tensor(self, name, value, dims, kind):
        """Return ``value`` if it is a tensor of the named dimensions and kind (a key of ``_KINDS``), else raise.

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
            raise ValueError(f"{name}: expected shape {self._describe(dims)}, got {tuple(value.shape)}")
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


def refuse(name, bad, tensor, wanted):
    """Raise ``ValueError`` if any element of the bool tensor ``bad`` is set, showing the first such value and its place."""
    if bad.any():
        place = tuple(bad.nonzero()[0].tolist())
        raise ValueError(f"{name}: expected {wanted}, got {tensor[place].item()} at {list(place)}")


def group_tensors(rewards=None, scores=None, repairable=None, tie_break=None):
    """Check the tensors that describe groups, those that are not ``None``: shapes, dtypes, device, and values.

    Rewards must be finite and not negative (they say who is a positive), scores and tie keys must not be NaN (they are
    only ranked).
    """
    arguments = Arguments()
    if rewards is not None:
        arguments.tensor("rewards", rewards, "Q G", "floating")
        refuse("rewards", ~(rewards.isfinite() & (rewards >= 0)), rewards, "finite values >= 0")
    if scores is not None:
        arguments.tensor("scores", scores, "Q G", "floating")
        refuse("scores", scores.isnan(), scores, "values that can be ranked")
    if repairable is not None:
        arguments.tensor("repairable", repairable, "Q", "bool")
    if tie_break is not None:
        arguments.tensor("tie_break", tie_break, "Q G", "floating")
        refuse("tie_break", tie_break.isnan(), tie_break, "values that can be ranked")


def number(name, value, low, include_low=True):
    """Return ``value`` if it is a finite real number ``>= low`` (``> low`` without ``include_low``), else raise."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    if not math.isfinite(value) or value < low or (value == low and not include_low):
        raise ValueError(f"{name}: expected a finite number {'>=' if include_low else '>'} {low}, got {value}")
    return value
