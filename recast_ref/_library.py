"""Finds, or builds, the compiled library that holds the ops of recast_ref.fast, and loads it.

It is looked for where an ahead-of-time build puts it (``pip install --no-build-isolation``), beside this package. If it is
not there it is compiled on first use, once for each torch version and state of the sources, into a cache folder
(``RECAST_CACHE``, default ``~/.cache/recast_ref``). ``RECAST_BUILD=0`` forbids the compiling.

The kernels for CUDA are part of it where torch is one for CUDA and nvcc is there, with a GPU or without; ``RECAST_CUDA=0``
leaves them out.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import sysconfig
import tempfile
from contextlib import contextmanager
from pathlib import Path

import torch

PACKAGE = Path(__file__).resolve().parent
# OpenMP is compiled for but not linked: its symbols are then those of the runtime that torch brings, so that both share one
# pool of threads and torch.set_num_threads holds for both.
OPENMP = ("-fopenmp",) if sys.platform == "linux" else ()
FLAGS = ("-O3", "-g0", "-fvisibility=hidden", "-Wno-psabi", *OPENMP)
ARCHITECTURES = ("sm_80", "sm_90", "compute_90")  # the last is PTX, which the driver compiles for newer devices
CUDA_FLAGS = (
    *("-O3", "-std=c++17"),
    *(f"-gencode=arch=compute_{name.split('_')[1]},code={name}" for name in ARCHITECTURES),
)
REMEDY = "Use recast_ref.reference, or recast_ref.auto, which takes whichever path there is."


def sources():
    """The folder of the C++ sources: inside an installed package, or beside it in a checkout."""
    for folder in (PACKAGE / "csrc", PACKAGE.parent / "csrc"):
        if (folder / "ops.cpp").exists():
            return folder
    raise ImportError(
        f"recast_ref.fast: the C++ sources are missing, looked in {PACKAGE} and {PACKAGE.parent}. {REMEDY}"
    )


def why_no_cuda():
    """Why a build here leaves the kernels for CUDA out, in words; ``None`` where it has them."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is not for CUDA"
    if os.environ.get("RECAST_CUDA") == "0":
        return "RECAST_CUDA=0"
    from torch.utils.cpp_extension import CUDA_HOME

    if CUDA_HOME is None or not (Path(CUDA_HOME) / "bin" / "nvcc").exists():
        return "nvcc is not here"
    if not (Path(CUDA_HOME) / "include" / "cuda_runtime.h").exists():
        return f"CUDA's headers are not in {CUDA_HOME}, set CUDA_HOME to where they are"
    version = (Path(CUDA_HOME) / "include" / "cuda.h").read_text().partition("#define CUDA_VERSION ")[2].split()
    if version and int(version[0]) // 1000 != int(torch.version.cuda.split(".")[0]):
        return f"{CUDA_HOME} has CUDA {int(version[0]) // 1000}, and torch is for CUDA {torch.version.cuda}"
    return None


def source_files():
    """What is compiled here: paths of C++ and, where they are built, CUDA sources."""
    files = sorted(path for path in sources().rglob("*") if path.suffix in (".cpp", ".cu"))
    return files if why_no_cuda() is None else [path for path in files if path.parent.name != "cuda"]


def compile_arguments(shell=True):
    """Flags for every C++ source, with what ``build_info()`` is to say. ``shell``: quotes are escaped for ninja's shell."""
    architectures = "none" if why_no_cuda() else ",".join(ARCHITECTURES)
    said = {"RECAST_FLAGS": ",".join(FLAGS), "RECAST_CUDA_ARCHITECTURES": architectures}
    quote = '\\"' if shell else '"'
    return [*FLAGS, *(f"-D{name}={quote}{value}{quote}" for name, value in said.items())]


def load():
    """Load the library, building it first if need be. Returns the module ``_C``.

    Raises:
        ImportError: it cannot be had; the message says why and what to do.
    """
    found = find()
    with _as_import_error():
        return _import(found) if found else _build(_cached())


def find():
    """The path of the library, or ``None`` if it is yet to be built.

    Raises:
        ImportError: the one beside this package was built against another torch, or the cache folder cannot be read.
    """
    with _as_import_error():
        prebuilt = PACKAGE / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        if prebuilt.exists():
            _refuse_another_torch(prebuilt)
            return prebuilt
        return _cached() if _cached().exists() else None


@contextmanager
def _as_import_error():
    """Files and folders that cannot be made or read: no reason for ``auto`` not to fall back."""
    try:
        yield
    except OSError as error:
        raise ImportError(
            f"recast_ref.fast: {error}. RECAST_CACHE says where the library is to be built and kept: a folder that can be "
            f"written. {REMEDY}"
        ) from error


def _refuse_another_torch(library):
    """Loading a library that was built against another torch can crash; what it was built against lies beside it."""
    record = library.with_name("_C.json")
    try:
        built = json.loads(record.read_text())["torch"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        built = "an unknown version"
    if built != torch.__version__:
        raise ImportError(
            f"recast_ref.fast: {library} was built against torch {built}, and this is torch {torch.__version__}. "
            "Build it again with pip install --no-build-isolation --force-reinstall --no-deps, or delete it to have it "
            f"compiled on first use. {REMEDY}"
        )


def _import(path):
    spec = importlib.util.spec_from_file_location("recast_ref._C", path)
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise ImportError(f"recast_ref.fast: {path} cannot be loaded: {error}. {REMEDY}") from error
    return module


def _cached():
    """Where the library of these sources, flags, torch and Python is kept."""
    root = Path(os.environ.get("RECAST_CACHE") or os.path.expanduser("~/.cache/recast_ref"))
    if root.parts[0] == "~":
        raise FileNotFoundError("this user has no home folder")
    digest = hashlib.sha256(" ".join([*compile_arguments(), *CUDA_FLAGS]).encode())
    for path in sorted(sources().rglob("*")):
        if path.suffix in (".cpp", ".h", ".cu", ".cuh"):
            digest.update(path.read_bytes())
    return root / f"torch{torch.__version__}-{sysconfig.get_config_var('SOABI')}-{digest.hexdigest()[:12]}" / "_C.so"


def _build(target):
    """Compile into a folder of its own and move the result into place, so that it is there whole or not at all."""
    if os.environ.get("RECAST_BUILD") == "0":
        raise ImportError(f"recast_ref.fast: not built, and RECAST_BUILD=0 forbids to build it. {REMEDY}")
    for tool, package in (("ninja", "ninja (pip install ninja)"), (os.environ.get("CXX", "c++"), "a C++ compiler")):
        if not shutil.which(tool) and not (tool == "ninja" and importlib.util.find_spec("ninja")):
            raise ImportError(
                f"recast_ref.fast: not built, and building it needs {package}, which is not here. {REMEDY}"
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(target.with_suffix(".lock")):
        if target.exists():
            return _import(target)  # another process built it while this one waited
        print(
            f"recast_ref.fast: compiling its C++ ops for torch {torch.__version__}, once; this takes about a minute. "
            f"They are kept in {target.parent}",
            file=sys.stderr,
            flush=True,
        )
        from torch.utils import cpp_extension

        with tempfile.TemporaryDirectory(dir=target.parent) as folder, _ninja_on_path():
            try:
                module = cpp_extension.load(
                    "_C",
                    [str(path) for path in source_files()],
                    extra_cflags=compile_arguments(),
                    extra_cuda_cflags=list(CUDA_FLAGS),
                    build_directory=folder,
                )
            except (RuntimeError, OSError) as error:
                raise ImportError(
                    f"recast_ref.fast: compiling failed (RECAST_CUDA=0 leaves the CUDA kernels out). {REMEDY}\n{error}"
                ) from error
            os.replace(Path(folder) / "_C.so", target)
            return module


@contextmanager
def _only_one(lock):
    """One process at a time; a killed one lets go."""
    import fcntl

    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _ninja_on_path():
    """The ninja of this environment is found even if its bin folder is not on PATH."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before
