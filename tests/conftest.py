"""Hypothesis profiles: ``ci`` (default) and ``thorough`` (``pytest --hypothesis-profile=thorough``); the two paths."""

import importlib
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("ci", max_examples=60, deadline=None)
settings.register_profile("thorough", max_examples=10_000, deadline=None)
settings.load_profile("ci")

AMAZON = Path(__file__).parents[2] / "shared" / "data" / "amazon_industrial"


@pytest.fixture
def amazon():
    """The real interactions the maintainers test with; they are not part of the repository."""
    if not AMAZON.is_dir():
        pytest.skip(f"no real interactions at {AMAZON}")
    return AMAZON


@pytest.fixture(params=["reference", "fast"], scope="session")
def R(request):
    """The module under test: each law holds for both paths."""
    return importlib.import_module(f"recast_ref.{request.param}")
