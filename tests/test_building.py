"""The three ways to have the compiled library, and what is said where there is none; what a wheel and an sdist bring."""

import functools
import os
import shutil
import subprocess
import sys
import venv

import pytest
import torch
from conftest import ROOT

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


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What is packaged, away from the checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("recast_ref", "csrc"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "_C.json", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def pip(*arguments, build):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    subprocess.run(command, check=True, env={**os.environ, "RECAST_BUILD": build}, timeout=1800)


@pytest.fixture(scope="module")
def make_wheel(source, tmp_path_factory):
    @functools.cache
    def make(kind):
        target, build = tmp_path_factory.mktemp("wheel"), "1" if kind == "built" else "0"
        pip("wheel", "-q", "--no-deps", "--no-build-isolation", "-w", target, source, build=build)
        return next(target.glob("*.whl"))

    return make


@pytest.mark.parametrize("kind", ["built", "not built"])
def test_a_wheel_brings_its_library_or_its_sources(make_wheel, kind, tmp_path):
    folder = tmp_path / "here"
    shutil.unpack_archive(str(make_wheel(kind)), folder, "zip")
    code = (
        "import recast_ref; print(recast_ref.__file__); from recast_ref import fast; print(fast.build_info()['flags'])"
    )
    result = python(code, PYTHONPATH=str(folder), RECAST_BUILD="0", RECAST_CACHE=str(tmp_path / "cache"))
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


@pytest.fixture(scope="module", params=["sdist", "wheel"])
def installed(request, source, make_wheel, tmp_path_factory):
    """``bin`` of a fresh environment that has the package from a file, and all else from the one the tests run in."""
    if request.param == "sdist":
        target = tmp_path_factory.mktemp("sdist")
        code = f"from setuptools.build_meta import build_sdist; build_sdist({str(target)!r})"
        environment = {**os.environ, "RECAST_BUILD": "0"}
        subprocess.run([sys.executable, "-c", code], check=True, cwd=source, env=environment, capture_output=True)
        package = next(target.glob("*.tar.gz"))
    else:
        package = make_wheel("not built")
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    rest = (path for path in sys.path if path.endswith("-packages"))
    (site / "rest.pth").write_text("\n".join(rest))  # paths alone: no checkout that is installed there comes with them
    pip("--python", folder, "install", "-q", "--no-deps", "--no-build-isolation", package, build="0")
    return folder / "bin"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Shared: sdist and wheel have the same sources, so that the second finds what the first compiled."""
    return tmp_path_factory.mktemp("cache")


def at(folder, *command, cache):
    """Runs a command elsewhere than in the checkout, which nothing leads to."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["RECAST_CACHE"] = str(cache)
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=folder, env=environment, timeout=1800, check=False
    )


def test_what_is_installed_compiles_its_own_sources_and_checks_a_variant(installed, cache, tmp_path):
    code = """if True:
        import torch, recast_ref
        from recast_ref import auto, fast, reference
        group = torch.zeros(1, 3), torch.tensor([[0.1, 0.0, 0.01]])
        print(recast_ref.__file__, auto.path, torch.equal(fast.recast(*group).slot, reference.recast(*group).slot))
    """
    result = at(tmp_path, installed / "python", "-c", code, cache=cache)
    file, *rest = result.stdout.split()
    assert file.startswith(str(installed.parent)) and rest == ["fast", "True"], result.stderr
    variant = "recast_ref.testing.examples:recast_by_sorting"
    result = at(tmp_path, installed / "recast-ref", "check", variant, "--examples", "20", cache=cache)
    assert result.returncode == 0 and "BROKEN" not in result.stdout and " holds" in result.stdout, result.stderr


@pytest.mark.parametrize("installed", ["wheel"], indirect=True)
def test_what_is_installed_runs_the_experiment(installed, cache, tmp_path):
    result = at(tmp_path, installed / "recast-ref", "compare", "--quick", "--out", "out", cache=cache)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "results.json").stat().st_size and (tmp_path / "out" / "report.html").stat().st_size


USER = """
import torch
from recast_ref import auto, fast, reference, testing

rewards, scores, mask = torch.zeros(2, 4), torch.rand(2, 4), torch.ones(2, 4)
picked = reference.recast(rewards, scores, tie_break=torch.rand(2, 4), negative_weight=0.2)
same = fast.recast(rewards, scores)
again = auto.recast(rewards, scores)
loss: torch.Tensor = auto.policy_loss(scores, scores, again.advantages[:, 0], mask).loss
reason: str | None = auto.reason


@testing.breaks("agreement", because="it looks at rewards alone")
def mine(rewards: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return rewards - rewards.mean(dim=1, keepdim=True)


groups = testing.sparse_hit_groups(prompts=(1, 2)).example()
print(testing.check(mine, kind="recast").ok, groups.rewards.shape, mine(rewards, scores))
test_mine = testing.suite(mine)
"""


@pytest.mark.parametrize("installed", ["wheel"], indirect=True)
def test_a_type_checker_sees_what_is_installed(installed, mypy, tmp_path):
    wrong = {
        "reference.recast(rewards, scores, tie": "reference.recast(2, scores, tie",
        "fast.recast(rewards": "fast.recast(2",
        "auto.recast(rewards": "auto.recast(2",
        "loss: torch.Tensor = auto": "loss: float = auto",
        "auto.reason": "auto.recant",
        "check(mine, kind=": "check(mine, kinds=",
        "groups.rewards": "groups.reward",
        "mine(rewards, scores))": "mine(rewards))",
    }
    (tmp_path / "right.py").write_text(USER)
    for number, (right, its) in enumerate(wrong.items()):
        assert USER.count(right) == 1
        (tmp_path / f"wrong_{number}.py").write_text(USER.replace(right, its))
    _, said = mypy("--python-executable", installed / "python", *sorted(tmp_path.glob("*.py")), cwd=tmp_path)
    files = [line.partition(":")[0] for line in said.splitlines() if ": error:" in line]
    assert sorted(set(files)) == [f"wrong_{number}.py" for number in range(len(wrong))], said
