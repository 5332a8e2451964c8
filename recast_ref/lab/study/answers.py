"""What an answer looks like: one SID, a free code and then a SID, or several SIDs that differ.

A free code, the *thought*, is one more level of the catalogue's trie, under which the whole catalogue hangs once per thought:
nothing else changes. Several SIDs need a policy that starts again at the first code, and that never leads into a SID that the
answer has named already.
"""

from dataclasses import dataclass

import torch

from .. import rollouts
from ..policy import Policy
from ..semantic_ids import Trie


@dataclass(frozen=True)
class Answers:
    """The format of a world's answers, ``T`` codes each."""

    thoughts: int = 0  # how many thoughts there are; 0: none
    named: int = 1  # M, SIDs an answer

    def policy(self, trie, prompt_items, width, seed):
        """An untrained policy that answers in this format, from the items of ``trie``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.named > 1:
                return SetPolicy(trie, prompt_items, self.named, width)
            if self.thoughts:
                free = torch.arange(self.thoughts)
                sids = trie.sids.repeat(self.thoughts, 1)
                trie = Trie(torch.cat([free.repeat_interleave(len(trie))[:, None], sids], dim=1).numpy(), trie.codes)
            return Policy(trie, prompt_items, width)

    def prompts(self, history):
        """Histories ``(N, P, L)`` as the policy reads them: it reads no thoughts, all are number 0."""
        if not self.thoughts:
            return history
        return torch.cat([history[..., :1].clamp(max=0), history], dim=-1)

    def sids(self, responses):
        """The SIDs that responses ``(Q, G, T)`` name: ``(Q, G, M, L)``."""
        if self.thoughts:
            responses = responses[..., 1:]
        return responses.unflatten(-1, (self.named, -1))

    def of_targets(self, targets, generator, thoughts=None):
        """Answers that name targets ``(Q, J, L)``: one for each, or one with several of them in random order.

        Args:
            thoughts: int64 ``(Q,)`` or ``None``, random ones.

        Returns:
            int64 ``(Q, J, T)``, or ``(Q, 1, T)`` with several SIDs an answer.
        """
        q, j, _ = targets.shape
        if self.named > 1:
            same = (targets[:, :, None] == targets[:, None]).all(dim=-1)
            copies = same.tril(diagonal=-1).any(dim=-1)
            keys = torch.rand(q, j, generator=generator).masked_fill(copies, -1)
            chosen = keys.topk(self.named, dim=1).indices
            return targets[torch.arange(q)[:, None], chosen].flatten(1)[:, None]
        if self.thoughts:
            if thoughts is None:
                thoughts = torch.randint(self.thoughts, (q, j), generator=generator)
            return torch.cat([thoughts.view(q, -1, 1).expand(q, j, 1), targets], dim=-1)
        return targets

    def sample(self, policy, history, group_size, generator):
        """``group_size`` responses per prompt: int64 ``(Q, G, T)``."""
        if self.named > 1:
            return policy.sample(history, group_size, generator)
        return rollouts.sample(policy, history, group_size, generator).responses


class SetPolicy(Policy):
    """A policy whose answers are several SIDs, no two of them the same: ``T = named * L`` codes."""

    def __init__(self, trie, prompt_items, named, width=64):
        super().__init__(trie, prompt_items, width)
        self.named = named
        self.positions = torch.nn.Embedding(self.prompt_length + named * self.levels - 1, width)
        torch.nn.init.normal_(self.positions.weight, std=0.02)
        self.below = [torch.bincount(node) for node in trie.nodes(trie.sids).T]  # SIDs under each node

    def extend(self, read, codes, past=None, depth=0):
        """As :meth:`Policy.extend`, which counts levels on: here they start again with each SID."""
        steps = torch.arange(depth, depth + codes.shape[2])
        return super().extend(read, codes - steps // self.levels * self.levels * self.codes, past, depth)

    def set_logits(self, hidden, level, nodes, named):
        """As :meth:`Policy.next_logits`, with ``-inf`` also where every SID below is in the answer.

        Args:
            named: int64 ``(..., m, L)``, the nodes of the SIDs named so far.
        """
        child = self.trie.children[level][nodes]
        taken = (child[..., None, :] == named[..., level, None]).sum(dim=-2)
        full = (child >= 0) & (taken >= self.below[level][child.clamp(min=0)])
        return self.next_logits(hidden, level, nodes).masked_fill(full, float("-inf"))

    def logits(self, history, responses, share_prompt=True):
        """Teacher-forced logits ``(Q, W, T, C)``; ``share_prompt`` has to be True."""
        q, w, length = responses.shape
        read = self.read(history)
        later, _ = self.extend(read, responses[:, :, :-1])
        hidden = torch.cat([read.last[:, None, None].expand(-1, w, 1, -1), later], dim=2)
        sids = responses.view(q, w, self.named, self.levels)
        reached, at = self.trie.nodes(sids), self.trie.path(sids)
        steps = []
        for t in range(length):
            m, level = divmod(t, self.levels)
            steps.append(self.set_logits(hidden[:, :, t], level, at[:, :, m, level], reached[:, :, :m]))
        return torch.stack(steps, dim=2)

    @torch.no_grad()
    def sample(self, history, group_size, generator=None):
        """``group_size`` samples per prompt, int64 ``(Q, G, T)``; without a generator the likeliest code each time."""
        read = self.read(history)
        q = len(history)
        hidden, past = read.last[:, None].expand(-1, group_size, -1), None
        named = torch.empty(q, group_size, 0, self.levels, dtype=torch.int64)
        responses, length = [], self.named * self.levels
        for t in range(length):
            level = t % self.levels
            if level == 0:
                nodes, path = torch.zeros(q, group_size, dtype=torch.int64), []
            logits = self.set_logits(hidden, level, nodes, named)
            if generator is None:
                code = logits.argmax(dim=-1)
            else:
                code = torch.multinomial(logits.softmax(dim=-1).flatten(0, 1), 1, generator=generator).view(q, -1)
            nodes = self.trie.children[level][nodes, code]
            path.append(nodes)
            responses.append(code)
            if level == self.levels - 1:
                named = torch.cat([named, torch.stack(path, dim=-1)[:, :, None]], dim=2)
            if t + 1 < length:
                hidden, past = self.extend(read, code[..., None], past, depth=t)
                hidden = hidden[:, :, 0]
        return torch.stack(responses, dim=-1)
