"""Packages, and the C++ extension where it is to be built ahead of time.

An install with build isolation sees no torch: it ships the sources, which are compiled on first use. With
``--no-build-isolation`` and torch there, the extension is built now, unless ``RECAST_BUILD=0``.
"""

import importlib.util
import json
import os
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
# Shipped inside the package.
SOURCES = ("recast_ref.csrc", *(f"recast_ref.csrc.{name}" for name in ("core", "cpu", "cuda")))
options = {}

if importlib.util.find_spec("torch") and os.environ.get("RECAST_BUILD") != "0":
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    spec = importlib.util.spec_from_file_location("library", HERE / "recast_ref" / "_library.py")
    library = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)

    note = json.dumps({"torch": torch.__version__})  # left beside the library, for who would load it with another

    class Build(BuildExtension):
        def run(self):
            super().run()
            for library_file in self.get_outputs():
                Path(library_file).with_name("_C.json").write_text(note)

        def copy_extensions_to_source(self):  # an editable install
            super().copy_extensions_to_source()
            (HERE / "recast_ref" / "_C.json").write_text(note)

    Extension = CppExtension if library.why_no_cuda() else CUDAExtension
    options = {
        "ext_modules": [
            Extension(
                "recast_ref._C",
                [str(path.relative_to(HERE)) for path in library.source_files()],
                extra_compile_args={"cxx": library.compile_arguments(shell=False), "nvcc": list(library.CUDA_FLAGS)},
            )
        ],
        "cmdclass": {"build_ext": Build.with_options(no_python_abi_suffix=False)},
    }

setup(
    packages=[*find_packages(include=["recast_ref*"]), *SOURCES],
    package_dir={"recast_ref.csrc": "csrc"},
    package_data={"recast_ref": ["py.typed"], **{name: ["*.cpp", "*.h", "*.cu", "*.cuh"] for name in SOURCES}},
    **options,
)
