"""The fast path where it is to be had, else the reference: ``from recast_ref import auto``.

It has all of the names of :mod:`recast_ref.reference`. ``path`` says which was taken, ``"fast"`` or ``"reference"``, and
``reason`` why it was not the fast one (``None`` if it was).
"""

try:
    from . import fast as _chosen

    path, reason = "fast", None
except ImportError as error:
    from . import reference as _chosen

    path, reason = "reference", str(error)

__all__ = ["path", "reason", *_chosen.__all__]
globals().update({name: getattr(_chosen, name) for name in _chosen.__all__})
