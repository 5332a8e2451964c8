"""A short run of each law of ``tests/fuzz``; ``python tests/fuzz`` runs them for longer. A kill is in ``test_resuming.py``."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from fuzz import commands, loaders, saved


@pytest.mark.parametrize("law", [loaders.law, saved.law, commands.law], ids=["loaders", "checkpoints", "commands"])
def test_a_law_for_some_seconds(law):
    @given(st.data())
    def held(data):
        law(data)

    held()


@pytest.mark.parametrize("name", loaders.GOOD)
def test_what_is_not_damaged_is_loaded(name, tmp_path):
    for other, content in loaders.GOOD.items():
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(content)
    loaders.check(loaders.load_world(tmp_path / name.split("/")[0]))
