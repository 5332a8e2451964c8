"""ReCast in verl 0.9.1's trainer (V1), by configuration alone: search ``search_width`` wide, update on two.

Added to the overrides of a GRPO run of yours::

    trainer.v1.sampler.custom_sampler.path=pkg://recast_ref.trainers.verl_v1
    trainer.v1.sampler.custom_sampler.name=ReCastReplayBuffer
    '+trainer.v1.sampler.sampler_kwargs={search_width: 32, negative_weight: 0.2}'
    +actor_rollout_ref.rollout.agent.agent_loop_manager_class=recast_ref.trainers.verl_v1.WideAgentLoopManager
    actor_rollout_ref.rollout.n=2
    actor_rollout_ref.rollout.calculate_log_probs=False
    algorithm.adv_estimator=recast

The data are verl's: ``reward_model.ground_truth`` holds the target SIDs as text, such as ``<s_a_12><s_b_7><s_c_201>``.

Where it sits (names are verl 0.9.1's, ``verl/trainer/ppo/v1/trainer_base.py``): ``_step_once`` takes a batch from the
replay buffer, balances it over the ranks, and computes old and reference log-probs, advantages and the update for it.
The sampler gets whole groups from TransferQueue, puts anchors into the rows that repair gives up, and hands on the rows
of the pairs; the others are cleared. ``rollout.n`` is the width of the update, from which verl counts its mini-batches;
the agent loop searches wider.

Options, in ``sampler_kwargs``: ``search_width`` (G); ``arm`` (``recast``; ``contrast``, no repair; ``repair``, no
contrast; ``grpo``, the groups as they are, with ReCast's metrics of them); ``branch_point``, ``weight``,
``negative_weight``, ``anchor``, ``sid_template``, ``seed`` (:class:`~recast_ref.trainers.verl.Chooser`);
``segment_key``, a column of the data with a name for each prompt; ``poll_interval``, seconds between two looks into
TransferQueue. For ``trainer.v1.trainer_mode`` other than ``sync`` the sampler is ``ReCastReplayBufferAsync``. For
``arm=repair`` and ``arm=grpo`` set ``rollout.n`` to ``search_width``.

See :mod:`~recast_ref.trainers.verl` for what the logs mean. Beyond that:

* **Keep a pair in one optimizer step**: ``ppo_mini_batch_size`` equal to ``data.train_batch_size`` (over
  ``parameter_sync_step`` in ``separate_async``, which wants it so). With smaller ones verl's balancing may part them.
* **A prompt without a pair is dropped**, and verl fills the batch up with rows of 128 tokens that count for nothing.
* **At the branch point** the tokens before it keep their KL, and have an advantage of 0.
* **Where several updates make a step** (``separate_async``), verl logs means over them, ``recast/rows_out`` too.
* **A constrained rollout needs log-probs under the same constraint**, else the policy collapses (``trainers/trl.py``
  has the figures). verl's engines compute them over the whole vocabulary, so constraints on the sampler alone are
  refused. ``tests/verl_on_cpu/`` shows both under one option: an engine and a rollout of one's own, registered with
  verl, that read the same catalogue.

Run here: verl 0.9.1's ``main_ppo`` on the CPU with FSDP2 (``tests/verl_on_cpu/``), ``sync`` in the tests and
``colocate_async`` by hand. Not run: ``separate_async`` (it sends weights by NCCL or the like), vLLM, SGLang,
more than one node, any GPU.
"""

import copy
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

try:
    import transfer_queue as tq
    import verl
    from omegaconf import OmegaConf
    from packaging.version import Version
    from verl.trainer.ppo.v1 import AgentLoopManagerTQ
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync
    from verl.utils.fs import copy_to_local
    from verl.utils.tensordict_utils import assign_non_tensor_stack, list_of_dict_to_tensordict
    from verl.utils.tokenizer import hf_tokenizer
except ImportError as error:
    raise ImportError(
        'recast_ref.trainers.verl_v1: needs verl 0.9.1: pip install torch==2.13.0 -e ".[verl]" in the checkout '
        f"({error})"
    ) from error

from .verl import OF_SAMPLES, Chooser, Rows, check_one_turn, group_metrics, leave, positions_after, truth_of

TESTED = ("0.9.1", "0.10")  # from, and below
release = Version(Version(verl.__version__).base_version)  # of a 0.10.0.dev it is 0.10.0
if not Version(TESTED[0]) <= release < Version(TESTED[1]):
    raise ImportError(
        f"recast_ref.trainers.verl_v1: tested with verl>={TESTED[0]},<{TESTED[1]}, this is {verl.__version__}, whose "
        "trainer may differ; recast_ref.trainers.verl.recast_batch needs a DataProto only"
    )

ARMS = ("recast", "contrast", "repair", "grpo")
OPTIONS = {
    *("search_width", "arm", "branch_point", "weight", "negative_weight", "anchor", "sid_template", "seed"),
    *("segment_key", "poll_interval"),
}
CONSTRAINTS = {"logits_processors", "structured_outputs", "guided_decoding", "enable_custom_logit_processor"}
APART = (
    "the rollout would keep to the catalogue, and log-probs would not: verl's engines compute them over the whole "
    "vocabulary, and a negative then drives mass to where the sampler never goes until the policy collapses "
    "(recast_ref/trainers/trl.py has the figures, and a catalogue for both)"
)
MANAGER = "recast_ref.trainers.verl_v1.WideAgentLoopManager"
WHERE = "trainer.v1.sampler.sampler_kwargs"


class WideAgentLoopManager(AgentLoopManagerTQ):
    """Samples ``search_width`` answers to a prompt of training, whatever ``rollout.n`` says.

    A prompt whose data say otherwise (verl's ``__rollout_n__``) keeps its own width. Validation is as ever.
    """

    def __init__(self, config, *args, **kwargs):
        sampler = config.trainer.v1.sampler
        found = sampler.custom_sampler.path and sampler.custom_sampler.name
        if not found or "search_width" not in (sampler.sampler_kwargs or {}):
            raise ValueError(
                f"{MANAGER} samples {WHERE}.search_width answers, and a sampler must cut them: set "
                "trainer.v1.sampler.custom_sampler.path=pkg://recast_ref.trainers.verl_v1, .name=ReCastReplayBuffer, "
                "and search_width"
            )
        self.search_width = int(sampler.sampler_kwargs.search_width)
        super().__init__(config, *args, **kwargs)

    def generate_sequences(self, prompts: Any) -> Any:
        if "validate" not in prompts.keys() and "__rollout_n__" not in prompts.keys():
            assign_non_tensor_stack(prompts, "__rollout_n__", [self.search_width] * len(prompts))
        return super().generate_sequences(prompts)


class _Pairs:
    """What both samplers share: whole groups in, pairs out."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        sync = isinstance(self, ReCastReplayBuffer)
        if (self.trainer_mode == "sync") != sync:
            other = "ReCastReplayBufferAsync" if sync else "ReCastReplayBuffer"
            raise ValueError(
                f"trainer.v1.trainer_mode={self.trainer_mode}: set trainer.v1.sampler.custom_sampler.name={other}, not "
                f"{type(self).__name__}"
            )
        options = OmegaConf.to_container(self.sampler_kwargs, resolve=True)
        config = OmegaConf.select(self.sampler_kwargs, ".....")  # sampler_kwargs, sampler, v1, trainer, the whole
        reasons = list(against(config, options))
        if reasons:
            raise ValueError("\n".join(reasons))
        # verl does not hand this to a sampler of one's own, and has its dataloader set up for it already.
        self.sync_refill_failed_groups = bool(config.trainer.v1.sampler.get("sync_refill_failed_groups"))
        mini_batch = config.actor_rollout_ref.actor.ppo_mini_batch_size
        prompts = config.data.train_batch_size // self.trainer_config.get("parameter_sync_step", 1)  # in an update
        if options.get("arm", "recast") in ("recast", "contrast") and mini_batch < prompts:
            warnings.warn(
                f"actor_rollout_ref.actor.ppo_mini_batch_size={mini_batch} for {prompts} prompts an update: the two of "
                f"a pair may be updated on in different optimizer steps; set {prompts}",
                stacklevel=2,
            )
        self.search_width = options.pop("search_width")
        self.poll_interval = float(options.pop("poll_interval", self.poll_interval))
        self.segment_key = options.pop("segment_key", None)
        self.arm = options.pop("arm", "recast")
        self.update_width = config.actor_rollout_ref.rollout.n
        self.limit = config.actor_rollout_ref.rollout.response_length
        model = config.actor_rollout_ref.model
        path = copy_to_local(model.get("tokenizer_path") or model.path)
        tokenizer = hf_tokenizer(path, trust_remote_code=model.get("trust_remote_code", False))
        self.chooser = None if self.arm == "grpo" else Chooser(tokenizer, arm=self.arm, **options)

    def sample(self, global_steps, partition_id, batch_size):
        """A batch of pairs, and verl's metrics with ReCast's. Of validation, what verl's own sampler gives."""
        batch, metrics = super().sample(global_steps=global_steps, partition_id=partition_id, batch_size=batch_size)
        if partition_id == "val":
            return batch, metrics
        rows = self._read(batch)
        if self.chooser is None:
            return batch, {**metrics, **group_metrics(rows)}
        chosen = self.chooser(rows, self.limit, global_steps)
        rewards = rows.rewards.clone()
        rewards[list(chosen.anchors)] = 1.0
        leave(rows.uids, rewards, chosen)
        self._write_anchors(batch, chosen.anchors)
        keep = chosen.rows or self._one_token(batch)
        dropped = sorted(set(range(len(batch))) - set(keep))
        if dropped:
            tq.kv_clear(keys=[batch.keys[row] for row in dropped], partition_id=partition_id)
        metrics = {**metrics, **chosen.metrics, "recast/rows_out": float(len(keep))}
        return batch.select_keys([batch.keys[row] for row in keep]), metrics

    def _read(self, batch):
        """The rows of a batch of whole groups, as :class:`~recast_ref.trainers.verl.Rows`.

        The batch is put in an order that does not hang on when each answer came: sums over it then round the same in a
        run that is resumed.
        """
        if any(not key.endswith("_0") for key in batch.keys):  # {uid}_{session}_{output}
            raise ValueError("an agent loop with several outputs a session has no one answer; use verl's own sampler")
        width = max(Counter(map(_uid, batch.keys)).values())
        if width == self.update_width < self.search_width:
            raise ValueError(
                f"{WHERE}.search_width={self.search_width}, and the groups have {width} answers: set "
                f"+actor_rollout_ref.rollout.agent.agent_loop_manager_class={MANAGER}"
            )
        wanted = ["prompts", "responses", "rm_scores", "reward_model", *filter(None, [self.segment_key])]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=wanted)
        for name, why in (
            ("rm_scores", "the sampler needs rewards: a function of them, or a reward model with a pool of its own"),
            ("reward_model", "the data need reward_model.ground_truth with the target SIDs"),
            (self.segment_key, f"{WHERE}.segment_key: no such column in the data"),
        ):
            if name is not None and name not in data.keys():
                raise ValueError(f"{name} is not in TransferQueue: {why}")
        prompts, responses = ([ids.tolist() for ids in data[name].unbind()] for name in ("prompts", "responses"))
        rewards = [scores.sum().item() for scores in data["rm_scores"].unbind()]
        truths = [truth_of(item) for item in list(data["reward_model"])]
        segments = list(data[self.segment_key]) if self.segment_key else [None] * len(truths)

        uids = [_uid(key) for key in batch.keys]
        prompt_of = dict(zip(uids, prompts))
        place = {uid: i for i, uid in enumerate(sorted(prompt_of, key=prompt_of.get))}
        order = sorted(range(len(uids)), key=lambda row: (place[uids[row]], responses[row], rewards[row]))
        batch.reorder(order)
        return Rows(
            uids=[uids[row] for row in order],
            prompts=prompt_of,
            responses=[responses[row] for row in order],
            rewards=torch.tensor([rewards[row] for row in order]),
            truths=[truths[row] for row in order],
            segments=[segments[row] for row in order],
        )

    def _write_anchors(self, batch, anchors):
        """Put anchors in the place of the answers of their rows, in TransferQueue and in the tags of the batch."""
        if not anchors:
            return
        keys, fields, tags = [batch.keys[row] for row in anchors], [], []
        old = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id)
        stale = OF_SAMPLES & set(old.keys())
        if stale:
            raise ValueError(f"{sorted(stale)} are of the answers as sampled, and an anchor was not: switch them off")
        prompts, positions, masks = (old[name].unbind() for name in ("prompts", "position_ids", "response_mask"))
        for i, (row, ids) in enumerate(anchors.items()):
            check_one_turn(masks[i])
            n, prompt, counted = len(ids), prompts[i], torch.ones(len(ids), dtype=torch.int64)
            before = positions[i][..., : len(prompt)]
            fields.append(
                {
                    "responses": torch.tensor(ids, dtype=torch.int64),
                    "response_mask": counted,
                    "loss_mask": counted,
                    "rm_scores": torch.nn.functional.pad(torch.ones(1), (n - 1, 0)),
                    "input_ids": torch.cat([prompt, torch.tensor(ids, dtype=torch.int64)]),
                    "position_ids": torch.cat([before, positions_after(before, n)], dim=-1),
                }
            )
            batch.tags[row] = {**copy.deepcopy(batch.tags[row]), "response_len": n, "seq_len": len(prompt) + n}
            tags.append(batch.tags[row])
        tq.kv_batch_put(
            keys=keys, partition_id=batch.partition_id, fields=list_of_dict_to_tensordict(fields), tags=tags
        )

    def _one_token(self, batch):
        """What is kept where no group has a pair: one token, with an advantage of 0.

        verl needs a batch, and its loss over no token is NaN.
        """
        rows = list(range(min(self.update_width, len(batch))))
        keys = [batch.keys[row] for row in rows]
        old = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["response_mask"])
        masks = [torch.zeros_like(mask) for mask in old["response_mask"].unbind()]
        masks[0][0] = 1
        fields = [{"response_mask": mask, "loss_mask": mask} for mask in masks]
        tq.kv_batch_put(keys=keys, partition_id=batch.partition_id, fields=list_of_dict_to_tensordict(fields))
        return rows


class ReCastReplayBuffer(_Pairs, ReplayBuffer):
    """The sampler of ``trainer.v1.trainer_mode=sync``."""


class ReCastReplayBufferAsync(_Pairs, ReplayBufferAsync):
    """The sampler of the asynchronous trainers."""


def _uid(key):
    return key.rsplit("_", 2)[0]


def against(config: Any, options: dict[str, Any]) -> Iterator[str]:
    """Why this configuration cannot work, as texts.

    Args:
        config: verl's whole ``DictConfig``.
        options: dict, ``sampler_kwargs``.
    """
    rollout, algorithm = config.actor_rollout_ref.rollout, config.algorithm
    width, arm, n = options.get("search_width"), options.get("arm", "recast"), rollout.n
    if "catalogue" in options:
        yield f"{WHERE}.catalogue: {APART}"
    elif set(options) - OPTIONS:
        yield f"{WHERE}: unknown {sorted(set(options) - OPTIONS)}, expected of {sorted(OPTIONS)}"
    if arm not in ARMS:
        yield f"{WHERE}.arm: expected one of {', '.join(ARMS)}, got {arm!r}"
    if not isinstance(width, int) or width < 2:
        yield f"{WHERE}.search_width: expected how many answers a prompt gets, an integer of at least 2, got {width!r}"
        return
    if arm in ("recast", "contrast") and n != 2:
        yield (
            f"actor_rollout_ref.rollout.n={n}: set 2, the width of the update; {WHERE}.search_width={width} is that of "
            "the search. verl counts mini-batches as ppo_mini_batch_size * rollout.n rows, and would fill up with rows "
            "of 128 tokens"
        )
    if arm in ("repair", "grpo") and n != width:
        yield f"actor_rollout_ref.rollout.n={n}: set {WHERE}.search_width={width}, as arm={arm} keeps whole groups"
    if n != width and not rollout.agent.get("agent_loop_manager_class"):
        yield (
            f"actor_rollout_ref.rollout.agent.agent_loop_manager_class: nothing would search {width} wide; set "
            f"+actor_rollout_ref.rollout.agent.agent_loop_manager_class={MANAGER}"
        )
    for engine, its in (rollout.get("engine_kwargs") or {}).items():
        if CONSTRAINTS & set(its or {}):
            yield f"actor_rollout_ref.rollout.engine_kwargs.{engine}: {sorted(CONSTRAINTS & set(its))}: {APART}"
    if (algorithm.get("filter_groups") or {}).get("enable"):
        why = "it drops all-zero groups, which repair is for; switch it off"
        if arm == "grpo":
            why = "verl filters in its own sampler only; switch it off, or use that one, without ReCast's metrics"
        yield f"algorithm.filter_groups.enable: {why}"
    if arm == "grpo":
        if algorithm.adv_estimator == "recast":
            yield "algorithm.adv_estimator=recast: arm=grpo chooses no pairs, and leaves it no weights; set grpo"
        return
    if algorithm.adv_estimator != "recast":
        yield f"algorithm.adv_estimator={algorithm.adv_estimator}: set recast, which knows the weights"
    if algorithm.get("use_kl_in_reward"):
        yield (
            "algorithm.use_kl_in_reward: a pair's weights are not rewards; set "
            "actor_rollout_ref.actor.use_kl_loss=True instead"
        )
    if rollout.get("calculate_log_probs"):
        yield (
            "actor_rollout_ref.rollout.calculate_log_probs: an anchor was not sampled and has no log-probs of the "
            "rollout; switch it off, old log-probs come from one pass of the actor"
        )
    correction = algorithm.get("rollout_correction") or {}
    for name in ("rollout_is", "rollout_rs", "bypass_mode"):
        if correction.get(name):
            yield (
                f"algorithm.rollout_correction.{name}: it needs log-probs of the rollout, and an anchor was not "
                "sampled; switch it off"
            )
    reward_model = config.reward.reward_model
    if reward_model.get("enable") and not reward_model.get("enable_resource_pool"):
        yield (
            "reward.reward_model.enable: a colocated reward model scores after the sampler, and repair needs rm_scores "
            "before; set reward.reward_model.enable_resource_pool=True"
        )
