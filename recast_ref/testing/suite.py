"""The laws as tests that pytest collects."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

from .checking import ON_PURPOSE, SILENT, SPARED, Variant, check, subject_of
from .laws import laws_of


def suite(variant: Variant, laws: Iterable[str] | None = None, **options: Any) -> Callable[[str], None]:
    """A pytest test, one case a law::

        test_mine = recast_ref.testing.suite(my_variant)

    A law that says nothing about the variant is skipped, one broken on purpose is an expected failure, and one declared
    broken that holds is a warning.

    Args:
        variant, laws, options: as for :func:`check`.

    Raises:
        ValueError: as :func:`check`.
    """
    import pytest

    names = list(
        laws or laws_of(subject_of(variant, options.get("against", "reference"), options.get("kind")).kind.name)
    )

    @pytest.mark.parametrize("law", names)
    def test(law):
        outcome = check(variant, laws=[law], **options).outcomes[0]
        outcome.assert_holds()
        if outcome.status == SILENT:
            pytest.skip(outcome.message)
        if outcome.status == ON_PURPOSE:
            pytest.xfail(outcome.message)
        if outcome.status == SPARED:
            warnings.warn(str(outcome), stacklevel=1)

    return test
