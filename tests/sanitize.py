"""The C++ ops for the CPU under the compiler's sanitizers (those for CUDA: ``test_cuda_on_cpu.py``).

Not collected by pytest; needs gcc::

    python tests/sanitize.py            # minutes; exits 1 if a sanitizer says something, or a law breaks
    python tests/sanitize.py --short    # as in CI

1. ``address``: accesses out of bounds, and what C++ leaves undefined, while the ops are held to every law of the kit, and to the
   reference on the groups of ``million.py``, which are wider than what a law draws.
2. ``thread``: races between calls from several threads at once. OpenMP is left out: gcc's runtime tells the sanitizer nothing,
   so that its own waiting would pass for a race; the threads here are Python's.
"""

import argparse
import os
import sys
import sysconfig
import tempfile
from pathlib import Path

from test_cuda_on_cpu import COMPILER, path_of, run, watched, why_not
from torch.utils import cpp_extension

from recast_ref import _library as library

HERE = Path(__file__).parent
FLAGS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize=vptr", *library.OPENMP],
    "thread": ["-fsanitize=thread"],
}

LAWS = """
import sys, torch
sys.path.insert(0, {here!r})
import million
from recast_ref import fast, testing

for name in [name for name in testing.KINDS if hasattr(fast, name)]:
    report = testing.check(getattr(fast, name), examples={examples})
    print(report.summary())
    report.assert_holds()
for seed in range({batches}):
    assert million.differs(million.draw(seed)) is None
"""

CALLS = """
import sys, threading, torch
sys.path.insert(0, {here!r})
import million
from recast_ref import fast

torch.set_num_threads(1)
for seed in range({batches}):
    drawn, found, together = million.draw(seed), [], threading.Barrier(4)

    def call():
        together.wait()
        found.extend(million.answers(fast, drawn) for _ in range(3))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 12
    for answers in found:
        assert all(torch.equal(answers[key], found[0][key]) for key in answers)
"""


def build(sanitizer, text, target):
    """A library of one source: the headers of torch are read once."""
    target.parent.mkdir(exist_ok=True)
    source = target.with_suffix(".cpp")
    source.write_text(text)
    command = [COMPILER, "-O1", "-g1", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wno-psabi", *FLAGS[sanitizer]]
    command += ["-DTORCH_EXTENSION_NAME=_C", '-DRECAST_FLAGS="-O1"', '-DRECAST_CUDA_ARCHITECTURES="none"']
    command += [f"-I{path}" for path in (*cpp_extension.include_paths(), sysconfig.get_paths()["include"])]
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    run([*command, "-shared", source, *libraries, "-ltorch", "-ltorch_cpu", "-lc10", "-ltorch_python", "-o", target])


def python(sanitizer, code, folder, **environment):
    """The exit code, what was printed, and what the sanitizer said. It must be loaded before everything else."""
    first = [path_of(name) for name in {"address": ["libasan.so"], "thread": ["libtsan.so"]}[sanitizer]]
    environment |= {"LD_PRELOAD": " ".join([*first, path_of("libstdc++.so")]), "OMP_NUM_THREADS": "1"}
    return watched(sanitizer, [sys.executable, "-c", code], folder / "said", **environment)


def hold(sanitizer, folder, short):
    """What is wrong, in words; an empty text if nothing is."""
    csrc = library.sources()
    files = [csrc / "ops.cpp", csrc / "module.cpp", *sorted(csrc.glob("cpu/*.cpp"))]
    build(
        sanitizer, "".join(f'#include "{path}"\n' for path in files), folder / library._cached().parent.name / "_C.so"
    )
    code = LAWS if sanitizer == "address" else CALLS
    code = code.format(here=str(HERE), examples=5 if short else 100, batches=10 if short else 100)
    exit_code, printed, said = python(sanitizer, code, folder, RECAST_CACHE=str(folder))
    return said or (printed if exit_code else "")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", choices=list(FLAGS))
    options = parser.parse_args(argv)
    wrong = False
    for sanitizer in [options.only] if options.only else FLAGS:
        if why_not(sanitizer):
            print(f"{sanitizer}: skipped: {why_not(sanitizer)}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            said = hold(sanitizer, Path(folder), options.short)
        print(f"{sanitizer}: {said or 'nothing found'}", flush=True)
        wrong = wrong or bool(said)
    return int(wrong)


if __name__ == "__main__":
    sys.path.insert(0, os.fspath(HERE))
    sys.exit(main())
