"""The rollout: a transformers model in a Ray actor for each rank, asked for one answer at a time.

An answer depends on the weights, the prompt and the session alone, whatever order the requests come in: session ``i``
of a prompt is drawn by a generator seeded with (``rollout.seed``, the step of the weights, the prompt's tokens, ``i``),
or is the ``i``-th beam of one search, so that a run that resumes samples what it would have without the break.

* ``+actor_rollout_ref.model.override_config.catalogue=PATH``: nothing but answers of the catalogue, each with EOS.
* ``+actor_rollout_ref.rollout.custom.beams=G``: the prompt's G beams instead of samples. Validation is not searched.
* ``rollout.temperature``, ``rollout.response_length`` and ``rollout.calculate_log_probs`` are verl's, and mean here
  what they mean with vLLM: EOS is the last token of an answer that ends, log-probs are those that a token is drawn by.
"""

import hashlib

import ray
import torch
from transformers import AutoModelForCausalLM, LogitsProcessorList
from verl.experimental.agent_loop.agent_loop import register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.rollout.base import _ROLLOUT_REGISTRY, BaseRollout
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput

from recast_ref.trainers.sids import OnlyTheTrie

from .catalogue import trie_of
from .notes import note


class Sampler:
    """Answers from a model, under a trie or over the whole vocabulary.

    Args:
        model: of transformers.
        end: the id that ends an answer (EOS).
        trie: :class:`recast_ref.trainers.sids.Trie` or ``None``.
        seed: int.
    """

    def __init__(self, model, end, trie=None, seed=0):
        self.model, self.end, self.trie, self.seed = model.eval(), end, trie, seed
        self.step, self._beams = 0, {}

    def load(self, state, step):
        """New weights, as a state dict, and the step that they are of."""
        self.model.load_state_dict(state)
        self.step, self._beams = step, {}

    @torch.no_grad()
    def sample(self, prompt, session, length, temperature=1.0):
        """At most ``length`` token ids, greedy at temperature 0, and their log-probs: two lists."""
        draw = torch.Generator().manual_seed(self._seed_of(prompt, session))
        ids, logps, node = list(prompt), [], torch.zeros(1, dtype=torch.int64)
        while len(logps) < length and ids[len(prompt) :][-1:] != [self.end]:
            logits = self.model(torch.tensor([ids])).logits[:, -1] / (temperature or 1.0)
            if self.trie:
                logits = logits.masked_fill(~self.trie.allowed(node, logits.shape[1]), -torch.inf)
            every = logits.log_softmax(dim=1)
            token = torch.multinomial(every.exp(), 1, generator=draw) if temperature else every.argmax(1, keepdim=True)
            ids.append(token.item())
            logps.append(every[0, token].item())
            if self.trie:
                node = self.trie.step(node, token[0])
        return ids[len(prompt) :], logps

    @torch.no_grad()
    def beam(self, prompt, session, length, width):
        """The ``session``-th best of ``width`` answers: a list of token ids. One search for all sessions."""
        key = (tuple(prompt), length, width)
        if key not in self._beams:
            ids = torch.tensor([list(prompt)])
            found = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                logits_processor=LogitsProcessorList([OnlyTheTrie(self.trie)] if self.trie else []),
                renormalize_logits=True,
                num_beams=width,
                num_return_sequences=width,
                do_sample=False,
                max_new_tokens=length,
                eos_token_id=self.end,
                pad_token_id=self.end,
            )
            self._beams[key] = [_to_end(row, self.end) for row in found[:, ids.shape[1] :].tolist()]
        return self._beams[key][session]

    def _seed_of(self, prompt, session):
        what = repr((self.seed, self.step, list(prompt), session)).encode()
        return int.from_bytes(hashlib.blake2b(what, digest_size=8).digest()) >> 1


def _to_end(row, end):
    return row[: row.index(end) + 1] if end in row else row


class Server:
    """The Ray actor: verl's methods around a :class:`Sampler`. Requests come one at a time, each answered at once."""

    def __init__(self, config, model_config):
        torch.set_num_threads(1)
        path = model_config.override_config.get("catalogue")
        tokenizer = model_config.tokenizer
        self.sampler = Sampler(
            AutoModelForCausalLM.from_pretrained(model_config.local_path, dtype=torch.float32),
            tokenizer.eos_token_id,
            trie_of(path, tokenizer) if path else None,
            config.seed,
        )
        self.length = config.response_length

    async def generate(self, request_id, *, prompt_ids, sampling_params, **kwargs):
        wanted = {"top_p": 1, "top_k": -1, "repetition_penalty": 1}
        for name, value in wanted.items():
            if sampling_params.get(name, value) != value:
                raise ValueError(f"rollout.{name}: this rollout has only {value}, got {sampling_params[name]}")
        prompt, session, beams = list(prompt_ids), sampling_params["session"], sampling_params.get("beams")
        length = min(self.length, sampling_params.get("max_tokens", self.length))
        if beams:
            answer, logps = self.sampler.beam(prompt, session, length, beams), None
        else:
            answer, logps = self.sampler.sample(prompt, session, length, sampling_params["temperature"])
        step = self.sampler.step
        note(kind="rollout", step=step, prompt=prompt, answer=answer, **sampling_params)
        return TokenOutput(
            token_ids=answer,
            log_probs=logps if sampling_params.get("logprobs") else None,
            stop_reason="completed",
            extra_fields={"global_steps": step},
        )

    async def load(self, state, step):
        self.sampler.load(state, self.sampler.step if step is None else step)

    async def nothing(self, *args, **kwargs):
        """There is no memory to give back, no cache, and no request that waits."""

    wake_up = sleep = clear_kv_cache = release_kv_cache = resume_kv_cache = nothing
    abort_all_requests = resume_generation = start_profile = stop_profile = nothing


def _name(rank):
    return f"verl_on_cpu_rollout_{rank}"


class Replica(RolloutReplica):
    """verl's handle of one server."""

    async def launch_servers(self):
        name = _name(self.replica_rank)
        model_config = omega_conf_to_dataclass(self.model_config)
        self._server_handle = ray.remote(Server).options(name=name, num_cpus=0).remote(self.config, model_config)
        self.servers, self._server_address = [self._server_handle], name


class Adapter(BaseRollout):
    """In each rank's worker: hands new weights to the rank's server."""

    async def update_weights(self, weights, global_steps=None, **kwargs):
        state = {name: weight.detach().clone() for name, weight in weights}
        await ray.get_actor(_name(torch.distributed.get_rank())).load.remote(state, global_steps)

    async def resume(self, tags):
        pass

    async def release(self):
        pass


@register("session_agent")
class SessionAgent(SingleTurnAgentLoop):
    """verl's agent loop for one answer, which also tells the server whose turn it is."""

    async def run(self, sampling_params, **kwargs):
        sampling_params = {**sampling_params, "session": int(kwargs["session_id"])}
        beams = (self.rollout_config.get("custom") or {}).get("beams")
        if beams and sampling_params["temperature"]:
            sampling_params["beams"] = int(beams)
        return await super().run(sampling_params, **kwargs)


class QuickReplayBuffer(ReplayBuffer):
    """verl's own, which looks for finished groups every 2 s where one cannot say otherwise. Here a step takes 1 s."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, poll_interval=0.05, **kwargs)


RolloutReplicaRegistry.register("trie", lambda: Replica)
_ROLLOUT_REGISTRY["trie", "async"] = f"{__name__}.Adapter"  # the registry of this half has no function for it
