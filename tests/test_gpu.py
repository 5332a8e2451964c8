r"""What only a GPU can show. ``pytest -m gpu`` runs these and every law of the fast path on CUDA tensors.

Where nvcc is a script or a link that lies elsewhere, say where CUDA is, or the library is built without its kernels
(``recast-ref info`` says so): ``export CUDA_HOME=/usr/local/cuda``.

Then, once that run has built the library, the same under NVIDIA's sanitizer: with memory of its own for each tensor, or what lies
out of bounds is another tensor of PyTorch's pool; for our kernels alone, or it takes hours; and without what cannot do with that
(graphs, what counts memory), what is too large, and what asserts on purpose::

    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    for tool in memcheck racecheck; do
      compute-sanitizer --tool $tool --kernel-name kns=recast --target-processes application-only --error-exitcode 9 \
        python -m pytest -q -m gpu --hypothesis-profile=few -k "not (compile or graph or no_memory or 32_bits or bad_value)"
    done
"""

import math
import subprocess
import sys

import pytest
import torch

from recast_ref import _library, fast, reference

pytestmark = pytest.mark.gpu
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.fixture
def generator():
    return torch.Generator("cuda").manual_seed(0)


def sids(generator, groups=100, size=32):
    predictions = torch.randint(4, (groups, size, 1, 3), generator=generator, device="cuda")
    targets = torch.randint(4, (groups, 1, 3), generator=generator, device="cuda")
    return predictions, targets, torch.rand(groups, size, generator=generator, device="cuda")


def loss_inputs(generator, dtype=torch.float32, rows=64, size=151_936):
    logits = (3 * torch.randn(rows, 3, size, generator=generator, device="cuda")).to(dtype)
    tokens = torch.randint(size, (rows, 3), generator=generator, device="cuda")
    with torch.no_grad():
        old_logps = reference.token_logps(logits, tokens) + 0.1
    advantages = torch.randn(rows, generator=generator, device="cuda")
    mask = torch.rand(rows, 3, generator=generator, device="cuda") < 0.8
    return logits, tokens, old_logps, advantages, mask


def loss_and_gradient(function, logits, *rest, **options):
    leaf = logits.clone().requires_grad_()
    loss = function(leaf, *rest, **options).loss
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def test_the_build_has_cuda():
    assert "sm_90" in fast.build_info()["cuda_architectures"], _library.why_no_cuda()


# 3 responses: one row for several blocks; 300: one visit to each row, by one, two or four blocks on a multiprocessor; odd
# sizes: rows that begin at any address.
@pytest.mark.parametrize("rows, size", [(1, 151_936), (300, 151_936), (300, 32_001), (300, 1001), (7, 33)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inplace", [False, True])
def test_loss_and_gradient_are_as_precise_as_pytorch(generator, dtype, rows, size, inplace):
    inputs = loss_inputs(generator, dtype, rows, size)
    exact = loss_and_gradient(reference.logits_loss, inputs[0].double(), *inputs[1:])
    plain = loss_and_gradient(reference.logits_loss, *inputs)
    ours = loss_and_gradient(fast.logits_loss, *inputs, inplace_backward=inplace)
    # Where PyTorch is exact by luck, or is itself the truth: a loss is a sum of advantages that may cancel, and a log-prob
    # is a difference of numbers of some 16.
    for got, theirs, truth, size in zip(ours, plain, exact, (inputs[3].abs().max(), exact[1].abs().max())):
        floor = 64 * torch.finfo(got.dtype).eps * size
        assert (got.double() - truth).abs().max() <= max(2 * (theirs.double() - truth).abs().max(), floor)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_twice(generator, dtype):
    inputs = loss_inputs(generator, dtype, rows=300)
    for inplace in (False, True):
        first, second = (loss_and_gradient(fast.logits_loss, *inputs, inplace_backward=inplace) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("layout", ["sliced", "transposed", "expanded", "step"])
def test_logits_of_any_strides(generator, layout):
    base = torch.randn(5, 7, 1001, generator=generator, device="cuda")
    logits = {
        "sliced": base[:, :-1],
        "transposed": base.transpose(0, 1),
        "expanded": base[:1].expand(5, -1, -1),
        "step": base[..., ::2],
    }[layout].requires_grad_()
    tokens = torch.randint(logits.shape[-1], logits.shape[:2], generator=generator, device="cuda")
    expected, got = reference.token_logps(logits, tokens), fast.token_logps(logits, tokens)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        *(torch.autograd.grad(x.sum(), logits)[0] for x in (got, expected)), rtol=1e-5, atol=1e-6
    )


def test_selection_at_size_is_equal_to_the_last_index(generator):
    predictions, targets, keys = sids(generator, groups=4096)
    expected = reference.recast_from_sids(predictions, targets, tie_break=keys)
    assert all(torch.equal(a, b) for a, b in zip(fast.recast_from_sids(predictions, targets, tie_break=keys), expected))
    strided = keys.T.contiguous().T
    got = fast.recast_from_sids(predictions[:, ::2], targets, tie_break=strided[:, ::2])
    expected = reference.recast_from_sids(predictions[:, ::2], targets, tie_break=strided[:, ::2])
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


def test_more_logits_than_32_bits_can_count(generator):
    rows, size = 2**16 + 1, 2**15
    if torch.cuda.mem_get_info()[0] < 16e9:
        pytest.skip("needs 16 GB of free GPU memory")
    logits = torch.zeros(1, rows, size, dtype=torch.bfloat16, device="cuda")
    logits[0, -1, -1] = 5.0
    tokens = torch.full((1, rows), size - 1, device="cuda")
    logps = fast.token_logps(logits, tokens)
    torch.testing.assert_close(logps[0, :-1], torch.full_like(logps[0, :-1], -math.log(size)))
    assert logps[0, -1].item() == pytest.approx(5 - math.log(size - 1 + math.exp(5)), rel=1e-5)
    leaf = logits.requires_grad_()
    one, mask = torch.ones(1, device="cuda"), torch.ones_like(tokens)
    loss = fast.logits_loss(leaf, tokens, logps, one, mask, aggregate="seq-mean-token-sum", inplace_backward=True).loss
    (gradient,) = torch.autograd.grad(loss, leaf)
    p = math.exp(logps[0, -1].item())
    assert gradient[0, -1, -1].item() == pytest.approx(-(1 - p), rel=1e-2)


def test_nothing_waits_for_the_device(generator):
    logits, *rest = loss_inputs(generator, rows=300, size=1001)
    groups = sids(generator)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        fast.recast_from_sids(*groups[:2], tie_break=groups[2])
        rewards, scores = fast.hit_rewards(*groups[:2]), fast.structural_scores(*groups[:2])
        fast.recast(rewards, scores, tie_break=groups[2])
        fast.group_advantages(rewards)
        fast.hybrid(rewards, scores, tie_break=groups[2])
        near = fast.nearness(*groups[:2])
        fast.choose_anchor(groups[1], near, near)
        fast.anchor_weights(-groups[2][:, 0])
        for inplace in (False, True):
            leaf = logits.clone().requires_grad_()
            torch.autograd.grad(fast.logits_loss(leaf, *rest, inplace_backward=inplace).loss, leaf)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_inside_a_cuda_graph(generator):
    logits, *rest = loss_inputs(generator, rows=300, size=1001)
    groups = sids(generator)
    leaf = logits.clone().requires_grad_()

    def step():
        loss = fast.logits_loss(leaf, *rest).loss
        picked = fast.recast_from_sids(*groups[:2], tie_break=groups[2])
        return loss, torch.autograd.grad(loss, leaf)[0], picked.advantages

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        leaf.copy_(logits.flip(0))
    groups[0].copy_(groups[0].flip(0))
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, step()))


def test_compile_without_a_graph_break(generator):
    logits, *rest = loss_inputs(generator, rows=300, size=1001)
    step = torch.compile(lambda x: fast.logits_loss(x, *rest).loss, fullgraph=True)
    expected = loss_and_gradient(lambda x: fast.logits_loss(x, *rest), logits)
    leaf = logits.clone().requires_grad_()
    loss = step(leaf)
    torch.testing.assert_close((loss.detach(), torch.autograd.grad(loss, leaf)[0]), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_needs_no_memory_of_the_size_of_the_logits(generator, dtype):
    logits, *rest = loss_inputs(generator, dtype, rows=300)
    leaf = logits.requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = fast.logits_loss(leaf, *rest, inplace_backward=True).loss
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert gradient.data_ptr() == leaf.data_ptr()
    assert torch.cuda.max_memory_allocated() - before < 0.01 * logits.nbytes


def test_in_place_needs_rows_apart(generator):
    logits, *rest = loss_inputs(generator, rows=8, size=100)
    rows_of_none = logits.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    same_row = logits[:1].expand(8, -1, -1)
    for x in (rows_of_none, same_row):
        with pytest.raises(ValueError, match="rows that are contiguous in memory and do not overlap"):
            loss_and_gradient(
                lambda leaf, *rest, x=x, **o: fast.logits_loss(x.requires_grad_(), *rest, **o),
                x,
                *rest,
                inplace_backward=True,
            )


def test_in_place_only_the_loss_has_a_gradient(generator):
    logits, *rest = loss_inputs(generator, rows=300, size=1001)
    result = fast.logits_loss(logits.requires_grad_(), *rest, inplace_backward=True)
    with pytest.raises(RuntimeError, match="only .loss has a gradient"):
        result.policy.backward()


def test_more_dimensions_than_the_kernels_take_are_refused():
    tokens = torch.zeros(7 * [1], dtype=torch.int64, device="cuda")
    with pytest.raises(ValueError, match="logits: expected at most 7 dimensions on a CUDA device"):
        fast.token_logps(torch.zeros(8 * [1], device="cuda"), tokens)


def test_two_devices_are_refused(generator):
    predictions, targets, keys = sids(generator)
    with pytest.raises(ValueError, match="targets: expected device cuda:0, where predictions is, got cpu"):
        fast.recast_from_sids(predictions, targets.cpu())
    with pytest.raises(ValueError, match="tie_break: expected device cuda:0"):
        fast.recast_from_sids(predictions, targets, tie_break=keys.cpu())
    logits, tokens, old_logps, advantages, mask = loss_inputs(generator, rows=2, size=10)
    with pytest.raises(ValueError, match="tokens: expected device cuda:0"):
        fast.token_logps(logits, tokens.cpu())
    with pytest.raises(ValueError, match="advantages: expected device cuda:0"):
        fast.policy_loss(old_logps, old_logps, advantages.cpu(), mask)


@pytest.mark.parametrize(
    "call, words",
    [
        ("fast.contrast(torch.full((1, 2), math.nan, device='cuda'), z)", "rewards: expected finite values"),
        (
            "fast.group_advantages(torch.tensor([[6e4, -6e4, -6e4]], device='cuda').half(), normalize=False)",
            "rewards: expected values whose differences",
        ),
        ("fast.contrast(z, z, tie_break=torch.full((1, 2), math.nan, device='cuda'))", "tie_break: expected values"),
        ("fast.choose_anchor(z.long()[..., None], z * math.nan)", "values: expected values that can be ranked"),
        ("fast.anchor_weights(z[0] - math.inf)", "logps: expected finite values"),
        ("fast.token_logps(torch.zeros(1, 2, 5, device='cuda'), z.long() + 5)", "tokens: expected values in [0, V)"),
        ("fast.policy_loss(z, z, z[:, 0], z + 2)", "mask: expected only 0 and 1"),
    ],
)
def test_a_bad_value_stops_the_kernel_and_says_why(call, words):
    code = f"import math, torch; from recast_ref import fast; z = torch.zeros(1, 2, device='cuda'); {call}; torch.cuda.synchronize()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1800, check=False)
    assert result.returncode and words in result.stderr and "device-side assert" in result.stderr
