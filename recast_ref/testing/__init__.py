"""Property-test your own variant: hypothesis strategies, laws, and a check that says what a variant breaks (extra ``test``).

``check(my_rule)`` holds a selection rule or a loss with the leading arguments of a function of :mod:`recast_ref.reference` to
the laws about that kind, on drawn examples that shrink to a group a person can read. ``recast-ref check module:function`` does
so from the command line, ``test_mine = suite(my_rule)`` in pytest. ``examples.py`` has four variants to copy from.

1. ``strategies``      groups, SIDs and loss batches to draw
2. ``kinds``           what a variant can stand in for, and how it is called
3. ``laws``            what a law is; ``laws_any``, ``laws_selection``, ``laws_anchors``, ``laws_losses`` and ``by_hand`` state
   them
4. ``loops``           the definitions as plain loops, to check the reference against
5. ``checking``        holding a variant to the laws; ``drawing`` shows what broke, ``suite`` makes pytest tests
"""

try:
    import hypothesis  # noqa: F401
except ImportError as error:
    raise ImportError("recast_ref.testing needs hypothesis: pip install recast-ref[test]") from error

from .._outcomes import Outcome, Report
from . import laws_anchors, laws_any, laws_losses, laws_selection  # noqa: F401  (they register the laws)
from .checking import breaks, check, replay
from .kinds import KINDS, LawBroken, NotApplicable
from .laws import LAWS, Law, demand, law, laws_of, same
from .strategies import loss_inputs, sid_groups, sparse_hit_groups
from .suite import suite

__all__ = [
    "check",
    "suite",
    "replay",
    "breaks",
    "Report",
    "Outcome",
    "LAWS",
    "Law",
    "laws_of",
    "law",
    "demand",
    "same",
    "KINDS",
    "LawBroken",
    "NotApplicable",
    "sparse_hit_groups",
    "sid_groups",
    "loss_inputs",
]
