"""``python tests/verl_on_cpu grpo|recast|both``: trains a tiny model with verl on this machine's CPU."""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

# Python puts this folder in front of all others; verl_on_cpu is to be imported as a package, and recast_ref is above.
sys.path[0] = str(Path(__file__).resolve().parents[1])
sys.path.insert(1, str(Path(__file__).resolve().parents[2]))

from verl_on_cpu.run import Failed, reward_sampled, train  # noqa: E402
from verl_on_cpu.world import make_world  # noqa: E402


def main():
    parser = argparse.ArgumentParser(prog="python tests/verl_on_cpu", description=__doc__.split(": ")[1])
    parser.add_argument("arm", choices=("grpo", "recast", "both"))
    parser.add_argument("overrides", nargs="*", help="of verl's, such as actor_rollout_ref.actor.optim.lr=1e-3")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--ranks", type=int, default=1, help="data-parallel workers")
    parser.add_argument("--seed", type=int, default=0, help="of the world")
    parser.add_argument("--whole-vocabulary", action="store_true", help="do not keep to the catalogue")
    parser.add_argument("--folder", help="for the world, verl's output and checkpoints; default: one that goes again")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = make_world(options.folder or temporary, seed=options.seed)
        curves = {}
        for arm in ("grpo", "recast") if options.arm == "both" else (options.arm,):
            print(f"{arm}: Ray and verl are starting, which takes about a minute.", flush=True)
            curves[arm] = curve = []
            try:
                train(
                    folder,
                    arm,
                    options.overrides,
                    steps=options.steps,
                    ranks=options.ranks,
                    catalogue=not options.whole_vocabulary,
                    tell=partial(_tell, curve, options.steps),
                )
            except Failed as error:
                sys.exit(f"{arm}: {error}")
    for arm, curve in curves.items():
        print(f"{arm:>6s}  sampled reward, means of tenths of the run:", *tenths(curve))
    return 0


def _tell(curve, steps, step, metrics):
    curve.append(reward_sampled(metrics))
    parts = [f"step {step:3d}/{steps}", f"reward {curve[-1]:.3f}"]
    if "recast/rows_out" in metrics:
        parts.append(f"repaired {metrics['recast/repaired']:.2f}")
        parts.append(f"rows {metrics['recast/rows_in']:.0f} -> {metrics['recast/rows_out']:.0f}")
    parts += [f"{name.split('/')[1]} {value:.2f}" for name, value in metrics.items() if "/acc/" in name]
    print("  ".join([*parts, f"{metrics['timing_s/step']:.1f} s"]), flush=True)


def tenths(curve):
    size = max(1, -(-len(curve) // 10))
    return [f"{sum(part) / len(part):.3f}" for part in (curve[i : i + size] for i in range(0, len(curve), size))]


if __name__ == "__main__":
    sys.exit(main())
