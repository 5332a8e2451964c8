"""Makes the JSON files of this folder: what tutorials 6 and 7 show of runs that are too long to repeat in a tutorial.

python tutorials/saved/make.py run runs/synthetic-g8 --command "recast-ref compare" --date 2026-11-22 --machine "2 cores of ..."
python tutorials/saved/make.py cost --date 2026-11-22 --machine "2 cores of ..."
"""

import argparse
import json
from pathlib import Path

import torch

from recast_ref.lab import cost, synthetic
from recast_ref.lab.experiment import Settings

HERE = Path(__file__).resolve().parent
GROUPS = (4, 8, 16, 32, 64)


def rounded(value):
    """Six digits are plenty."""
    if isinstance(value, dict):
        return {name: rounded(v) for name, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def trimmed(results):
    """The results without what is counted per user and per item."""
    arms = {
        arm: {seed: {part: record[part] for part in ("final", "curve")} for seed, record in seeds.items()}
        for arm, seeds in results["arms"].items()
    }
    return {**results, "arms": arms}


def costs():
    """The cost of an update for some group sizes, on one thread."""
    torch.set_num_threads(1)
    world = synthetic.make()
    return {"groups": {str(g): cost.measure(world, Settings(group_size=g)) for g in GROUPS}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "cost"))
    parser.add_argument("folder", nargs="?", type=Path, help="of a run, with results.json")
    parser.add_argument("--command", default="python tutorials/saved/make.py cost", help="that made it")
    parser.add_argument("--date", required=True)
    parser.add_argument("--machine", required=True, help="that it ran on")
    options = parser.parse_args()
    if options.what == "run":
        name, content = options.folder.name, trimmed(json.loads((options.folder / "results.json").read_text()))
    else:
        name, content = "cost", {**costs(), "versions": {"torch": torch.__version__}}
    made = {"command": options.command, "date": options.date, "machine": options.machine}
    (HERE / f"{name}.json").write_text(json.dumps(rounded({"made": made, **content}), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
