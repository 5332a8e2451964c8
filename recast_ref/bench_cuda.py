"""``recast-ref bench --device cuda``: the kernels for CUDA against named peers, in one run.

Times are of the device, by CUDA events, medians over rounds in which the peers take turns. Inputs are random, larger than the
second-level cache or rotated until they are, and fresh in every round for what overwrites them.
"""

import importlib.util
import statistics
from collections import defaultdict

import torch

from . import fast, reference
from .bench import GROUP, GROUPS, VOCABULARY, unchecked_loss

RESPONSES, TOKENS = 512, 16  # 8,192 rows
ROTATED = 32  # copies of the groups, 110 MB in all


def bench(repeats=7, on_progress=lambda name: None):
    """As :func:`recast_ref.bench.bench`; ``extra_bytes`` is what the allocator had given out at the peak beyond the inputs."""
    results = {}
    for name, make in (
        (
            f"logits_loss, forward + backward, {RESPONSES * TOKENS} x {VOCABULARY}, bfloat16",
            lambda: loss_peers(torch.bfloat16),
        ),
        (
            f"logits_loss, forward + backward, {RESPONSES * TOKENS} x {VOCABULARY}, float32",
            lambda: loss_peers(torch.float32),
        ),
        (f"recast_from_sids, {GROUPS} groups of {GROUP}", selection_peers),
    ):
        on_progress(name)
        results[name] = measure(*make(), repeats)
        torch.cuda.empty_cache()
    return results


def measure(peers, prepare, calls, repeats):
    """Medians and peak bytes of ``{name: function}``; ``prepare`` runs before each, outside the time; a run is ``calls`` calls."""
    seconds, extra = defaultdict(list), {}
    for name, run in peers.items():
        for _ in range(2):  # compiles, allocates
            prepare()
            run()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        extra[name] = torch.cuda.max_memory_allocated() - before
    for _ in range(repeats):
        for name, run in peers.items():
            prepare()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            end.synchronize()
            seconds[name].append(start.elapsed_time(end) / 1e3 / calls)
    return {name: {"seconds": statistics.median(seconds[name]), "extra_bytes": extra[name]} for name in peers}


def loss_peers(dtype):
    """Ways to get the loss and its gradient from logits of shape ``(RESPONSES, TOKENS, VOCABULARY)``."""
    generator = torch.Generator("cuda").manual_seed(0)
    # Liger's loss wants one more position, which it leaves out: the others get a view without it.
    fresh = torch.empty(RESPONSES, TOKENS + 1, VOCABULARY, dtype=dtype, device="cuda")
    for row in fresh:
        row.copy_(3 * torch.randn(row.shape, generator=generator, device="cuda"))
    whole = fresh.clone()
    logits = whole[:, :-1]
    flat = whole.view(-1)[: logits.numel()]  # as many bytes, in one piece: copied as fast as can be
    target = torch.empty_like(flat)
    tokens = torch.randint(VOCABULARY, (RESPONSES, TOKENS), generator=generator, device="cuda")
    with torch.no_grad():
        old_logps = fast.token_logps(logits, tokens)
    advantages = torch.randn(RESPONSES, generator=generator, device="cuda")
    mask = torch.ones(RESPONSES, TOKENS, dtype=torch.bool, device="cuda")

    def step(loss, inputs=logits, **options):
        def run():
            leaf = inputs.detach().requires_grad_()
            torch.autograd.grad(loss(leaf, tokens, old_logps, advantages, mask, **options).loss, leaf)

        return run

    peers = {
        "reference, eager": step(reference.logits_loss),
        "reference, torch.compile": step(torch.compile(unchecked_loss)),
        "fast": step(fast.logits_loss),
        "fast, in place": step(fast.logits_loss, inplace_backward=True),
        "one copy of the logits": lambda: target.copy_(flat),
    }
    if importlib.util.find_spec("trl"):
        from trl.trainer.utils import selective_log_softmax

        def trl_loss(logits, tokens, *rest):
            return reference.policy_loss(selective_log_softmax(logits, tokens), *rest)

        peers["TRL selective_log_softmax"] = step(trl_loss)
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers.grpo_loss import triton_grpo_loss

        def liger_loss(logits, tokens, old_logps, advantages, mask):
            options = {"temperature": 1.0, "beta": 0.0, "eps_high": 0.28, "delta": 3.0, "reduce": True}
            loss = triton_grpo_loss(logits, old_logps, None, tokens, advantages, mask.int(), inplace=True, **options)[0]
            return reference.PolicyLoss(loss, loss, loss, loss)

        peers["Liger triton_grpo_loss, in place"] = step(liger_loss, whole)
    return peers, lambda: whole.copy_(fresh), 1


def selection_peers():
    """From SIDs to advantages. The fast path is captured in a CUDA graph, so that what is measured is the kernel and not the
    call; the reference cannot be, as it looks at values."""
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(*shape):
        return torch.randint(16, shape, generator=generator, device="cuda")

    inputs = [(draw(GROUPS, GROUP, 1, 3), draw(GROUPS, 1, 3)) for _ in range(ROTATED)]
    keys = torch.rand(GROUPS, GROUP, generator=generator, device="cuda")

    def all_of(function):
        return lambda: [function(*pair, tie_break=keys) for pair in inputs]

    all_of(fast.recast_from_sids)()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = all_of(fast.recast_from_sids)()
    peers = {
        "reference": all_of(reference.recast_from_sids),
        "fast": all_of(fast.recast_from_sids),
        "fast, in a CUDA graph": lambda: (graph.replay(), kept)[0],
    }
    return peers, lambda: None, ROTATED
