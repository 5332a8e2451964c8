"""TRL's own tests of its GRPOTrainer, as they are and with ``ReCastGRPOTrainer`` (``arm="grpo"``) in its place.

For a maintainer, with a checkout of TRL at the installed version, and a network: the tests load tiny models from the
hub.

    python tests/trl_own_tests.py path/to/trl [arguments for pytest]

Exit code 0 if each test ends alike. pytest is run twice with this file as a plugin, and with what TRL's tests import
replaced in the second run.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

REPLACE = "RECAST_IN_PLACE_OF_GRPO"


def pytest_configure():
    if os.environ.get(REPLACE) != "1":
        return
    global GRPOConfig, GRPOTrainer  # of this module, so that a checkpoint can pickle the arguments
    import dataclasses

    import trl

    from recast_ref.trainers.trl import ReCastGRPOConfig, ReCastGRPOTrainer

    @dataclasses.dataclass
    class GRPOConfig(ReCastGRPOConfig):
        arm: str = "grpo"

    class GRPOTrainer(ReCastGRPOTrainer):
        def __init__(self, model, reward_funcs=None, args=None, *arguments, **options):
            args = GRPOConfig("grpo") if args is None else args
            super().__init__(model, reward_funcs, args, *arguments, **options)

    trl.GRPOConfig, trl.GRPOTrainer = GRPOConfig, GRPOTrainer


def outcomes(checkout, replace, arguments):
    """``{test: outcome}``."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        Path(__file__).stem,
        "-q",
        "-rA",
        "--tb=no",
        "-p",
        "no:cacheprovider",
    ]
    environment = {**os.environ, REPLACE: str(int(replace)), "PYTHONPATH": str(Path(__file__).parent.resolve())}
    result = subprocess.run(
        [*command, "tests/test_grpo_trainer.py", *arguments],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    found = dict(
        reversed(line) for line in re.findall(r"^(PASSED|FAILED|ERROR|XFAIL|XPASS) (\S+)", result.stdout, re.M)
    )
    if "PASSED" not in found.values():
        sys.exit(result.stdout + result.stderr)
    print("ReCastGRPOTrainer" if replace else "GRPOTrainer      ", result.stdout.strip().splitlines()[-1], flush=True)
    return found


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    plain, ours = (outcomes(sys.argv[1], replace, sys.argv[2:]) for replace in (False, True))
    differ = sorted(test for test in plain.keys() | ours.keys() if plain.get(test) != ours.get(test))
    for test in differ:
        print(f"{test}: {plain.get(test)}, and {ours.get(test)} with ReCastGRPOTrainer")
    sys.exit(1 if differ else 0)
