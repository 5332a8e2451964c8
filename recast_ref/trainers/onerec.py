"""ReCast inside OpenOneRec's RL recipe: its trainer, with one method in front of its own.

OpenOneRec (github.com/Kuaishou-OneRec/OpenOneRec, ``verl_rl/recipe/onerec``) trains on a fork of verl 0.5.0. For each
prompt it samples a thought, and searches SIDs behind it with 32 beams; all of them are scored and trained on. With
:class:`ReCastTrainer` two of them are, chosen between the rollout and ``_balance_batch``: the old, reference and update
passes see nothing else. All else is theirs, and nothing of it is copied or patched.

Start it with their own ``main`` and ``run_grpo.sh``, in which one import differs. In ``verl_rl``, once::

    sed -e 's/^from recipe.onerec.onerec_ray_trainer import RayPPO/from recast_ref.trainers.onerec import ReCast/' \\
        -e 's/RayPPOTrainer(/ReCastTrainer(/' recipe/onerec/main_onerec_ppo.py > recipe/onerec/main_recast.py
    sed 's/main_onerec_ppo/main_recast/' recipe/onerec/run_grpo.sh > recipe/onerec/run_recast.sh

and then, with 8 GPUs and so a ``TRAIN_BATCH_SIZE`` of 8 (what else their script takes stays as it is)::

    bash recipe/onerec/run_recast.sh actor_rollout_ref.actor.ppo_mini_batch_size=16 +recast.negative_weight=0.2

Install into their environment without touching its torch: ``pip install --no-deps -e path/to/recast-ref``.

**The one setting that must change** is ``ppo_mini_batch_size = 2 * TRAIN_BATCH_SIZE / ROLLOUT_N``. Their worker makes
``ppo_mini_batch_size * rollout.n // GPUs`` rows an optimizer step of each GPU (``verl/workers/fsdp_workers.py``), and
``_balance_batch`` deals rows to GPUs by length, whatever pair they are of. Only where all rows of a batch make one step
do positive and negative meet in it. (``run_grpo.sh`` has one row a GPU a step: 32 steps a batch for their 32 beams,
and two for a pair, each of them with half of the pairs' rows.) Larger is refused too: the worker divides the loss by
it.

Options, as ``+recast.<name>=...``: ``arm``, ``branch_point``, ``weight``, ``negative_weight``, ``anchor``,
``sid_template``, ``seed`` (of :class:`~recast_ref.trainers.verl.Chooser`), and ``segment_key``, such as ``source``.

Things to know, beside those of :mod:`~recast_ref.trainers.verl`:

* **Weights.** The estimator stays ``grpo``, the only one for pairs that their trainer takes: a pair gets +-0.7071.
  Where ``weight`` or ``negative_weight`` is given, each row is a group of its own, whose reward is its advantage: that
  is what ``grpo`` does with a group of one. ``critic/score/*``, ``critic/rewards/*`` and ``training/grpo_*`` are then
  of weights and of groups of one.
* **Thoughts.** All beams of a prompt share the thought, so that its tokens get ``+w`` and ``-w`` in one step, and
  cancel: what is learned from is the SID. The same holds for all 32 beams in one step, and not for 32 steps of one row.
* **Thoughts that the first stage cut off** (``STAGE1_MAX_TOKENS``). Their reward is 0, whatever the beam names. In an
  anchor, ``</think>`` takes the place of the last token of such a thought; the SID then counts for their reward.
* **Their reward wants** ``<think>`` **in the response.** With ``USE_FORCE_PREFIX=True``, or a chat template that opens
  the thought, it stands in the prompt, and all rewards are 0: their own run learns nothing, and ReCast repairs every
  group, also those with a hit. Look at ``recast/all_zero``: if it is 1 for ever, that is why. The same happens where
  SIDs are special tokens of the tokenizer: the reward is given a text without them.
* **One SID a response.** Their reward looks at the first SID after the thought, the anchor takes the place of the last:
  keep ``STAGE2_NUM_TOKENS=3``, or give an ``anchor``.
* **Logs.** ``reward/<source>/<name>/mean`` and ``reward/all/<name>/mean`` are of all answers, before repair, as in
  their run; ``max``, ``min`` and ``count`` are gone. ``training/grpo_*zero_hit*``, ``critic/score/*``,
  ``response_length/*`` and ``perf/*`` are of the rows that are left. The reward's time is in ``timing_s/step`` only.
* **Learning rate.** One optimizer step a batch, where their script has 32: ``LEARNING_RATE`` and warm-up steps mean
  something else. Validation is theirs, and so is resuming; ties are decided by ``seed`` and the step.

Looked at and tested at commit 1f4a99e (``python tests/onerec_seam.py path/to/OpenOneRec``): their dataset, reward,
two-stage rollout, ``main``, ``fit()`` and estimator, with stubs for the language model, the workers and Ray. Not run:
their workers, vLLM, their data and models, any GPU, more than one node, Megatron (refused).
"""

from collections.abc import Iterator
from typing import Any

try:
    from recipe.onerec.onerec_ray_trainer import RayPPOTrainer
except ImportError as error:
    raise ImportError(
        "recast_ref.trainers.onerec: needs OpenOneRec's fork of verl in front of every other: run it in the folder "
        f"verl_rl of a checkout, in the environment that its deploy_env.sh makes ({error})"
    ) from error

import numpy as np
import torch
from verl.trainer.ppo.reward import compute_reward

from .sids import THOUGHT, Sid, Sids, in_thought
from .verl import Chooser, recast_advantages, recast_batch

SID = "<s_a_{}><s_b_{}><s_c_{}>"
STAGE_2 = "\n<|sid_begin|>"  # what their rollout puts between a thought and its beams
CHOICES = ("arm", "branch_point", "weight", "negative_weight", "anchor", "sid_template", "seed")


class ReCastTrainer(RayPPOTrainer):
    """OpenOneRec's trainer, in which two rows of each prompt are trained on. Its arguments are those of the parent.

    Raises:
        ValueError: a setting that cannot work; it says why, and what to set.
    """

    def __init__(self, config: Any, tokenizer: Any, *arguments: Any, **options: Any) -> None:
        self._recast: dict[str, Any] = dict(config.get("recast") or {})
        for why in against(config, self._recast):
            raise ValueError(why)
        self._recast.setdefault("sid_template", SID)
        if self._recast.get("anchor") is None:
            self._recast["anchor"] = Anchor(self._recast["sid_template"])
        Chooser(tokenizer, **{name: value for name, value in self._recast.items() if name in CHOICES})  # may refuse
        super().__init__(config, tokenizer, *arguments, **options)

    def _balance_batch(self, batch, metrics, logging_prefix="global_seqlen"):
        """``fit()`` calls it between the rollout and the reward; the batch is changed in place."""
        rewards, named = compute_reward(batch, self.reward_fn)
        metrics.update(sampled_means(named, batch.non_tensor_batch[self.config.data.reward_fn_key]))
        recast_batch(batch, self.tokenizer, rewards.sum(dim=-1), step=self.global_steps, **self._recast)
        metrics.update(batch.meta_info.pop("recast"))
        if not {"weight", "negative_weight"}.isdisjoint(self._recast):
            weigh(batch)
        super()._balance_batch(batch, metrics, logging_prefix)


def against(config: Any, options: dict[str, Any]) -> Iterator[str]:
    """Why a configuration cannot work with pairs: texts, none if it can.

    Args:
        config: of the run.
        options: dict, what the user gave as ``+recast.<name>=...``.
    """
    algorithm, actor, rollout = config.algorithm, config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    unknown = sorted(set(options) - {*CHOICES, "segment_key"})
    if unknown:
        yield f"recast: expected some of {', '.join((*CHOICES, 'segment_key'))}, got {', '.join(unknown)}"
    if algorithm.adv_estimator != "grpo":
        yield (
            f"algorithm.adv_estimator={algorithm.adv_estimator}: their trainer has no other estimator without a critic "
            "that gives a pair its signs; set algorithm.adv_estimator=grpo"
        )
    if algorithm.use_kl_in_reward:
        yield (
            "algorithm.use_kl_in_reward: it would be normalised together with the two rewards of a pair, and can turn "
            "their signs; set algorithm.use_kl_in_reward=False actor_rollout_ref.actor.use_kl_loss=True"
        )
    if config.reward_model.enable:
        yield (
            "reward_model.enable: a reward model scores after the pair was chosen, and would score its anchor; set "
            "reward_model.enable=False and give custom_reward_function"
        )
    if config.get("enable_sid_ppl_reward"):
        yield "enable_sid_ppl_reward: it is added after the pair was chosen; set enable_sid_ppl_reward=False"
    if rollout.calculate_log_probs:
        yield (
            "actor_rollout_ref.rollout.calculate_log_probs: an anchor was not sampled and has no log-probs of the "
            "rollout; set actor_rollout_ref.rollout.calculate_log_probs=False"
        )
    if not config.trainer.balance_batch:
        yield "trainer.balance_batch=False: pairs are chosen in front of _balance_batch; set trainer.balance_batch=True"
    if actor.strategy not in ("fsdp", "fsdp2"):
        yield (
            f"actor_rollout_ref.actor.strategy={actor.strategy}: how its workers cut a batch was not looked at; set "
            "actor_rollout_ref.actor.strategy=fsdp2"
        )
    if options.get("arm") == "repair":
        if not {"weight", "negative_weight"}.isdisjoint(options):
            yield "recast.weight, recast.negative_weight: they are those of a pair, and recast.arm=repair makes none"
        return
    if actor.loss_agg_mode == "seq-mean-token-mean":
        yield (
            "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean: a prompt without a pair leaves two rows "
            "without a token, whose mean is NaN, and their worker then skips the update; set token-mean"
        )
    yield from _against_sizes(config, actor, rollout)


def _against_sizes(config, actor, rollout):
    gpus = config.trainer.n_gpus_per_node * config.trainer.nnodes
    prompts = config.data.get("gen_batch_size", config.data.train_batch_size)
    replicas = gpus // actor.get("ulysses_sequence_parallel_size", 1)
    if 2 * prompts % gpus:
        yield (
            f"data.train_batch_size={prompts}: two rows a prompt cannot be dealt to {gpus} GPUs alike; make it a "
            f"multiple of {gpus // (2 if gpus % 2 == 0 else 1)}"
        )
        return
    rows, fits = 2 * prompts // replicas, -(-2 * prompts // rollout.n)
    mini = actor.ppo_mini_batch_size * rollout.n // replicas
    if mini != rows:
        remedy = f"set actor_rollout_ref.actor.ppo_mini_batch_size={fits}"
        if fits * rollout.n // replicas != rows:
            remedy = f"make 2 * data.train_batch_size a multiple of rollout.n={rollout.n}, and ppo_mini_batch_size that"
        yield (
            f"actor_rollout_ref.actor.ppo_mini_batch_size={actor.ppo_mini_batch_size}: an optimizer step takes "
            f"ppo_mini_batch_size * rollout.n // {replicas} = {mini} rows of each replica's {rows} (two a prompt), "
            + ("and parts positive and negative" if mini < rows else "and the loss is divided by the former")
            + f"; {remedy}"
        )
    elif not actor.use_dynamic_bsz and actor.ppo_mini_batch_size > config.data.train_batch_size:
        yield (
            "actor_rollout_ref.actor.use_dynamic_bsz=False: their trainer then asserts ppo_mini_batch_size <= "
            f"data.train_batch_size, and pairs need {actor.ppo_mini_batch_size}; set it to True, as run_grpo.sh does"
        )


class Anchor:
    """The response with ``sid`` in place of its last SID, all else and its length as they were.

    Where the first stage has cut the thought off, ``</think>`` takes the place of its last token.
    """

    def __init__(self, template: str) -> None:
        self.sids = Sids(template)

    def __call__(self, response: list[int], sid: Sid, tokenizer: Any) -> list[int]:
        if in_thought(tokenizer, [response])[0]:
            end, begin = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (THOUGHT[1], STAGE_2))
            starts = range(len(response) - len(begin), len(end) - 1, -1)
            at = next((start for start in starts if response[start : start + len(begin)] == begin), len(response))
            response = response[: at - len(end)] + end + response[at:]
        return self.sids.overwrite(tokenizer, response, sid, ends=[], limit=len(response))


def weigh(batch: Any) -> None:
    """Make each row a group of its own whose reward is the advantage that :func:`recast_batch` left, in place."""
    tensors, other = batch.batch, batch.non_tensor_batch
    advantages, _ = recast_advantages(tensors["rm_scores"], tensors["response_mask"], other["uid"])
    first = tensors["response_mask"].long().argmax(dim=1, keepdim=True)  # of the tokens that count
    tensors["rm_scores"] = torch.zeros_like(advantages).scatter(1, first, advantages.gather(1, first))
    other["uid"] = np.array([f"{uid}/{row}" for row, uid in enumerate(other["uid"])], dtype=object)


def sampled_means(named: dict[str, Any], sources: Any) -> dict[str, float]:
    """Means of what the reward function says of the sampled answers, named as their ``fit()`` names them: a dict.

    Args:
        named: dict from names to lists of ``B``.
        sources: ``(B,)``, a name for each row.
    """
    means = {}
    for name, values in named.items():
        values = np.asarray(values)
        if np.issubdtype(values.dtype, np.number):
            means[f"reward/all/{name}/mean"] = float(values.mean())
            for source in set(sources):
                means[f"reward/{source}/{name}/mean"] = float(values[sources == source].mean())
    return means
