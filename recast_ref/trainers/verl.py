"""ReCast for verl: the advantage estimator ``recast``, and :func:`recast_batch` for all that holds a ``DataProto``.

verl 0.9.1's trainer (V1) takes ReCast by configuration alone, see :mod:`~recast_ref.trainers.verl_v1`; OpenOneRec's
fork of verl 0.5.0 takes :func:`recast_batch`, see :mod:`~recast_ref.trainers.onerec`. Both choose the pair with
:func:`~recast_ref.trainers.pairs.choose_pairs` after the rollout and its rewards, and before old and reference
log-probs.

In a trainer of your own with a ``DataProto``, such as a subclass of verl's legacy ``RayPPOTrainer``, call it where a
batch has its rewards and before anything is computed for its rows::

    class ReCastTrainer(RayPPOTrainer):
        def _balance_batch(self, batch, metrics, **kwargs):
            recast_batch(batch, self.tokenizer, step=self.global_steps)
            metrics.update(batch.meta_info.pop("recast"))
            super()._balance_batch(batch, metrics, **kwargs)

``rollout.n`` is then the width of the search, and verl makes mini-batches of ``ppo_mini_batch_size * rollout.n`` rows:
with ``ppo_mini_batch_size = 2 * prompts / rollout.n`` both of a pair are in one optimizer step. (Run like this, on the
CPU: 8 x 8 rows became 16 in all three passes.)

Things to know, in both:

* **Estimators.** ``algorithm.adv_estimator=recast`` gives the weights, per token at the branch point. With ``grpo`` a
  pair gets +-0.707 whatever the weights (two rewards, normalised by their standard deviation).
* **Logs.** After trimming, half of the rows hit: verl's own ``critic/score/mean`` is 0.5 for ever, and
  ``rollout_data_dir`` dumps pairs only. ``recast/reward_sampled`` is the mean reward of all answers, before repair.
  Beside it ``recast/all_zero``, ``single_hit``, ``multi_hit``, ``repaired``, ``skipped``, ``contradicted`` (shares of
  the groups), ``recast/rows_in`` and ``rows_out``, and ``recast/repaired/<segment>`` (share of that segment's groups).
* **A logged ``pg_loss`` of about 0 is right.** ``+w`` and ``-w`` cancel at the first update; the gradient does not.
* **Rewards.** A hit is a reward above 0. A group without a miss is skipped, so a reward that is above 0 for every
  answer, such as a bonus for the format, leaves nothing to learn from. A gate on format that gives the exact target 0
  makes a ``contradicted`` group.
* **Anchors were not sampled.** They have no log-probs of the rollout engine; what needs those is refused.
* **Thoughts.** What stands in ``<think>`` names nothing, be it opened by the answer or by the prompt. An anchor keeps
  the thought of the answer that it replaces, and what stands around its last SID
  (:meth:`~recast_ref.trainers.sids.Sids.overwrite`).
"""

import hashlib
import pkgutil
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

try:
    from tensordict import TensorDict
    from verl.trainer.ppo.core_algos import register_adv_est
except ImportError as error:
    raise ImportError(
        f'recast_ref.trainers.verl: needs verl: pip install torch==2.13.0 -e ".[verl]" in the checkout ({error})'
    ) from error

from .._checks import pair_weights
from ..reference import branch_mask
from .pairs import ARMS, choose_pairs
from .sids import Sids, in_thought

GRPO_EPS = 1e-6  # what verl adds to a standard deviation

# What a trainer computes for the answer that was sampled: for an anchor it would be another answer's.
OF_SAMPLES = {
    *("rollout_log_probs", "old_log_probs", "ref_log_prob", "values", "advantages", "returns", "entropys"),
    *("token_level_scores", "token_level_rewards", "routed_experts", "teacher_logprobs", "teacher_ids"),
}

_left: dict[
    Any, list[tuple[float, float, int]]
] = {}  # prompt -> [(reward, advantage, first token that it counts for)], of the latest batch of this process


@register_adv_est("recast")
def recast_advantages(
    token_level_rewards: Tensor, response_mask: Tensor, index: Sequence[Any], config: Any = None, **_: Any
) -> tuple[Tensor, Tensor]:
    """The advantages that the sampler, or :func:`recast_batch`, left in this process for the rows of each prompt.

    Registered with verl as the advantage estimator ``recast``. A row is known by its prompt and its reward: rows of a
    group with equal rewards weigh the same.

    Args:
        token_level_rewards: floating ``(B, T)``.
        response_mask: ``(B, T)``.
        index: ``(B,)``, the uid of each row's prompt.

    Returns:
        advantages and returns, the same tensor, ``(B, T)``: 0 where the mask is.

    Raises:
        ValueError: a row that counts, of a prompt of which nothing was left.

    Source: verl, ``verl/trainer/ppo/core_algos.py``, ``register_adv_est``.
    """
    advantages = torch.zeros_like(token_level_rewards)
    for row, (uid, reward) in enumerate(zip(index, token_level_rewards.sum(dim=-1).tolist())):
        if not response_mask[row].any():  # padding, and prompts without a pair
            continue
        if uid not in _left:
            raise ValueError(
                f"algorithm.adv_estimator=recast: nothing was left for prompt {uid!r}; the rows must come from "
                "ReCastReplayBuffer or recast_batch, in the process that computes advantages"
            )
        nearest = min(_left[uid], key=lambda left: abs(left[0] - reward))
        advantages[row, nearest[2] :] = nearest[1]
    advantages = advantages * response_mask
    return advantages, advantages


class Rows(NamedTuple):
    """The rows of a batch, as lists of ``B``, whatever holds them."""

    uids: list  # of the prompt of each
    prompts: dict  # uid -> list of token ids, without padding
    responses: list  # lists of token ids, without padding
    rewards: Tensor  # float32 (B,)
    truths: list  # text with the target SIDs
    segments: list  # a name, or None


class Chosen(NamedTuple):
    """What an update keeps."""

    rows: list  # as in Pairs
    anchors: dict  # row -> token ids of the anchor
    advantages: Tensor  # (len(rows),)
    starts: list  # for each of rows the first token that its advantage counts for
    skipped: list  # uids
    metrics: dict  # for the logger


@dataclass
class Chooser:
    """From rows to pairs. It keeps nothing between batches but how SIDs are written.

    Args:
        tokenizer: of transformers.
        arm: ``recast``, ``contrast`` (no repair), ``repair`` (no contrast: whole groups).
        branch_point: a negative counts only from the first token where it leaves its positive.
        weight, negative_weight: of a pair, as in :func:`~recast_ref.reference.contrast`.
        anchor: ``function(response, sid, tokenizer)``, or its name ``"package.module:function"``, for the token ids of
            the answer that takes the place of ``response`` (token ids) and names ``sid`` (tuple of codes). Default: the
            response with its last SID overwritten.
        sid_template: how SIDs are written, such as ``"<a_{}><b_{}><c_{}>"``. Default: as in the first ground truth.
        seed: of the keys that decide ties. They depend on it, the step, the prompt and the answer, so that a run
            that is resumed chooses as one that was not.
    """

    tokenizer: Any
    arm: str = "recast"
    branch_point: bool = False
    weight: float = 1.0
    negative_weight: float | None = None
    anchor: object = None
    sid_template: str | None = None
    seed: int = 0

    def __post_init__(self):
        if self.arm not in ARMS:
            raise ValueError(f"arm: expected one of {', '.join(ARMS)}, got {self.arm!r}")
        if self.branch_point and self.arm == "repair":
            raise ValueError("branch_point: needs pairs (arm='repair')")
        pair_weights(self.weight, self.negative_weight, torch.float32)  # may refuse them
        self._sids = Sids(self.sid_template) if self.sid_template else None
        if isinstance(self.anchor, str):
            self.anchor = pkgutil.resolve_name(self.anchor)

    def __call__(self, rows: Rows, limit: int, step: int) -> Chosen:
        """Choose among the rows of whole groups.

        Args:
            rows: :class:`Rows`.
            limit: how many tokens an answer can have.
            step: of training, int.

        Returns:
            :class:`Chosen`.

        Raises:
            ValueError: no SID in any ground truth, and no ``sid_template``; an anchor that does not name its target, or
                is longer than ``limit``; what :func:`~recast_ref.trainers.pairs.choose_pairs` raises.
        """
        if self._sids is None:
            self._sids = Sids.like("\n".join(rows.truths))
        opened = dict(zip(rows.prompts, in_thought(self.tokenizer, list(rows.prompts.values()))))
        thinking = [opened[uid] for uid in rows.uids]
        targets = [self._sids.read(text) for text in rows.truths]
        if any(rows.truths) and not any(targets):
            warnings.warn(
                f"sid_template={self._sids.template!r}: no ground truth of this batch holds such a SID, and nothing is "
                f"repaired; the first is {rows.truths[0]!r}",
                stacklevel=2,
            )
        pairs = choose_pairs(
            groups=rows.uids,
            rewards=rows.rewards,
            named=self._sids.read_ids(self.tokenizer, rows.responses, thinking),
            targets=targets,
            arm=self.arm,
            weight=self.weight,
            negative_weight=self.negative_weight,
            tie_break=self._keys(rows, step),
            eps=GRPO_EPS,
        )
        ends = [self.tokenizer.eos_token_id]
        if not any(ids[-1:] == ends for ids in rows.responses):
            ends = []
        anchors = {
            row: self._anchor(rows.responses[row], sid, ends, limit, thinking[row])
            for row, sid in pairs.anchors.items()
        }
        starts = [0] * len(pairs.rows)
        if self.branch_point:
            answers = [anchors.get(row, rows.responses[row]) for row in pairs.rows]
            starts[1::2] = [_leaves(positive, own) for positive, own in zip(answers[::2], answers[1::2])]
        metrics = group_metrics(rows) | _pair_metrics(rows, pairs)
        return Chosen(pairs.rows, anchors, pairs.advantages, starts, pairs.skipped, metrics)

    def _keys(self, rows, step):
        """Random keys that are the same in whatever order the rows come."""
        of_prompt = {
            uid: hashlib.sha256(repr((self.seed, step, prompt)).encode()) for uid, prompt in rows.prompts.items()
        }
        keys, copies = [], Counter()
        for uid, response, reward in zip(rows.uids, rows.responses, rows.rewards.tolist()):
            what = (uid, *response, reward)
            copies[what] += 1  # each copy of an answer has a key of its own
            digest = of_prompt[uid].copy()
            digest.update(repr((response, reward, copies[what])).encode())
            keys.append(int.from_bytes(digest.digest()[:6], "little") / 2**48)
        return torch.tensor(keys, dtype=torch.float64)

    def _anchor(self, response, sid, ends, limit, thinking):
        if self.anchor is None:
            ids = self._sids.overwrite(self.tokenizer, response, sid, ends, limit, thinking)
        else:
            ids = [int(token) for token in self.anchor(response, sid, self.tokenizer)]
        named = self._sids.read_ids(self.tokenizer, [ids], [thinking])[0]
        if sid not in named:
            raise ValueError(
                f"anchor: expected an answer that names {self._sids.write(sid)}, got {self.tokenizer.decode(ids)!r}, "
                f"where the SIDs are {named}"
            )
        if len(ids) > limit:
            raise ValueError(f"anchor: {len(ids)} tokens, and data.max_response_length={limit}")
        return ids


def recast_batch(
    batch: Any,
    tokenizer: Any,
    rewards: Tensor | None = None,
    *,
    step: int = 0,
    segment_key: str | None = None,
    **options: Any,
) -> Any:
    """Cut a batch of whole groups to pairs, with an anchor in each group that had no hit. In place.

    Two rows a prompt, always: a prompt without a pair keeps two rows whose ``response_mask`` is empty, so that sizes
    never depend on luck. Where no prompt has a pair, one token stays in the mask, with an advantage of 0: a loss over
    no token is NaN in verl. At the branch point, the mask of a negative begins there, whatever the estimator: the
    tokens before it are the positive's too, where their KL is paid. With ``arm="repair"`` all rows stay.

    Args:
        batch: verl's ``DataProto``: ``responses``, ``input_ids``, ``attention_mask``, ``position_ids`` (prompts padded
            on the left, responses on the right), ``response_mask`` where there is one; ``uid`` and ``reward_model``
            with a text ``"ground_truth"`` for each row. Groups may differ in size, rows come in any order.
        tokenizer: of transformers.
        rewards: floating ``(B,)``. Default: the sums of ``rm_scores``.
        step: of training: ties are decided by it.
        segment_key: a key of ``batch.non_tensor_batch`` with a name for each row; repaired groups are counted by it.
        options: of :class:`Chooser`.

    Returns:
        the batch: positive and negative of each prompt in turn. ``rm_scores`` is the reward on the last token,
        ``score`` the reward, 1 for an anchor, 0 for a row without a pair. ``meta_info["recast"]`` has the metrics.

    Raises:
        ValueError: rewards that are missing, or anything that was computed already for the answers as sampled; what
            :class:`Chooser` raises. The batch is then as it was.

    Source: the place is that of ``_balance_batch`` in verl's ``RayPPOTrainer.fit``.
    """
    tensors, other = batch.batch, batch.non_tensor_batch
    stale = OF_SAMPLES & (set(tensors.keys()) | set(other))
    if stale:
        raise ValueError(
            f"batch: {sorted(stale)} are of the answers as they were sampled, and an anchor was not: call recast_batch "
            "before they are computed (and set actor_rollout_ref.rollout.calculate_log_probs=False)"
        )
    if rewards is None:
        if "rm_scores" not in tensors.keys():
            raise ValueError(
                "batch: expected rm_scores, or the argument rewards: repair needs to know which answers hit"
            )
        rewards = tensors["rm_scores"].sum(dim=-1)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    width = tensors["responses"].shape[1]
    lengths = tensors["attention_mask"][:, -width:].sum(dim=1).tolist()
    mask = tensors.setdefault("response_mask", tensors["attention_mask"][:, -width:].clone())
    uids = other["uid"].tolist()
    prompt_mask = tensors["attention_mask"][:, :-width].bool()
    rows = Rows(
        uids=uids,
        prompts={uid: tensors["input_ids"][row, :-width][prompt_mask[row]].tolist() for row, uid in enumerate(uids)},
        responses=[ids[:n].tolist() for ids, n in zip(tensors["responses"], lengths)],
        rewards=rewards.detach().float().cpu(),
        truths=[truth_of(item) for item in other["reward_model"]],
        segments=[None] * len(uids) if segment_key is None else list(other[segment_key]),
    )
    chooser = Chooser(tokenizer, **options)
    chosen = chooser(rows, limit=width, step=step)

    rewards = rows.rewards.clone()
    for row, ids in chosen.anchors.items():
        check_one_turn(mask[row, : lengths[row]])
        rewards[row] = 1.0
        _write(tensors, row, ids, width, tokenizer.pad_token_id or 0)
    kept = list(chosen.rows)
    if chooser.arm == "repair":
        kept = list(range(len(uids)))
    else:
        for uid in chosen.skipped:
            first = [row for row, its in enumerate(uids) if its == uid][:2]
            kept += (first * 2)[:2]
            mask[first], rewards[first] = 0, 0.0
        if not chosen.rows:
            mask[kept[0], 0] = 1
        for negative, start in zip(chosen.rows[1::2], chosen.starts[1::2]):
            mask[negative, :start] = 0
    leave(uids, rewards, chosen)
    ends = (tensors["attention_mask"][:, -width:].sum(dim=1) - 1).clamp(min=0)
    tensors["rm_scores"] = torch.zeros(len(uids), width, device=mask.device)
    tensors["rm_scores"][torch.arange(len(uids)), ends] = rewards.to(mask.device)

    index = torch.tensor(kept)
    batch.batch = TensorDict({name: x[index] for name, x in tensors.items()}, batch_size=[len(kept)])
    batch.non_tensor_batch = {name: x[index.numpy()] for name, x in other.items()} | {"score": rewards[index].numpy()}
    batch.meta_info["recast"] = {**chosen.metrics, "recast/rows_out": float(len(kept))}
    if "global_token_num" in batch.meta_info:
        batch.meta_info["global_token_num"] = batch.batch["attention_mask"].sum(dim=-1).tolist()
    return batch


def leave(uids: list, rewards: Tensor, chosen: Chosen) -> None:
    """Leave the advantages for :func:`recast_advantages`, in place of those of the batch before.

    Args:
        uids: of all rows.
        rewards: float32 ``(B,)``, of all rows, 1 for anchors.
        chosen: :class:`Chosen`.
    """
    _left.clear()
    for row, advantage, start in zip(chosen.rows, chosen.advantages.tolist(), chosen.starts):
        _left.setdefault(uids[row], []).append((rewards[row].item(), advantage, start))
    for uid in chosen.skipped:
        _left[uid] = [(0.0, 0.0, 0)]


def truth_of(reward_model: Any) -> str:
    """The text with the target SIDs of a row: ``reward_model["ground_truth"]``, a text or a list of texts."""
    truth = reward_model.get("ground_truth") if isinstance(reward_model, dict) else None
    if isinstance(truth, (list, tuple, np.ndarray)):
        truth = "\n".join(truth)
    if not isinstance(truth, str):
        raise ValueError(
            "reward_model: expected a dict with a text, or texts, 'ground_truth' that name the target SIDs, got "
            f"{reward_model!r}"
        )
    return truth


def check_one_turn(response_mask: Tensor) -> None:
    """Raises ``ValueError`` where some of an answer's tokens are not the policy's, but a tool's."""
    if not response_mask.bool().all():
        raise ValueError(
            "response_mask: an answer with tokens of a tool cannot give way to an anchor; use arm='contrast' for "
            "agents with tools"
        )


def positions_after(prompt_positions: Tensor, count: int) -> Tensor:
    """Positions of the ``count`` tokens that follow a prompt, whose positions are ``(..., P)``: ``(..., count)``."""
    return prompt_positions[..., -1:] + 1 + torch.arange(count, device=prompt_positions.device)


def _write(tensors, row, ids, width, pad):
    """Put an answer into a row, in place."""
    answer = torch.tensor(ids + [pad] * (width - len(ids)))
    for name in ("responses", "input_ids"):
        tensors[name][row, -width:] = answer.to(tensors[name].device)
    for name in ("attention_mask", "response_mask"):
        tensors[name][row, -width:] = 0
        tensors[name][row, -width:][: len(ids)] = 1
    positions = tensors["position_ids"][row]
    positions[..., -width:] = positions_after(positions[..., :-width], width)


def _leaves(positive, negative):
    """The first token where a negative leaves its positive, both lists of token ids; all of it where it never does."""
    n = max(len(positive), len(negative))
    padded = [torch.tensor(ids + [-1] * (n - len(ids))) for ids in (positive, negative)]
    return n - int(branch_mask(*padded).sum())


def group_metrics(rows: Rows) -> dict[str, float]:
    """What the groups are before repair: shares by regime, the mean reward, and how many rows."""
    hits = dict.fromkeys(rows.uids, 0)
    for uid, reward in zip(rows.uids, rows.rewards.tolist()):
        hits[uid] += reward > 0
    regimes = [min(count, 2) for count in hits.values()]
    shares = {
        name: regimes.count(hits) / len(regimes) for hits, name in enumerate(("all_zero", "single_hit", "multi_hit"))
    }
    return {f"recast/{name}": share for name, share in shares.items()} | {
        "recast/reward_sampled": rows.rewards.mean().item(),
        "recast/rows_in": float(len(rows.uids)),
    }


def _pair_metrics(rows, pairs):
    groups = len(pairs.regimes)
    metrics = {f"recast/{name}": len(getattr(pairs, name)) / groups for name in ("repaired", "skipped", "contradicted")}
    segments = {uid: name for uid, name in zip(rows.uids, rows.segments) if name is not None}
    for name in sorted(set(segments.values())):
        its = [uid for uid in segments if segments[uid] == name]
        metrics[f"recast/repaired/{name}"] = len(set(pairs.repaired).intersection(its)) / len(its)
    return metrics | {"recast/rows_out": float(len(pairs.rows))}
