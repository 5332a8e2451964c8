"""The CUDA kernels where there is no GPU: built for the CPU, with ``cuda_on_cpu/`` in the place of CUDA, and held to every law.

Threads that wait for each other at different places, or read what another has already overwritten, show here too, as threads
take turns in a random order. What does not show: speed, and anything that the hardware does differently.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from recast_ref import _library as library

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A cache that has this library in the place of the one with the CPU's kernels."""
    csrc, folder = library.sources(), tmp_path_factory.mktemp("cuda_on_cpu")
    compiler = os.environ.get("CXX", "c++")
    flags = ["-O1", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wno-psabi", "-Wno-attributes"]
    flags += ["-DTORCH_EXTENSION_NAME=_C", '-DRECAST_FLAGS="-O1"', '-DRECAST_CUDA_ARCHITECTURES="on the CPU"']
    folders = [HERE / "cuda_on_cpu", *cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    flags += [f"-I{path}" for path in folders]
    files = [HERE / "cuda_on_cpu" / "ops.cpp", csrc / "ops.cpp", csrc / "module.cpp", *csrc.glob("cuda/*.cu")]

    def compile(number):
        output = folder / f"{number}.o"
        run([compiler, *flags, "-x", "c++", "-c", files[number], "-o", output])
        return output

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile, range(len(files))))
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    torch = ["-ltorch", "-ltorch_cpu", "-lc10", "-ltorch_python"]
    target = folder / library._cached().parent.name / "_C.so"
    target.parent.mkdir()
    run([compiler, "-shared", *objects, *libraries, *torch, "-o", target])
    return {**os.environ, "RECAST_CACHE": str(folder)}


def run(command, **options):
    command = [str(part) for part in command]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, **options)
    assert result.returncode == 0, f"{shlex.join(command)}\n{result.stdout[-4000:]}{result.stderr[-4000:]}"
    return result.stdout


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "c++")), reason="no C++ compiler")
def test_the_kernels_for_cuda_obey_every_law(environment):
    code = "from recast_ref import fast; print(fast.build_info()['cuda_architectures'])"
    assert run([sys.executable, "-c", code], env=environment) == "on the CPU\n"

    def tests(file):
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            "fast and not bench",
            HERE / file,
        ]
        return run(command, env={**environment, "OMP_NUM_THREADS": "1"}, cwd=HERE.parent)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for printed in pool.map(tests, ["test_fast.py", "test_losses.py", "test_selection.py"]):
            assert " passed" in printed
