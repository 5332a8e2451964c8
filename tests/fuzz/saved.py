"""Law: a damaged or swapped file of a run is refused by name, or holds the same bits."""

import tempfile
from pathlib import Path

import torch
from hypothesis import strategies as st

from fuzz.bytes import damaged
from recast_ref.lab import checkpoints, experiment

OF = {"job": "sft", "seed": 0, "run": "0123"}
IDENTITY = {
    "settings": {"arms": ["grpo", "sft"], "seeds": 1},
    "world": {"fingerprint": "89ab", "base_pairs": 3},
    "versions": {"recast-ref": "0", "torch": "2"},
}


def law(data):
    return data.draw(st.sampled_from([_checkpoint, _swapped, _run_file]))(data)


def _checkpoint(data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 3)))
    state = {"weights": torch.randn(50, generator=generator), "curve": [{"step": 0, "kl": None, "pass@1": 0.25}]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sft-0.pt")
        checkpoints.save(path, state, OF)
        path.write_bytes(data.draw(damaged(path.read_bytes())))
        try:
            found = checkpoints.load(path, OF)
        except checkpoints.CheckpointError as error:
            return _told(error, path)
        assert torch.equal(found["weights"], state["weights"]) and found["curve"] == state["curve"]
        return "the same"


def _swapped(data):
    other = data.draw(
        st.fixed_dictionaries({"job": st.sampled_from(["sft", "recast"]), "seed": st.integers(0, 1), "run": st.text()})
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sft-0.pt")
        checkpoints.save(path, {}, other)
        try:
            checkpoints.load(path, OF)
        except checkpoints.CheckpointError as error:
            return _told(error, path)
        assert other == OF
        return "the same"


def _run_file(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.json")
        checkpoints.save_json(path, IDENTITY)
        path.write_bytes(data.draw(damaged(path.read_bytes())))
        try:
            experiment.check_same(path, IDENTITY)
        except (checkpoints.CheckpointError, experiment.ExperimentError) as error:
            return _told(error, path.parent)
        found = checkpoints.load_json(path)
        assert all(found[part] == {**found[part], **values} for part, values in IDENTITY.items())
        return "the same"


def _told(error, path):
    assert str(path) in str(error), error
    return "refused"
