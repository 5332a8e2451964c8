"""The fast path where it is to be had, else the reference: ``from recast_ref import auto``.

It has all of the names of :mod:`recast_ref.reference`. ``path`` says which was taken, ``"fast"`` or ``"reference"``, and
``reason`` why it was not the fast one (``None`` if it was).
"""

from types import ModuleType
from typing import TYPE_CHECKING

from . import reference

if TYPE_CHECKING:
    from .reference import *  # noqa: F403  (a type checker sees these; both paths have the same signatures)

path: str
reason: str | None
_chosen: ModuleType

try:
    from . import fast

    path, reason, _chosen = "fast", None, fast
except ImportError as error:
    path, reason, _chosen = "reference", str(error), reference

__all__ = ["path", "reason"]
__all__ += reference.__all__
globals().update({name: getattr(_chosen, name) for name in reference.__all__})
