"""Does the kit bite? Mutants of the reference and of the kernels, each held to the laws of recast_ref.testing.

Not collected by pytest and not part of CI; it takes an hour or so on two cores::

    pip install mutmut                       # the mutants of the reference are its own, strings and None left out
    python tests/mutate.py reference         # recast_ref/reference, against the plain loops of the kit
    python tests/mutate.py csrc              # csrc/core and csrc/cpu, against the reference; needs a C++ compiler
    python tests/mutate.py cuda              # csrc/cuda, built for the CPU with tests/cuda_on_cpu in the place of CUDA

    --most 30     of the mutants of a file, how many are tried: a sample, the same for the same --seed
    --only REGEX  mutants whose name matches, such as losses, or recast.cpp:85
    --keep FOLDER where the unchanged objects are, from one run to the next; as long as csrc stays as it is
    --list        name them and stop

A mutant is a copy of the package with one change, tried in a process of its own. It is killed by the first law that it breaks
(the tables first, then agreement, then all others), else by the first failing test of the second line: for the reference the
tests of bad input, which laws do not speak of (for a mutant of a check they come first), then those of values; for the
kernels ``test_fast.py`` too, whose rows are longer than what a law draws. A crash, and a run that takes longer than ten
minutes, count as killed; a mutant that does not compile does not count at all. What survives is printed as a diff, to be read: equivalent,
or a hole.
"""

import argparse
import difflib
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIRST = ("by_hand", "agreement", "form", "same_gradient")  # these kill most, and quickly
SIDS = ("structural_scores", "hit_rewards", "recast_from_sids", "nearness")
REWARDS = ("group_regimes", "group_advantages", "hybrid")
PAIRS = ("contrast", "recast", "recast_from_sids", "hybrid")
REPAIRS = ("repair", *PAIRS)
LOSSES = ("policy_loss", "logits_loss")
GROUPS = (*REWARDS, *REPAIRS)
ANCHORS = ("choose_anchor", "anchor_weights")
KINDS = {  # file -> the functions that it can change
    "scoring.py": SIDS,
    "grpo.py": REWARDS,
    "repairing.py": (*REPAIRS, "choose_anchor"),
    "contrasting.py": PAIRS,
    "recasting.py": ("recast", "recast_from_sids", "hybrid"),
    "branching.py": ("branch_mask",),
    "losses.py": ("token_logps", *LOSSES),
    "anchoring.py": (*ANCHORS, "nearness"),
    "hybrid.py": ("hybrid",),
    "aggregate.h": LOSSES,
    "checks.h": (*GROUPS, *SIDS, *ANCHORS, "branch_mask", "token_logps", *LOSSES),
    "loss_checks.h": LOSSES,
    "pair.h": (*REPAIRS, "choose_anchor"),
    "prefix.h": (*SIDS, "choose_anchor"),
    "token_loss.h": LOSSES,
    "anchors.cpp": ANCHORS,
    "branch_mask.cpp": ("branch_mask",),
    "group_advantages.cpp": REWARDS,
    "policy_loss.cpp": LOSSES,
    "recast.cpp": REPAIRS,
    "rows.h": (*GROUPS, *ANCHORS),
    "structural_scores.cpp": ("structural_scores", "hit_rewards", "nearness"),
    "token_logps.cpp": ("token_logps", "logits_loss"),
    "vector.h": ("token_logps", "logits_loss"),
    "losses.cpp": ("token_logps", *LOSSES),
    "policy_loss.cu": LOSSES,
    "logits_loss.cu": ("logits_loss",),
    "token_logps.cu": ("token_logps", "logits_loss"),
    "logits.cuh": ("token_logps", "logits_loss"),
    "loss.cuh": LOSSES,
    "selection.cu": (*GROUPS, *SIDS, *ANCHORS, "branch_mask"),
    "select.cpp": (*GROUPS, *SIDS, *ANCHORS, "branch_mask"),
    "device.cuh": (*GROUPS, *SIDS, *ANCHORS, "branch_mask", "token_logps", *LOSSES),
    "host.h": (*GROUPS, *SIDS, *ANCHORS, "branch_mask", "token_logps", *LOSSES),
    "kernels.h": (*GROUPS, *SIDS, *ANCHORS, "branch_mask", "token_logps", *LOSSES),
}
ALL = {kind for kinds in KINDS.values() for kind in kinds}
CHECK = re.compile(r"^ *\+.*(number|flag|refuse|group_tensors|TORCH_CHECK\w*|check_\w+|all_finite|any_nan)\(", re.M)


class Mutant:
    """One change of one file."""

    def __init__(self, path, line, number, code):
        self.path, self.code = path, code
        self.name = f"{path.relative_to(ROOT)}:{line}#{number}"

    def is_a_check(self):
        """Whether it changes what is refused; then the tests of bad input come before the laws."""
        return bool(CHECK.search(self.diff()))

    def diff(self):
        """The lines that differ."""
        lines = difflib.unified_diff(self.path.read_text().splitlines(), self.code.splitlines(), lineterm="", n=0)
        return "\n".join(f"    {line}" for line in list(lines)[3:])


def mutants_of(path, change, most, seed, only):
    """A sample of the changes of a file, in the order of its lines."""
    before, found = path.read_text(), {}
    for line, code in change(before):
        if code != before:
            found.setdefault(code, line)
    numbered = [Mutant(path, line, number, code) for number, (code, line) in enumerate(found.items())]
    picked = random.Random(f"{seed} {path.name}").sample(numbered, min(most, len(numbered)))
    picked = [mutant for mutant in picked if re.search(only, mutant.name)]
    return sorted(picked, key=lambda mutant: int(mutant.name.split("#")[1])), len(numbered)


# ---- mutants of Python


def change_python(code):
    """Every mutant that mutmut would make, but of strings, of None for a value, and of what only says what is refused."""
    import libcst
    import libcst.matchers as m
    from mutmut.mutation.mutators import mutation_operators

    checks = m.Name("number") | m.Name("flag") | m.Name("refuse") | m.Attribute(m.Name("arguments"), m.Name("tensor"))
    wrapper = libcst.MetadataWrapper(libcst.parse_module(code), unsafe_skip_copy=True)
    places = wrapper.resolve(libcst.metadata.PositionProvider)

    def positional(call):
        return [argument for argument in call.args if not argument.keyword]

    def makes_sense(node, other):
        if not isinstance(node, libcst.Call):
            return not isinstance(node, (libcst.Assign, libcst.AnnAssign))
        if len(other.args) == len(node.args):  # None for an argument
            return False
        # A check would only crash without one that has no default.
        return not m.matches(node.func, checks) or positional(other) == positional(node)

    def visit(node):
        if isinstance(node, (libcst.BaseString, libcst.Raise, libcst.ImportFrom, libcst.Annotation)):
            return
        for kind, operator in mutation_operators:
            if isinstance(node, kind):
                for other in operator(node):
                    if makes_sense(node, other):
                        yield places[node].start.line, wrapper.module.deep_replace(node, other).code
        for child in node.children:
            yield from visit(child)

    yield from visit(wrapper.module)


# ---- mutants of C++: what the file is, by tokens, with spaces around every binary operator

SWAPS = {
    **{" < ": " <= ", " <= ": " < ", " > ": " >= ", " >= ": " > ", " == ": " != ", " != ": " == "},
    **{" + ": " - ", " - ": " + ", " * ": " + ", " / ": " * ", " % ": " / ", " += ": " -= ", " -= ": " += "},
    **{" *= ": " += ", " /= ": " *= ", " && ": " || ", " || ": " && ", " & ": " | ", " | ": " & ", " &= ": " |= "},
    **{" |= ": " &= ", " << ": " >> ", " >> ": " << ", "std::max(": "std::min(", "std::min(": "std::max("},
    **{"true": "false", "false": "true"},
}
TERM = r"[\w.]+(?:\[[^\]]*\]|\([^()]*\))?"
RULES = (
    *((re.escape(old), lambda match, new=new: new) for old, new in SWAPS.items()),
    (r"(?<![\w.{])\d+(?![\w.])", lambda match: str(int(match[0]) + 1)),  # off by one
    (r"(?<![\w.{])[1-9]\d*(?![\w.])", lambda match: str(int(match[0]) - 1)),
    (r"(?:(?<=[=,?:] )|(?<=[(,])|(?<=return ))-(?=[\w(])", lambda match: ""),  # a sign
    (r"(?<=[ (])[!~](?=[\w(])", lambda match: ""),
    (rf" [-+*/] {TERM}(?=[;,)\]])", lambda match: ""),  # a term that is dropped
    (rf"(?<=[(=] ){TERM} [-+*] (?=\w)|(?<=\(){TERM} [-+*] (?=\w)", lambda match: ""),
    (r" (?:&&|\|\||\|) [^&|;?{}]+(?=\) |\);|;| \?)", lambda match: ""),
    (r"^ +[\w.\[\]]+ (?:=|\+=|-=|\*=|/=|\|=|&=) [^;]+;$", lambda match: ""),  # a statement
    (r"^ +(?:if \(.*\) )?(?:continue|return [^;]+|[\w.]+ [-+*/]?= [^;]+|\+\+\w+);$", lambda match: ""),
)
# What only decides how fast it is, and which of equal instructions are taken.
SPEED = re.compile(
    r"__builtin_|kAhead|kBlock =|grain|reserve|#|static_assert|^ *(using|case|default|template)|launch_bounds"
    r"|1 \+ \d+ / (\(\w+ \+ 1\)|length)|1024, |const int blocks = .*"
)


def change_cpp(code):
    """The mutants of :data:`RULES`, outside comments, strings, and what only decides how fast it is."""
    lines = code.split("\n")
    for number, line in enumerate(lines):
        text, _, comment = line.partition("//")
        text = text.rstrip(" ")
        for pattern, replace in RULES:
            for match in re.finditer(pattern, text):
                quoted = text[: match.start()].count('"') % 2
                slow = [m for m in SPEED.finditer(text) if m.start() <= match.start() < m.end()]
                if (
                    quoted
                    or slow
                    or re.match(
                        r" *(#|__builtin|static_assert|typedef)|.*(kBlock|kAhead) =|.*grain\(int|.*grain\(const", text
                    )
                ):
                    continue
                changed = text[: match.start()] + replace(match) + text[match.end() :]
                yield number + 1, "\n".join([*lines[:number], changed, *lines[number + 1 :]])


# ---- building


class Build:
    """Compiles the library once, with -O1, and then only what a mutant changes."""

    def __init__(self, folder, cuda):
        from torch.utils import cpp_extension

        self.folder, self.cuda = folder, cuda
        self.compiler = os.environ.get("CXX", "c++")
        here = [ROOT / "tests" / "cuda_on_cpu"] if cuda else []
        includes = [*here, *cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
        says = ['-DRECAST_FLAGS="-O1"', '-DRECAST_CUDA_ARCHITECTURES="none"', "-DTORCH_EXTENSION_NAME=_C"]
        self.flags = ["-O1", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wno-psabi", "-Wno-attributes", *says]
        self.flags += ["-w", *([] if cuda else ["-fopenmp"]), *(f"-I{path}" for path in includes)]
        libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
        self.libraries = [*libraries, "-ltorch", "-ltorch_cpu", "-lc10", "-ltorch_python"]
        self.header = folder / "before.h"  # precompiled: the headers of torch take most of the time
        heads = (
            "Dispatch.h Parallel.h core/Tensor.h ops/_assert_async.h ops/empty.h ops/empty_like.h ops/scalar_tensor.h"
        )
        heads = [f"ATen/{name}" for name in [*heads.split(), "ops/zeros.h"]] + ["torch/library.h"]
        self.header.write_text("".join(f"#include <{name}>\n" for name in heads))
        if not Path(f"{self.header}.gch").exists():
            run([self.compiler, *self.flags, "-x", "c++-header", self.header, "-o", f"{self.header}.gch"])
        csrc = ROOT / "csrc"
        self.units = [csrc / "ops.cpp", csrc / "module.cpp"]
        self.units += sorted(csrc.glob("cuda/*.cu")) if cuda else sorted(csrc.glob("cpu/*.cpp"))
        if cuda:
            self.units.append(ROOT / "tests" / "cuda_on_cpu" / "ops.cpp")
        with ThreadPoolExecutor(2) as pool:
            self.reads = dict(pool.map(self._first, self.units))

    def _first(self, unit):
        output = self._object(self.folder, unit)
        if not output.exists():
            run(self._command(unit, output))
        text = run([self.compiler, *self.flags, "-x", "c++", "-MM", unit])
        return unit, {Path(part).resolve() for part in text.replace("\\\n", " ").split()[1:]}

    def _object(self, folder, unit):
        return folder / f"{unit.parent.name}_{unit.stem}.o"

    def _command(self, source, output):
        first = [] if source.name == "module.cpp" else ["-include", self.header]
        return [self.compiler, *self.flags, *first, "-x", "c++", "-c", source, "-o", output]

    def library(self, mutant, folder):
        """Build a mutant into the package in ``folder``; False if it does not compile."""
        import torch

        shutil.copytree(ROOT / "csrc", folder / "csrc")
        shutil.copytree(ROOT / "tests" / "cuda_on_cpu", folder / "tests" / "cuda_on_cpu")
        (folder / mutant.path.relative_to(ROOT)).write_text(mutant.code)
        objects = []
        for unit in self.units:
            objects.append(self._object(self.folder, unit))
            changes = set(KINDS[mutant.path.name]) & set(KINDS.get(unit.name, ALL))
            if changes and mutant.path in self.reads[unit]:
                objects[-1] = self._object(folder, unit)
                if run(self._command(folder / unit.relative_to(ROOT), objects[-1]), check=False) is None:
                    return False
        library = folder / "recast_ref" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        run([self.compiler, "-shared", *objects, *self.libraries, "-o", library])
        library.with_name("_C.json").write_text(json.dumps({"torch": torch.__version__}))
        return True


def run(command, check=True):
    """What a command says, None if it fails and may."""
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if result.returncode and check:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{result.stderr[-3000:]}")
    return None if result.returncode else result.stdout


# ---- trying


FORKS = multiprocessing.get_context("forkserver")  # fresh processes, that need not import torch again
FORKS.set_forkserver_preload(["torch", "hypothesis", "numpy", "pytest"])


def try_mutant(mutant, build, path, seconds=600):
    """``(how, by)``: how it ended ("law", "test", "crash", "timeout", "survived", "no mutant") and what killed it."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        shutil.copytree(ROOT / "recast_ref", folder / "recast_ref", ignore=shutil.ignore_patterns("__pycache__", "_C*"))
        if path == "reference":
            (folder / mutant.path.relative_to(ROOT)).write_text(mutant.code)
        elif build and not build.library(mutant, folder):
            return "no mutant", "does not compile"
        kinds, known = KINDS[mutant.path.name], FORKS.Queue()
        process = FORKS.Process(target=trial, args=(folder, path, kinds, mutant.is_a_check(), known))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            return "timeout", f"{seconds} s"
        return known.get() if not known.empty() else ("crash", f"exit {process.exitcode}")


def trial(folder, path, kinds, a_check, known):
    """In the process of a mutant: the first law that it breaks, else the first test that fails, into the queue ``known``."""
    os.environ["RECAST_BUILD"] = "0"
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    import recast_ref
    from recast_ref import testing
    from recast_ref.testing.checking import standard

    assert Path(recast_ref.__file__).parents[1].samefile(folder), recast_ref.__file__

    def answer(how, by):
        known.put((how, by))
        sys.exit()

    def stop_if_broken(outcome):
        if outcome.status == "broken on purpose":  # declared, so that no time goes into a small counterexample
            answer("law", f"{outcome.law} ({kind}): {outcome.message}")

    def test(files, wanted, how):
        failed = first_failure(files, f"{path} and not bench and not opcheck and not compiles and {wanted}")
        if failed:
            answer(how, failed)

    both = ["test_selection.py", "test_anchors.py", "test_losses.py"]
    against = "loops" if path == "reference" else "reference"
    if a_check:
        test(both, "bad_input", "bad input")
    for wanted in (*FIRST, None):  # None: all others
        for kind in kinds:
            laws = [law for law in testing.laws_of(kind) if law == wanted or (wanted is None and law not in FIRST)]
            if laws:
                function = standard(path, kind)
                testing.check(function, against, laws, kind=kind, breaks=laws, on_outcome=stop_if_broken)
    test(both, "bad_input", "bad input")
    test(both + ["test_fast.py"] * (path == "fast"), "not bad_input", "test")
    answer("survived", "")


def first_failure(files, wanted):
    """The name of the first test that fails, None if all pass."""
    import pytest

    class Record:
        failed = None

        def pytest_runtest_logreport(self, report):
            if report.failed:
                self.failed = self.failed or report.nodeid

    record = Record()
    paths = [str(ROOT / "tests" / name) for name in files]
    pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-k", wanted, "--rootdir", str(ROOT), *paths], [record])
    return record.failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["reference", "csrc", "cuda"])
    parser.add_argument("--most", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    folders = {"reference": ["recast_ref/reference"], "csrc": ["csrc/core", "csrc/cpu"], "cuda": ["csrc/cuda"]}
    change = change_python if options.what == "reference" else change_cpp
    mutants = []
    for folder in folders[options.what]:
        for path in sorted((ROOT / folder).iterdir()):
            if path.name in KINDS:
                some, of = mutants_of(path, change, options.most, options.seed, options.only)
                print(f"{path.relative_to(ROOT)}: {len(some)} of {of} mutants", flush=True)
                mutants += some
    if options.list:
        return print("\n".join(f"{m.name}\n{m.diff()}" for m in mutants))

    path = "reference" if options.what == "reference" else "fast"
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        build = None if path == "reference" else Build(options.keep or Path(folder), options.what == "cuda")
        counts = {}
        for mutant, (how, by) in zip(mutants, pool.map(lambda m: try_mutant(m, build, path), mutants)):
            counts.setdefault(mutant.path.name, Counter())[how] += 1
            print(f"{how:<10} {mutant.name:<50} {by}", flush=True)
            if how == "survived":
                print(mutant.diff(), flush=True)
    columns = ("law", "bad input", "test", "crash", "timeout", "survived", "no mutant")
    for name, row in [("", dict(zip(columns, columns))), *counts.items(), ("all", sum(counts.values(), Counter()))]:
        print(f"{name:<24}" + "".join(f"{row[column]:>11}" for column in columns))


if __name__ == "__main__":
    main()
