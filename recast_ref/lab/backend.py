"""Which path the lab takes its functions from: the reference, unless told otherwise.

The two agree but for rounding, so that figures of one path are not those of the other to the last digit.
"""

import importlib

from .. import reference

ops = reference


def use(name):
    """Take the functions of ``recast_ref.NAME``: ``"reference"``, ``"fast"`` or ``"auto"``, for this process from now on.

    Raises:
        ImportError: there is no fast path; the message says why and what to do.
    """
    global ops
    ops = importlib.import_module(f"recast_ref.{name}")
