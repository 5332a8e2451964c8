"""A worker of ``test_trl.py``: ``torchrun --nproc_per_node=WORLD trl_two_processes.py WORLD FOLDER OUT``."""

import sys
from pathlib import Path

import torch
import trl_tiny as tiny
from accelerate.utils import gather_object
from test_trl import HIT, Recorded, answers


def rare_hits(prompt, i):
    """One answer to one prompt in four hits."""
    a, b, c = HIT[prompt]
    hit = i == 2 and sum(map(ord, prompt)) % 4 == 1
    return f"<a_{a}><b_{b}><c_{c}><eos>" if hit else f"<a_{a}><b_{b}><c_{(c + 1 + i % 3) % 4}><eos>"


RUNS = {
    "skips": {"rollout": answers, "beta": 0.1},
    "rows": {
        "rollout": answers,
        "beta": 0.1,
        "loss_type": "grpo",
        "steps_per_generation": 2,
        "gradient_accumulation_steps": 2,
    },
    "a process without a pair": {"rollout": rare_hits, "arm": "contrast", "loss_type": "dr_grpo"},
    "branch point": {"rollout": answers, "branch_point": True, "num_iterations": 2},
    "repair": {"rollout": answers, "arm": "repair", "loss_type": "grpo"},
    "beams on the trie": {"catalogue": tiny.SIDS, "beam_groups": True, "beta": 0.1, "num_iterations": 2},
}


def main(world, folder, out):
    found = {}
    for name, options in RUNS.items():
        rollout = options.pop("rollout", None)
        if rollout:
            options["rollout_func"] = tiny.dictated(rollout)
        rows = 32 // world // options.get("steps_per_generation", 1)
        trainer = tiny.make(Path(folder), Recorded, per_device_train_batch_size=rows, max_steps=3, **options)
        assert trainer.accelerator.num_processes == world, "the launcher started another number of processes"
        seen = tiny.count_rows(trainer)
        trainer.train()
        kept = [sorted((p, ids) for p, ids, mask in batch["kept"] if all(mask)) for batch in trainer.batches]
        everyone = gather_object([{"kept": kept, "rows": seen["actor"]}])
        shares = [
            value
            for entry in trainer.state.log_history
            for key, value in sorted(entry.items())
            if key.startswith("recast/") and key != "recast/rows_run"  # more processes, more filler
        ]
        found[name] = {
            "pairs": [sorted(row for one in everyone for row in one["kept"][i]) for i in range(len(kept))],
            "kept": [[len(one["kept"][i]) for one in everyone] for i in range(len(kept))],
            "rows": [one["rows"] for one in everyone],
            "shares": shares,
            "gradients": [gradient for gradient, _ in trainer.gradients],
        }
    if world == 2:
        for options in ({}, {"beam_groups": True, "arm": "grpo"}):
            try:
                tiny.make(Path(folder), per_device_train_batch_size=4, **options)
            except ValueError as error:
                assert "a group must not be split over processes" in str(error) or "expected whole groups" in str(error)
            else:
                raise AssertionError("a group of 8 in two processes of 4 rows each")
    if trainer.accelerator.is_main_process:
        torch.save(found, out)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
