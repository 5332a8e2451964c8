"""The command line: ``recast-ref compare | study | explain | check | bench | info``."""

import argparse
import difflib
import importlib.util
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
from dataclasses import replace

from . import __version__
from .lab.reading import printable

LAB_PACKAGES = {  # by import name
    "rich": "rich",
    "matplotlib": "matplotlib",
    "jinja2": "jinja2",
    "sklearn": "scikit-learn",
}
INSTALL_LAB = 'pip install -e ".[lab]" in the checkout'
MOST_RESPONSES, MOST_SEEDS = 1024, 1000
WORLDS = "'synthetic', an *.index.json file of MiniOneRec or a folder with one, or a RecBole .inter file"


class Parser(argparse.ArgumentParser):
    """Bad usage is one line and exit code 2."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message):
        self.exit(2, f"recast-ref: {printable(message)}\n")

    def parse_args(self, args=None, namespace=None):
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unknown argument {unknown[0]}{_suggest(unknown[0], self._options(parsed))}")
        return parsed

    def _options(self, parsed):
        parsers = [a.choices[parsed.command] for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        return [option for parser in parsers for action in parser._actions for option in action.option_strings]


def _suggest(word, known):
    close = difflib.get_close_matches(word.split("=")[0], known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def main(argv=None):
    """Run the command; returns the exit code: 0, 1 if a law is broken, 2 for bad usage or bad data, 130 if interrupted."""
    if threading.current_thread() is not threading.main_thread():
        return _run(argv)
    # While torch is imported, Ctrl-C raised as an exception inside its C++ is lost or aborts: there it just ends the process.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return _run(argv)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except MemoryError as error:
        print(f"recast-ref: not enough memory. {printable(str(error))}".rstrip(), file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output, head for example, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        signal.signal(signal.SIGINT, before)


def _run(argv):
    parser = Parser(prog="recast-ref", description="Group RL, repair and contrast for generative recommendation.")
    parser.add_argument("--version", action="version", version=f"recast-ref {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="{compare,study,explain,check,bench,info}", required=True, parser_class=Parser
    )
    _compare_options(commands.add_parser("compare", help="train every arm on the same prompts and compare them"))
    _study_options(commands.add_parser("study", help="where each arm helps and where it hurts, in hours on all cores"))
    commands.add_parser("explain", help="one group of eight rollouts, step by step")
    _check_options(commands.add_parser("check", help="hold a selection rule or a loss of your own to the laws"))
    measured = commands.add_parser("bench", help="measure the fast path against its peers on this machine")
    measured.add_argument("--repeats", type=_whole(1, 1000), default=7, metavar="N", help="rounds (default: 7)")
    measured.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default: cpu)")
    measured.add_argument("--out", metavar="FILE", help="also write the results as JSON")
    commands.add_parser("info", help="versions, devices, and which paths are built")
    options = parser.parse_args(argv)
    if options.command == "explain":
        from .explain import explain

        print(explain())
    elif options.command == "info":
        print(info())
    elif options.command == "check":
        return _check(parser, options)
    elif options.command == "bench":
        return _bench(parser, options)
    elif options.command == "study":
        return _study(parser, options)
    else:
        return _compare(parser, options)
    sys.stdout.flush()
    return 0


def _compare_options(parser):
    # Arms are checked in _compare, where their names are known: importing the lab takes seconds.
    add = parser.add_argument
    add("--world", default="synthetic", help=f"{WORLDS} (default: synthetic)")
    how = "some of: grpo recast recast-branch repair contrast sft, separated by spaces or commas (default: all)"
    add("--arms", nargs="+", metavar="ARM", help=how)
    add(
        "--group-size", type=_whole(2, MOST_RESPONSES), default=8, metavar="G", help="responses per prompt (default: 8)"
    )
    add("--seeds", type=_whole(1, MOST_SEEDS), metavar="N", help="runs of each arm (default: 3; with --quick: 1)")
    how = "groups of independent samples, or the G best of a beam search (default: sample)"
    add("--rollout", choices=("sample", "beam"), default="sample", help=how)
    how = "train the base until N percent of its groups are all-zero, or until converged (default: on few pairs)"
    add("--all-zero", type=_regime, metavar="N", help=how)
    how = "path of the functions (default: reference; fast is compiled on first use)"
    add("--backend", choices=("auto", "reference", "fast"), default="reference", help=how)
    add("--out", metavar="DIR", help="where results go (default: a new folder in runs/)")
    add("--resume", action="store_true", help="continue the interrupted run in --out; give its other options again")
    add("--quick", action="store_true", help="a run of under a minute, too small to quote")


def _study_options(parser):
    add = parser.add_argument
    add("--only", nargs="+", metavar="PART", help="some of the parts (default: all, the most important first)")
    add("--list", action="store_true", help="the parts, a line each, and nothing is run")
    add("--seeds", type=_whole(1, MOST_SEEDS), metavar="N", help="runs of each cell (default: 5; with --quick: 1)")
    how = "files of real interactions, as compare takes them, for the parts that use some (default: none)"
    add("--world", nargs="+", default=[], metavar="PATH", help=how)
    add("--out", metavar="DIR", help="where results go (default: a new folder in runs/)")
    add("--resume", action="store_true", help="go on with the study in --out; finished runs are kept")
    add("--quick", action="store_true", help="a little of every part in about a minute: figures that mean nothing")
    how = "run nothing: make the tables and figures of DIR/study.csv, there, or of several such files, in --out"
    add("--report", nargs="+", metavar="DIR", help=how)


def _study(parser, options):
    missing = missing_packages(LAB_PACKAGES)
    if missing:
        parser.error(f"study needs {', '.join(missing)}: {INSTALL_LAB}")
    if options.resume and not options.out:
        parser.error("--resume needs --out DIR, the folder of the study to go on with")
    if len(options.report or ()) > 1 and not options.out:
        parser.error("--report of several folders needs --out DIR, a folder for all of them")
    from pathlib import Path

    from .lab.experiment import ExperimentError
    from .lab.study import cells, console, report, table, worlds
    from .lab.worlds import DataError

    try:
        if options.report:
            rows = table.merge(table.read(Path(folder) / "study.csv") for folder in options.report)
            out = Path(options.out or options.report[0])
            if options.out:
                table.save(out / "study.csv", rows)
            report.write(rows, out)
            print(printable(f"Wrote {out / 'study.md'}"))
            return 0
        scale = cells.Scale.quick() if options.quick else cells.Scale()
        if options.seeds is not None:
            scale = replace(scale, seeds=options.seeds, tuning_seeds=min(scale.tuning_seeds, options.seeds))
        parts = (cells.quick_parts if options.quick else cells.parts)(options.world)
        if options.list:
            for name, (question, chosen) in parts.items():
                print(f"{name:<10} {len(chosen):>4} cells  {question}")
            return 0
        named = ",".join(options.only or parts).replace(",", " ").split()
        for name in named:
            if name not in parts:
                parser.error(f"--only: no part {name}{_suggest(name, parts) or ', only ' + ' '.join(parts)}")
        for path in options.world:
            worlds.make(path, scale.users)  # a mistake in a file is met now, and not after hours
        command = "recast-ref study" + " --quick" * options.quick + f" --seeds {scale.seeds}"
        command += f" --only {' '.join(named)}" * bool(options.only)
        command += " --world " * bool(options.world) + " ".join(map(shlex.quote, options.world))
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return console.study(parts, named, scale, options, command)
    except (DataError, ExperimentError, ValueError) as error:
        parser.error(str(error))
    except OSError as error:  # a path that is missing, not readable, no folder, ...
        parser.error(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _check_options(parser):
    add = parser.add_argument
    add("variant", nargs="?", metavar="package.module:function", help="the function, importable from here")
    how = "what it should agree with: reference, fast, loops, module:function or none (default: reference)"
    add("--against", default="reference", metavar="PATH", help=how)
    how = "the reference function it stands in for (default: by its name, or its leading arguments)"
    add("--kind", metavar="NAME", help=how)
    add("--laws", nargs="+", metavar="LAW", help="some of the laws (default: all about its kind)")
    add("--examples", type=_whole(1, 1_000_000), default=100, metavar="N", help="drawn for each law (default: 100)")
    add("--seed", type=_whole(0, 2**32 - 1), default=0, metavar="S", help="of the draws (default: 0)")
    how = "how long a law, or an import, may take (default: 60 for every 100 examples)"
    add("--timeout", type=_whole(1, 10**6), metavar="SECONDS", help=how)
    add("--list", action="store_true", help="the laws, a line each, and no check")


def _check(parser, options):
    if options.list:
        try:
            from . import testing
        except ImportError as error:
            parser.error(str(error))
        for law in testing.LAWS.values():
            print(f"{law.name:<28} {law.statement}")
        return 0
    if not options.variant:
        parser.error("check needs a function: package.module:function (or --list)")
    from . import _apart
    from ._outcomes import heading

    def say(text, end="\n"):
        encoding = sys.stdout.encoding or "utf-8"  # an exception of the variant may say what it cannot hold
        print(text.encode(encoding, "backslashreplace").decode(encoding), end=end, flush=True)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    asked = {name: getattr(options, name) for name in ("variant", "against", "laws", "examples", "seed", "kind")}
    try:
        report = _apart.check(
            asked,
            options.timeout or 60 * math.ceil(options.examples / 100),
            on_law=lambda law: say(heading(law), end=""),  # should it hang, a log says where
            on_outcome=lambda outcome: say(str(outcome).removeprefix(heading(outcome.law))),
        )
    except _apart.Refused as error:
        parser.error(str(error))
    say(report.summary())
    return 0 if report.ok else 1


def _bench(parser, options):
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device cuda: torch {torch.__version__} sees no GPU here")
    # Now, and not when all is measured. A device would be replaced by a file: /dev/null, where the user may do so.
    if options.out is not None and (
        not options.out or (os.path.exists(options.out) and not os.path.isfile(options.out))
    ):
        parser.error(f"--out {options.out}: expected the name of a file")
    try:
        from . import bench, bench_cuda
    except ImportError as error:
        parser.error(str(error))
    from .lab import checkpoints

    results = (bench_cuda if options.device == "cuda" else bench).bench(
        options.repeats, on_progress=lambda name: print(f"measuring {name} ...", file=sys.stderr)
    )
    print(info())
    print(bench.table(results))
    if options.out:
        try:
            checkpoints.save_json(options.out, {"info": info().splitlines(), "results": results})
        except OSError as error:
            parser.error(f"--out {options.out}: {error.strerror}")
    return 0


def _whole(low, high):
    """A whole number from ``low`` to ``high``. What is more would not end, or need more memory than there is."""

    def whole_number(text):
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            got = repr(text) if len(text) < 40 else f"{text[:36]!r}..."
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high:,}, got {got}")
        return value

    return whole_number


def _regime(text):
    try:
        share = 50.0 if text == "converged" else float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 100:
        raise argparse.ArgumentTypeError(f"expected a percentage such as 94, or converged, got {text!r}")
    return text


def _compare(parser, options):
    missing = missing_packages(LAB_PACKAGES)
    if missing:
        parser.error(f"compare needs {', '.join(missing)}: {INSTALL_LAB}")
    if options.resume and not options.out:
        parser.error("--resume needs --out DIR, the folder of the run to continue")

    from .lab import backend, console
    from .lab.arms import ARMS
    from .lab.checkpoints import CheckpointError
    from .lab.experiment import ExperimentError, Settings, check_folder
    from .lab.locks import Held
    from .lab.worlds import DataError, load_world

    named = ARMS if options.arms is None else ",".join(options.arms).replace(",", " ").split()
    arms = tuple(dict.fromkeys(named))
    if not arms:
        parser.error(f"--arms: expected some of {' '.join(ARMS)}")
    for arm in arms:
        if arm not in ARMS:
            parser.error(f"--arms: no arm {arm}{_suggest(arm, ARMS) or ', only ' + ' '.join(ARMS)}")
    changes = {name: getattr(options, name) for name in ("group_size", "rollout", "all_zero", "backend")}
    changes["arms"] = arms
    if options.seeds is not None:
        changes["seeds"] = options.seeds
    settings = Settings.quick(**changes) if options.quick else Settings(**changes)
    command = f"recast-ref compare --world {shlex.quote(options.world)} --arms {' '.join(arms)}"
    command += f" --group-size {options.group_size} --seeds {settings.seeds} --rollout {options.rollout}"
    command += f" --all-zero {options.all_zero}" * bool(options.all_zero)
    command += f" --backend {options.backend}" + " --quick" * options.quick
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        backend.use(options.backend)  # here first: if it has to be compiled, then once and not by every worker
        if options.out:
            check_folder(options.out, options.resume)
        try:
            world = load_world(options.world)
        except FileNotFoundError as error:
            if error.filename is None:  # it is --world itself
                parser.error(f"{error}{_suggest(options.world, ['synthetic'])}")
            raise
        return console.compare(world, settings, options, command)
    except (DataError, ExperimentError, CheckpointError, Held) as error:
        parser.error(str(error))
    except ImportError as error:
        parser.error(f"--backend {options.backend}: {str(error).splitlines()[0]}")
    except OSError as error:  # a path that is missing, not readable, no folder, ...
        parser.error(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def missing_packages(names):
    """Which of the packages, ``{import name: name to install}``, are not there."""
    return [package for name, package in names.items() if importlib.util.find_spec(name) is None]


def info():
    """Versions, devices, and which paths are built, a line each."""
    import platform

    import numpy
    import torch

    missing = missing_packages(LAB_PACKAGES)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines = {
        "recast-ref": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'not in this build'}",
        "numpy": numpy.__version__,
        "devices": ", ".join(["cpu", *gpus]) + (f", driver {_driver()}" if gpus else ""),
        "reference": "ready (pure PyTorch)",
        "fast": _fast_path(),
        "lab": f"missing {', '.join(missing)}: {INSTALL_LAB}" if missing else "ready",
    }
    return "\n".join(f"{name:<11} {value}" for name, value in lines.items())


def _driver():
    """The version of NVIDIA's driver, which torch does not know."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def _fast_path():
    """What is known of the fast path without building it."""
    from . import _library

    try:
        path = _library.find()
    except ImportError as error:
        return str(error).splitlines()[0]
    without = _library.why_no_cuda()
    kernels = f"without CUDA kernels: {without}" if without else f"CUDA kernels for {', '.join(_library.ARCHITECTURES)}"
    return (
        f"{f'ready ({path})' if path else 'not built yet: compiled when recast_ref.fast is first imported'}; {kernels}"
    )


if __name__ == "__main__":
    sys.exit(main())
