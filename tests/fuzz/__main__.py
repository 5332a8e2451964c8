"""``python tests/fuzz``: draws inputs until the time is up, prints how many there were and what became of them, and every fault."""

import argparse
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

# Python puts this folder in front of all others; fuzz is to be imported as a package, and recast_ref is above.
ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT / "tests")
sys.path.insert(1, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
)  # of the runs that are killed

from hypothesis import HealthCheck, given, seed, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from fuzz import commands, kills, loaders, saved  # noqa: E402

LAWS = {"loaders": loaders.law, "checkpoints": saved.law, "commands": commands.law}
ROUND = 200  # inputs between two looks at the clock


def main():
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=__doc__.split(": ")[1])
    parser.add_argument("what", nargs="*", metavar="|".join([*LAWS, "kills"]), help="default: all")
    parser.add_argument("--minutes", type=float, default=15, help="for all laws but kills, together (default: 15)")
    parser.add_argument("--kills", type=int, default=30, help="how many (default: 30)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chosen = options.what or [*LAWS, "kills"]
    if unknown := set(chosen) - {*LAWS, "kills"}:
        parser.error(f"no {', '.join(unknown)} here")
    laws = [name for name in chosen if name in LAWS]
    faults = 0
    for name in laws:
        faults += fuzz(name, 60 * options.minutes / len(laws), options.seed)
    if "kills" in chosen:
        with tempfile.TemporaryDirectory() as folder:
            done, found = kills.kill(folder, options.kills, options.seed, lambda line: print(line, flush=True))
        print(*found, f"kills: {done}, faults: {len(found)}", sep="\n", flush=True)
        faults += len(found)
    return 1 if faults else 0


def fuzz(name, seconds, first):
    """Hold the law to fresh inputs, in rounds, until the seconds are over. Returns how many rounds found a fault."""
    outcomes, faults, number, end = Counter(), 0, first, time.monotonic() + seconds
    while time.monotonic() < end:

        @seed(number)
        @settings(
            max_examples=ROUND, database=None, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
        )
        @given(st.data())
        def law(data):
            outcomes[LAWS[name](data)] += 1

        try:
            law()
        except Exception:
            faults += 1
            traceback.print_exc()
        number += 1
    told = ", ".join(f"{count:,} {outcome}" for outcome, count in sorted(outcomes.items()))
    print(
        f"{name}: {sum(outcomes.values()):,} inputs in {seconds:.0f} s: {told}; rounds with a fault: {faults}",
        flush=True,
    )
    return faults


sys.exit(main())
