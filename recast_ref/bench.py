"""``recast-ref bench``: the fast path against named peers, in one run, as ratios of medians.

Absolute times mean little on another machine; what is compared here ran in turns on this one.
"""

import importlib.util
import statistics
import time
from collections import defaultdict

import torch

from . import fast, reference
from .lab.memory import PeakBytes

ROWS, VOCABULARY = 192, 151_936  # the vocabulary of Qwen3
WIDTH = 128  # of the hidden states before the output layer
GROUPS, GROUP = 4096, 32


def bench(repeats=7, on_progress=lambda name: None):
    """Measure everything.

    Args:
        repeats: rounds; in each, every peer runs once.
        on_progress: called with the name of each case before it is measured.

    Returns:
        ``{case: {peer: {"seconds", "extra_bytes"}}}``: medians, and the bytes of the tensors alive at the peak beyond the
        inputs (``None`` where they cannot be counted).
    """
    results = {}
    for name, make in (
        ("logits_loss, forward + backward, float32", lambda: loss_peers(torch.float32)),
        ("logits_loss, forward + backward, bfloat16", lambda: loss_peers(torch.bfloat16)),
        (f"output layer of width {WIDTH} + logits_loss, forward + backward, float32", layer_peers),
        (f"recast_from_sids, {GROUPS} groups of {GROUP}", lambda: selection_peers(GROUPS, GROUP)),
        ("recast_from_sids, one group of 8", lambda: selection_peers(1, 8)),
    ):
        on_progress(name)
        results[name] = measure(make(), repeats)
    return results


def measure(peers, repeats):
    """Medians and peak bytes of ``{name: function}``: a warm-up of each, the rounds, and a last call in which bytes are counted."""
    seconds, extra = defaultdict(list), {}
    for run in peers.values():
        run()  # compiles, allocates
    for _ in range(repeats):
        for name, run in peers.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    for name, run in peers.items():
        extra[name] = None
        if "torch.compile" not in name:  # its buffers are not made by operators that can be counted
            with PeakBytes() as memory:
                run()
            extra[name] = memory.peak
    return {name: {"seconds": statistics.median(seconds[name]), "extra_bytes": extra[name]} for name in peers}


def loss_peers(dtype):
    """Ways to get the loss and its gradient from logits of shape ``(ROWS / 3, 3, VOCABULARY)``: responses of three codes."""
    generator = torch.Generator().manual_seed(0)
    shape = (ROWS // 3, 3)
    logits = (3 * torch.randn(*shape, VOCABULARY, generator=generator)).to(dtype)
    tokens = torch.randint(VOCABULARY, shape, generator=generator)
    old_logps = reference.token_logps(logits, tokens)
    advantages = torch.randn(shape[0], generator=generator)
    mask = torch.ones(shape, dtype=torch.bool)
    target = torch.empty_like(logits)

    def step(loss, **options):
        def run():
            # In place, the next round works on what this one left: values differ, the work does not.
            leaf = logits.detach().requires_grad_()
            torch.autograd.grad(loss(leaf, tokens, old_logps, advantages, mask, **options).loss, leaf)

        return run

    peers = {
        "reference, eager": step(reference.logits_loss),
        "reference, torch.compile": step(torch.compile(unchecked_loss)),
        "fast": step(fast.logits_loss),
        "one copy of the logits": lambda: target.copy_(logits),
    }
    if importlib.util.find_spec("trl"):
        from trl.trainer.utils import selective_log_softmax

        def trl_loss(logits, tokens, *rest):
            return reference.policy_loss(selective_log_softmax(logits, tokens), *rest)

        peers["TRL selective_log_softmax"] = step(trl_loss)
    peers["fast, in place"] = step(fast.logits_loss, inplace_backward=True)  # the last, as it overwrites the logits
    return peers


def layer_peers():
    """Ways to get the loss and its gradients from hidden states: here Liger's loss, which never makes the logits, is a peer."""
    generator = torch.Generator().manual_seed(0)
    shape = (ROWS // 3, 3)
    hidden = torch.randn(*shape, WIDTH, generator=generator, requires_grad=True)
    weight = (torch.randn(VOCABULARY, WIDTH, generator=generator) * 3 / WIDTH**0.5).requires_grad_()
    tokens = torch.randint(VOCABULARY, shape, generator=generator)
    with torch.no_grad():
        old_logps = reference.token_logps(hidden @ weight.T, tokens)
    advantages = torch.randn(shape[0], generator=generator)
    mask = torch.ones(shape, dtype=torch.bool)

    def step(loss):
        return lambda: torch.autograd.grad(loss(), (hidden, weight))

    def composed(path, **options):
        return step(lambda: path.logits_loss(hidden @ weight.T, tokens, old_logps, advantages, mask, **options).loss)

    peers = {
        "reference, eager": composed(reference),
        "fast": composed(fast),
        "fast, in place": composed(fast, inplace_backward=True),
    }
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

        # One chunk of all responses is its fastest setting here; smaller ones read the layer's weights once each.
        liger = LigerFusedLinearGRPOLoss(
            beta=0.0, use_ref_model=False, chunk_size=shape[0], epsilon_high=0.28, delta=3.0, loss_type="dapo"
        )
        peers["Liger chunked GRPO loss"] = step(
            lambda: liger(hidden, weight, tokens, mask, advantages, old_per_token_logps=old_logps)[0]
        )
    return peers


def unchecked_loss(logits, tokens, old_logps, advantages, mask):
    """The reference without its checks of values, which would break the graph and cost it a pass."""
    logps = logits.float().log_softmax(dim=-1).gather(dim=-1, index=tokens[..., None]).squeeze(-1)
    ratio = (logps - old_logps).clamp(-20, 20).exp()
    advantages = advantages[:, None]
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(0.8, 1.28)
    policy = torch.maximum(unclipped, clipped)
    policy = torch.where(advantages < 0, torch.minimum(policy, -advantages * 3.0), policy)
    loss = torch.where(mask, policy, 0.0).sum() / mask.sum().clamp(min=1)
    return reference.PolicyLoss(loss, loss, loss, loss)


def selection_peers(groups, size):
    """Ways to get from SIDs to advantages, for groups of one-SID answers of which few hit."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(16, (groups, 1, 3), generator=generator)
    predictions = torch.randint(16, (groups, size, 1, 3), generator=generator)
    keys = torch.rand(groups, size, generator=generator)
    rows, wanted = predictions.squeeze(2).tolist(), targets.squeeze(1).tolist()
    return {
        "plain Python": lambda: plain_python(rows, wanted),
        "reference": lambda: reference.recast_from_sids(predictions, targets, tie_break=keys),
        "fast": lambda: fast.recast_from_sids(predictions, targets, tie_break=keys),
    }


def plain_python(responses, targets):
    """As trainers do it today: score one response at a time, collect scores by prompt in a dict, normalise each group."""
    by_prompt = defaultdict(list)
    for prompt, (group, target) in enumerate(zip(responses, targets)):
        for response in group:
            matched = 0
            while matched < 3 and response[matched] == target[matched]:
                matched += 1
            by_prompt[prompt].append((1.0 if matched == 3 else 0.0, 10.0 ** (matched - 3) if matched else 0.0))
    advantages = []
    for scored in by_prompt.values():
        rewards = [reward for reward, _ in scored]
        mean, std = statistics.fmean(rewards), statistics.stdev(rewards)
        advantages.append([(reward - mean) / (std + 1e-6) for reward in rewards])
    return advantages


def table(results):
    """The results as text: times as multiples of the fast path's, the fastest way of it."""
    lines = []
    for case, peers in results.items():
        ours = min(measured["seconds"] for peer, measured in peers.items() if peer.startswith("fast"))
        unit, scale = ("ms", 1e3) if ours > 1e-3 else ("us", 1e6)
        lines += [case, f"  {'':<32} {unit:>10} {'vs ours':>8} {'extra MB':>9}"]
        for peer, measured in peers.items():
            memory = "" if measured["extra_bytes"] is None else f"{measured['extra_bytes'] / 1e6:.1f}"
            seconds = measured["seconds"]
            lines.append(f"  {peer:<32} {seconds * scale:>10.1f} {seconds / ours:>7.1f}x {memory:>9}")
    return "\n".join(lines)
