"""The laws as tests that pytest collects."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

from .._outcomes import ON_PURPOSE, SILENT, SPARED
from .checking import Check, Variant


def suite(variant: Variant, laws: Iterable[str] | None = None, **options: Any) -> Callable[[str], None]:
    """A pytest test, one case a law::

        test_mine = recast_ref.testing.suite(my_variant)

    A law that says nothing about the variant is skipped, one broken on purpose is an expected failure, and one declared
    broken that holds is a warning.

    Args:
        variant, laws, options: as for :func:`check`, all but ``on_outcome``.

    Raises:
        ValueError: as :func:`check`.
    """
    import pytest

    held = Check(variant, laws=laws, **options)

    @pytest.mark.parametrize("law", held.laws)
    def test(law):
        outcome = held.hold(law)
        outcome.assert_holds()
        if outcome.status == SILENT:
            pytest.skip(outcome.message)
        if outcome.status == ON_PURPOSE:
            pytest.xfail(outcome.message)
        if outcome.status == SPARED:
            warnings.warn(str(outcome), stacklevel=1)

    return test
