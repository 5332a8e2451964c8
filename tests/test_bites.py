"""Do the sanitizers, and the comparison of a million groups, find what is planted? CI runs them on what is not."""

import os

import million
import pytest
import sanitize
import torch
from test_cuda_on_cpu import needs_compiler, why_not

from recast_ref import _library as library
from recast_ref import fast

ONE_CALL = """
import threading, torch
torch.ops.load_library({library!r})
torch.set_num_threads(1)
tokens, together = torch.ones(1, {width}, dtype=torch.int64), threading.Barrier(2)

def call():
    together.wait()
    for _ in range({times}):
        torch.ops.recast.branch_mask(tokens, tokens)

threads = [threading.Thread(target=call) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@needs_compiler
@pytest.mark.parametrize(
    "sanitizer, faults",
    [
        (
            "address",
            {
                "": ("", ""),
                "heap-buffer-overflow": ("i < (row + 1) * length", "i <= (row + 1) * length"),
                "signed integer overflow": ("left = false", "left = p[row * length] + 0x7fffffffffffffff == 0"),
            },
        ),
        ("thread", {"": ("", ""), "data race": ("bool left = false;", "static bool left; left = false;")}),
    ],
    ids=["address", "thread"],
)
def test_the_sanitizers_bite(sanitizer, faults, tmp_path):
    if why_not(sanitizer):
        pytest.skip(why_not(sanitizer))
    csrc = library.sources()
    op = (csrc / "cpu" / "branch_mask.cpp").read_text().replace('"../core/', f'"{csrc}/core/')
    schema = f'#include "{csrc}/ops.cpp"\n'
    for number, (words, (right, wrong)) in enumerate(faults.items()):
        assert right in op
        folder = tmp_path / str(number)
        sanitize.build(sanitizer, schema + op.replace(right, wrong, 1), folder / "op.so")
        width, times = (3, 1) if sanitizer == "address" else (1_000_000, 20)
        code = ONE_CALL.format(library=os.fspath(folder / "op.so"), width=width, times=times)
        exit_code, printed, said = sanitize.python(sanitizer, code, folder)
        assert words in said + printed and bool(said or exit_code) == bool(words), said + printed


def test_a_million_groups_counts_and_finds_the_first_difference(capsys, monkeypatch):
    assert million.main(["--groups", "300"]) == 0
    said = capsys.readouterr().out
    assert int(said.split()[0].replace(",", "")) >= 300 and said.endswith(": no difference\n")

    right = fast.recast

    def wrong(rewards, *arguments, **options):
        """For one group of many: the sixth of a batch of ten or more."""
        answer = right(rewards, *arguments, **options)
        return answer._replace(slot=answer.slot + (torch.arange(len(rewards)) == 5)) if len(rewards) > 9 else answer

    monkeypatch.setattr(fast, "recast", wrong)
    assert million.main(["--groups", "3000"]) == 1
    said, replay = capsys.readouterr().out.strip().splitlines()
    assert ": recast, part 0, group 5: the reference answers " in said
    assert million.main(replay.split()[2:]) == 1
    assert capsys.readouterr().out.strip().startswith("0 groups were equal; then, ")
