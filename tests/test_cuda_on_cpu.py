"""The CUDA kernels where there is no GPU: built for the CPU, with ``cuda_on_cpu/`` in the place of CUDA, and held to every law.

Threads that wait for each other at different places show here, and what goes wrong when threads take turns in another order.
The compiler's sanitizers then do what ``compute-sanitizer`` does on a GPU: one finds races between the threads of a block, the
other what is read or written out of bounds. What does not show: speed, and anything that the hardware does differently.
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
COMPILER = os.environ.get("CXX", "c++")
RUNTIMES = {"thread": "libtsan.so", "address": "libasan.so"}  # of -fsanitize=
LAWS = ["test_anchors.py", "test_fast.py", "test_losses.py", "test_selection.py"]
needs_compiler = pytest.mark.skipif(not shutil.which(COMPILER), reason="no C++ compiler")


def run(command):
    command = [str(part) for part in command]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert result.returncode == 0, f"{shlex.join(command)}\n{result.stdout[-4000:]}{result.stderr[-4000:]}"
    return result.stdout


def build(folder, *flags):
    """An environment whose cache has this library in the place of the one with the CPU's kernels."""
    csrc = library.sources()
    command = [COMPILER, "-O1", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wno-psabi", "-Wno-attributes", *flags]
    command += ["-DTORCH_EXTENSION_NAME=_C", '-DRECAST_FLAGS="-O1"', '-DRECAST_CUDA_ARCHITECTURES="on the CPU"']
    folders = [HERE / "cuda_on_cpu", *cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    command += [f"-I{path}" for path in folders]
    files = [HERE / "cuda_on_cpu" / "ops.cpp", csrc / "ops.cpp", csrc / "module.cpp", *csrc.glob("cuda/*.cu")]

    def compile(number):
        run([*command, "-x", "c++", "-c", files[number], "-o", folder / f"{number}.o"])
        return folder / f"{number}.o"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile, range(len(files))))
    libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
    torch = ["-ltorch", "-ltorch_cpu", "-lc10", "-ltorch_python"]
    target = folder / library._cached().parent.name / "_C.so"
    target.parent.mkdir()
    run([*command, "-shared", *objects, *libraries, *torch, "-o", target])
    return {"RECAST_CACHE": str(folder), "OMP_NUM_THREADS": "1"}


def path_of(library):
    """Where the compiler has a library; its bare name if it has none."""
    return run([COMPILER, f"-print-file-name={library}"]).strip()


def why_not(sanitizer):
    """Why ``-fsanitize=`` cannot say this here, in words; ``None`` where it can."""
    if "Free Software Foundation" not in run([COMPILER, "--version"]):
        return f"{COMPILER} is not gcc, and what another one's sanitizers are told is not known"
    path = Path(path_of(RUNTIMES[sanitizer]))
    if not path.is_absolute() or path.read_bytes()[:4] != b"\x7fELF":
        return f"{COMPILER} has no {path.name} here"
    in_order = ["setarch", "-R", "true"]
    if not shutil.which("setarch") or subprocess.run(in_order, capture_output=True, check=False).returncode:
        return "addresses cannot be laid out in order here (setarch -R), which the sanitizers need"
    return None


@pytest.fixture
def sanitizer(request):
    """What ``-fsanitize=`` is to say, or ``None``; skips where it, or what it needs, is not to be had."""
    if request.param and why_not(request.param):
        pytest.skip(why_not(request.param))
    return request.param


def watched(sanitizer, command, log, **environment):
    """The exit code, what was printed, and what the sanitizer said."""
    options = f"log_path={log} detect_leaks=0 report_signal_unsafe=0"
    environment |= {"TSAN_OPTIONS": options, "ASAN_OPTIONS": options, "UBSAN_OPTIONS": options}
    command = ["env", *(f"{name}={value}" for name, value in environment.items()), *command]
    if sanitizer:
        command = ["setarch", "-R", *command]
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=1800, check=False)
    said = "".join(path.read_text() for path in log.parent.glob(f"{log.name}.*"))
    return result.returncode, result.stdout + result.stderr, said


@needs_compiler
@pytest.mark.parametrize("sanitizer", [None, *RUNTIMES], indirect=True)
def test_the_kernels_for_cuda_obey_every_law(sanitizer, tmp_path):
    environment = build(tmp_path, *(["-g1", f"-fsanitize={sanitizer}"] if sanitizer else []))
    options = ["-q", "-p", "no:cacheprovider", "-m", "not gpu", "-k", "fast and not bench"]
    if sanitizer:
        # Python does not load the sanitizer by itself, and it must come first.
        environment["LD_PRELOAD"] = f"{path_of(RUNTIMES[sanitizer])} {path_of('libstdc++.so')}"
        # It looks at every access, so a few examples do, and nothing that launches the same kernel over and over.
        options[-1] = "fast and not (bench or gradcheck or opcheck or compile or number_of_threads or very_long)"
        options.append("--hypothesis-profile=few")

    def python(*arguments):
        return watched(sanitizer, [sys.executable, *arguments], tmp_path / "log", **environment)

    which = "from recast_ref import fast; print(fast.build_info()['cuda_architectures'])"
    assert "on the CPU" in python("-c", which)[1]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for code, printed, said in pool.map(lambda file: python("-m", "pytest", *options, HERE / file), LAWS):
            assert "ERROR" not in said and "data race" not in said, said
            assert code == 0 and " passed" in printed, printed


FINE = "shared[threadIdx.x] = row; __syncthreads(); out[threadIdx.x] = shared[127 - threadIdx.x]; __syncthreads();"


@needs_compiler
@pytest.mark.parametrize(
    "sanitizer, body, found",
    [
        ("thread", FINE, None),
        ("thread", FINE.replace("__syncthreads();", "", 1), "data race"),
        ("thread", FINE.removesuffix("__syncthreads();"), "data race"),  # with the next row
        ("thread", FINE.replace("__syncthreads()", "__shfl_xor_sync(~0u, 0, 1)"), "data race"),
        ("address", FINE, None),
        ("address", "shared[threadIdx.x + 1] = row;", "use-after-poison"),
        ("address", "shared[threadIdx.x] = out[threadIdx.x + 1];", "heap-buffer-overflow"),
    ],
    indirect=["sanitizer"],
)
def test_the_sanitizers_bite(sanitizer, tmp_path, body, found):
    (tmp_path / "kernel.cpp").write_text(
        """
        #include "cuda_runtime.h"
        __global__ void kernel(unsigned* out) {
          unsigned* const shared = reinterpret_cast<unsigned*>(recast::recast_dynamic_shared);
          for (unsigned row = blockIdx.x; row < 5; row += gridDim.x) {
            BODY
          }
        }
        int main() {
          std::unique_ptr<unsigned[]> out(new unsigned[128]);
          cudaLaunchConfig_t config{5, 128, 128 * sizeof(unsigned), nullptr};
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, config.dynamicSmemBytes);
          return cudaLaunchKernelEx(&config, kernel, out.get());
        }
        """.replace("BODY", body)
    )
    flags = ["-g", "-std=c++20", "-w", f"-fsanitize={sanitizer}", f"-I{HERE / 'cuda_on_cpu'}"]
    run([COMPILER, *flags, tmp_path / "kernel.cpp", "-o", tmp_path / "kernel"])
    code, printed, said = watched(sanitizer, [tmp_path / "kernel"], tmp_path / "log")
    assert (found in said and code) if found else code == 0, printed + said
