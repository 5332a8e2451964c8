"""The three ways to have the compiled library, and what is said where there is none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recast_ref import _library as library
from recast_ref import auto, fast, reference


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=1800,
        env={**os.environ, **environment},
        cwd="/",
        check=False,
    )


def test_without_a_build_there_is_a_reason_and_a_remedy(tmp_path):
    where = {"RECAST_CACHE": str(tmp_path), "RECAST_BUILD": "0"}
    result = python("from recast_ref import fast", **where)
    assert result.returncode and "RECAST_BUILD=0 forbids to build it. Use recast_ref.reference" in result.stderr
    code = "from recast_ref import auto, reference; print(auto.path, auto.recast is reference.recast, auto.reason)"
    assert python(code, **where).stdout.startswith("reference True recast_ref.fast: not built, and RECAST_BUILD=0")


@pytest.mark.parametrize("where", ["a file/cache", "/proc/nowhere", "/dev/null/cache"])
def test_a_cache_that_cannot_be_made_is_no_reason_to_stop(where, tmp_path):
    (tmp_path / "a file").touch()
    place = {"RECAST_CACHE": str(tmp_path / where)}
    result = python("from recast_ref import fast", **place)
    assert result.stderr.splitlines()[-1].startswith("ImportError: recast_ref.fast: [Errno")
    assert "RECAST_CACHE says where the library is to be built" in result.stderr
    result = python("from recast_ref import auto; print(auto.path, auto.reason)", **place)
    assert result.stdout.startswith("reference recast_ref.fast: [Errno"), result.stderr


def test_no_home_is_no_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.delenv("RECAST_CACHE", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user that no passwd file knows
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImportError, match="this user has no home folder"):
        library.load()
    assert not list(tmp_path.iterdir())


def test_auto_takes_the_fast_path():
    assert (auto.path, auto.reason, auto.recast) == ("fast", None, fast.recast)
    assert set(reference.__all__) <= set(auto.__all__)


def test_a_library_of_another_torch_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "PACKAGE", tmp_path)
    prebuilt = tmp_path / f"_C{library.sysconfig.get_config_var('EXT_SUFFIX')}"
    prebuilt.write_bytes(b"")
    (tmp_path / "_C.json").write_text('{"torch": "1.0.0"}')
    with pytest.raises(ImportError, match=r"was built against torch 1\.0\.0, and this is torch 2"):
        library.load()


def test_no_compiler(tmp_path):
    result = python("from recast_ref import fast", RECAST_CACHE=str(tmp_path), CXX="no-such-compiler")
    assert "building it needs a C++ compiler, which is not here" in result.stderr


def test_no_two_sources_make_the_same_object():
    """setuptools names an object after its source without the suffix, ninja after that without the folder."""
    files = [path for path in library.sources().rglob("*") if path.suffix in (".cpp", ".cu")]
    for names in ([path.with_suffix("") for path in files], [path.name for path in files]):
        assert len(names) == len(set(names))


def test_build_info():
    info = fast.build_info()
    assert torch.__version__.startswith(info["torch"]) and info["flags"].startswith("-O3")


def test_two_processes_build_once_and_both_run(tmp_path):
    code = "from recast_ref import fast, reference; import torch; print(fast.branch_mask(*torch.tensor([[[1, 2]], [[1, 3]]])))"
    environment = {**os.environ, "RECAST_CACHE": str(tmp_path)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(2)
    ]
    results = [process.communicate(timeout=1800) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    assert all(out == "tensor([[False,  True]])\n" for out, _ in results)
    assert sum("compiling its C++ ops" in err for _, err in results) == 1
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["_C.lock", "_C.so"]


@pytest.fixture(scope="module", params=["built", "not built"])
def wheel(request, tmp_path_factory):
    """An unpacked wheel, made with and without the extension."""
    root = Path(__file__).parents[1]
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("recast_ref", "csrc"):
        shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("*.so", "_C.json", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", target, source],
        check=True,
        env={**os.environ, "RECAST_BUILD": "1" if request.param == "built" else "0"},
        timeout=1800,
    )
    shutil.unpack_archive(str(next(target.glob("*.whl"))), target / "here", "zip")
    return request.param, target / "here"


def test_a_wheel_brings_its_library_or_its_sources(wheel, tmp_path):
    kind, folder = wheel
    code = (
        "import recast_ref; print(recast_ref.__file__); from recast_ref import fast; print(fast.build_info()['flags'])"
    )
    result = python(code, PYTHONPATH=str(folder), RECAST_BUILD="0", RECAST_CACHE=str(tmp_path))
    assert result.stdout.startswith(str(folder))
    assert (folder / "recast_ref" / "csrc" / "core" / "pair.h").exists()
    if kind == "built":
        assert result.stdout.splitlines()[1].startswith("-O3"), result.stderr
        note = folder / "recast_ref" / "_C.json"
        note.write_text(note.read_text().replace(torch.__version__, "1.0.0"))
        again = python("from recast_ref import fast", PYTHONPATH=str(folder))
        assert "was built against torch 1.0.0" in again.stderr and again.returncode == 1
    else:
        assert "RECAST_BUILD=0 forbids" in result.stderr and not list((folder / "recast_ref").glob("_C*"))
