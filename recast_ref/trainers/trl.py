"""ReCast inside TRL's GRPOTrainer: search ``num_generations`` wide, update on two.

Another import, another config class, a column of targets::

    from recast_ref.trainers.trl import ReCastGRPOConfig, ReCastGRPOTrainer

    # rows such as {"prompt": "...", "targets": ["<a_12><b_7><c_201>"]}
    args = ReCastGRPOConfig("out", num_generations=32, per_device_train_batch_size=256, negative_weight=0.2)
    ReCastGRPOTrainer(model, args=args, train_dataset=dataset, processing_class=tokenizer, catalogue=sids).train()

Where it sits (names are TRL 1.16's, ``trl/trainer/grpo_trainer.py``): ``_generate`` answers once for each generation
batch, before anything is padded, counted or run through a model. There rewards are asked for, the pair is chosen, and
only its rows go back to the parent, which pads them, counts ``num_items_in_batch`` over them, and runs the old,
reference (PEFT too) and vLLM-correction passes and the update on them. All else is the parent's.

Things to know:

* **A logged loss of about 0 is right.** The pair's ``+w`` and ``-w`` cancel at the first update; the gradient does not.
* **Weights.** The published pair has 1 and 1. A ``negative_weight`` of 0.2 was better where it was measured
  (``python tests/trl_collapse.py 0 1 2``: a base that knows the format, a catalogue, 80 steps, three seeds): greedy
  hits of 0.64 to 0.95, where weights of 1 and 1 gave 0.41 to 0.77.
* **A catalogue is one option for the sampler and for every log-prob.** Apart they are poison: where only the sampler
  keeps to the trie, ``-w`` drives mass off it while the sampler still draws those tokens (the same runs, weights of 1
  and 1: greedy hits of 0.02 to 0.19 and a logged KL of up to 4e3 to 1.5e5, where both under the trie kept it below 2).
  Constrained generation given in any other way is therefore refused. ``top_k``, ``top_p`` and ``min_p`` are not, as in
  TRL, but they cut the sampler alone too: leave them off.
* **Batch size.** Make ``per_device_train_batch_size`` a multiple of ``num_generations``: it is cut to two rows a group.
  Where a group is spread over smaller batches, each of them still runs two rows at least, most of them filler that
  nothing is learned from, and the saving is gone: compare ``recast/rows_run`` with ``recast/actor_rows``.
* **Rewards.** A group without a miss is skipped, so a reward that is above 0 for every answer, such as a bonus for the
  format, leaves nothing to learn from (``recast/skipped`` is 1): let a miss have 0 or less. NaN or None of one function
  does not count, as in TRL; an answer for which all say so raises, and so does infinity. Codes that were added to the
  tokenizer as special tokens are not in the text of ``completions``: read ``completion_ids`` there.
* **Thoughts.** What stands in ``<think>`` names nothing, be it opened by the answer or by the prompt's template. An
  anchor keeps the thought of the answer that it replaces if that has ended; else it has none
  (:meth:`~recast_ref.trainers.sids.Sids.overwrite`).
* **Logs.** TRL's ``reward`` and ``frac_reward_zero_std`` are of all answers, before repair. Beside them, of each
  generation batch: ``recast/all_zero``, ``single_hit``, ``multi_hit``, ``repaired``, ``skipped``, ``contradicted``
  (shares of the groups), ``recast/actor_rows`` (rows that are learned from), ``recast/rows_run`` (those and filler),
  ``recast/repaired/<segment>`` (share of that segment's groups).
* **Denominators.** Skipped groups pay neither loss nor KL and count nowhere. Losses that average over rows average
  over the kept rows of the generation batch, those that average over tokens over their tokens.
* Evaluation is plain GRPO's. Resuming starts a new generation batch, as TRL's own trainer does.

Tested with TRL 1.16.0 on CPU, one process and two. Not run: GPUs, vLLM, DeepSpeed, FSDP.
"""

import copy
import math
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

try:
    import trl
    from accelerate.utils import gather_object
    from datasets import Dataset
    from transformers import LogitsProcessorList
    from trl import GRPOConfig, GRPOTrainer
except ImportError as error:
    raise ImportError(
        f'recast_ref.trainers.trl: needs TRL: pip install -e ".[trl]" in the checkout ({error})'
    ) from error

from packaging.version import Version

from .pairs import ARMS, branch_advantages, choose_pairs
from .sids import OnlyTheTrie, Sids, Trie, in_thought

TESTED = ("1.16.0", "1.17.0")  # from, and below
if not Version(TESTED[0]) <= Version(trl.__version__) < Version(TESTED[1]):
    raise ImportError(
        f"recast_ref.trainers.trl: tested with trl>={TESTED[0]},<{TESTED[1]}, this is {trl.__version__}, whose private "
        f'methods may differ: pip install "trl>={TESTED[0]},<{TESTED[1]}"'
    )

ROW_MEANS = ("grpo", "sapo", "dr_grpo", "luspo")  # losses that divide by the number of rows
TRL_EPS = 1e-4  # what GRPOTrainer adds to a standard deviation
CONSTRAINTS = {
    *("constraints", "force_words_ids", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"),
    *("prefix_allowed_tokens_fn", "logits_processor", "forced_bos_token_id", "forced_eos_token_id", "guidance_scale"),
    *("allowed_token_ids", "structured_outputs", "guided_decoding", "logit_bias", "bad_words", "logits_processors"),
}
RESHAPING = {"repetition_penalty": 1, "no_repeat_ngram_size": 0, "min_new_tokens": 0, "min_length": 0}
NEUTRAL = {**RESHAPING, "guidance_scale": 1}  # values that do nothing
WHOLE = "expected whole groups of {} in a process"
BEAMS = {"num_beams", "num_beam_groups", "num_return_sequences", "do_sample"}
APART = (
    "an option of the sampler alone makes log-probs, over the whole vocabulary, drive mass to where the sampler never "
    "goes (measured after 80 steps: most hits lost, KL up to 1.5e5); give the trainer catalogue=, which is for both"
)


@dataclass
class ReCastGRPOConfig(GRPOConfig):
    """``GRPOConfig`` and what ReCast adds. Needs whole groups in each process: ``per_device_train_batch_size *
    steps_per_generation`` a multiple of ``num_generations``.

    Raises:
        ValueError: an option that cannot work with the others; it says which and why.
    """

    arm: str = field(
        default="recast",
        metadata={"help": "recast; contrast (no repair); repair (no contrast); grpo (TRL's own trainer, bit for bit)"},
    )
    targets_column: str = field(
        default="targets",
        metadata={"help": "Column with the target SIDs of a row: text, or a list of texts. Empty or None: no target."},
    )
    anchor_column: str | None = field(
        default=None,
        metadata={
            "help": "Column with the whole ground-truth answer, put in place of the answer that repair gives up; EOS "
            "follows where it has none (cut at max_completion_length). Default: under a catalogue the first target's "
            "item; else the answer itself, with the first target in place of its last SID (see Sids.overwrite)."
        },
    )
    segment_column: str | None = field(
        default=None, metadata={"help": "Column with a name; the share of repaired groups is logged for each."}
    )
    sid_template: str | None = field(
        default=None,
        metadata={
            "help": "How SIDs are written, such as '<a_{}><b_{}><c_{}>'. Default: as in the first row with a target."
        },
    )
    weight: float = field(default=1.0, metadata={"help": "Advantage of the positive."})
    negative_weight: float | None = field(
        default=None,
        metadata={"help": "The negative's advantage is minus this. Default: weight, as published; 0.2 was stable."},
    )
    branch_point: bool = field(
        default=False, metadata={"help": "The negative counts only from the first token where it leaves the positive."}
    )
    beam_groups: bool = field(
        default=False, metadata={"help": "A group is the num_generations best beams instead of as many samples."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.arm not in (*ARMS, "grpo"):
            raise ValueError(f"arm: expected one of {', '.join((*ARMS, 'grpo'))}, got {self.arm!r}")
        if self.beam_groups:
            self._refuse(self._against_beams())
        if self.arm != "grpo":
            self._refuse(self._against_pairs())

    def _refuse(self, reasons):
        for why in reasons:
            raise ValueError(f"{why} (arm={self.arm!r})")

    def _against_beams(self):
        eval_rows, eval_width = self.per_device_eval_batch_size, self.num_generations_eval or self.num_generations
        if self.use_vllm or self.use_transformers_continuous_batching:
            yield "beam_groups: only transformers' own generate searches beams, not vLLM or continuous batching"
        if self._rows() % self.num_generations:
            yield f"beam_groups: {WHOLE.format(self.num_generations)}, got {self._rows()} rows"
        if self.eval_strategy != "no" and eval_rows % eval_width:
            yield f"beam_groups: {WHOLE.format(eval_width)}, got per_device_eval_batch_size={eval_rows}"
        if self.temperature != 1:
            yield f"beam_groups: beams are ranked at temperature=1, got {self.temperature}"

    def _against_pairs(self):
        given, filler = _set(self.generation_kwargs), "rows that only make batches equal would change it"
        if self._rows() % self.num_generations:
            yield (
                f"per_device_train_batch_size * steps_per_generation: expected a multiple of num_generations="
                f"{self.num_generations}, got {self._rows()}: a group must not be split over processes"
            )
        if self.loss_type == "bnpo":
            yield f"loss_type='bnpo': it averages over the tokens of each micro-batch, {filler}; use 'dapo'"
        if self.entropy_coef or self.use_adaptive_entropy:
            yield f"entropy_coef, use_adaptive_entropy: the bonus averages over the tokens of a micro-batch, {filler}"
        if self.mask_truncated_completions:
            yield "mask_truncated_completions: it would mask an answer without EOS and leave half a pair"
        if self.scale_rewards == "batch":
            yield "scale_rewards='batch': advantages are those of a pair, or of a group; use 'group' or 'none'"
        if self.multi_objective_aggregation != "sum_then_normalize":
            yield (
                f"multi_objective_aggregation={self.multi_objective_aggregation!r}: a pair is chosen by the sum of the "
                "rewards; use 'sum_then_normalize'"
            )
        if not 0 < self.weight < math.inf or not 0 <= (self.negative_weight or 0) < math.inf:
            yield (
                "weight, negative_weight: expected finite numbers, the first > 0 and the second >= 0 (the negative's "
                f"advantage is minus it), got {self.weight} and {self.negative_weight}"
            )
        if self.max_completion_length is None:
            yield "max_completion_length: expected a number, which an anchor must not be longer than, got None"
        if self.branch_point and self.arm == "repair":
            yield "branch_point: needs pairs"
        if given & BEAMS:
            yield f"generation_kwargs: {sorted(given & BEAMS)}: groups by beam search are beam_groups=True"
        if given & CONSTRAINTS:
            yield f"generation_kwargs: {sorted(given & CONSTRAINTS)}: {APART}"
        if self.vllm_structured_outputs_regex is not None:
            yield f"vllm_structured_outputs_regex: {APART}"

    def _rows(self):
        return self.per_device_train_batch_size * self.steps_per_generation


class ReCastGRPOTrainer(GRPOTrainer):
    """``GRPOTrainer`` with repair and contrast.

    Args:
        model, reward_funcs, args, ...: as of ``GRPOTrainer``; ``args`` is a :class:`ReCastGRPOConfig`. Without
            ``reward_funcs`` the reward is 1 for an answer that names a target, else 0. A hit is a weighted sum of
            rewards above 0. A function may answer ``None`` (or NaN) where it does not apply, as in TRL, but not all of
            them for one answer.
        catalogue: the SIDs that may be named, as a list of texts, each a whole answer with one SID and, it may be,
            text around it: generation keeps to their trie, and every log-prob is of the softmax over what the trie
            allows. An answer is then one of them, and EOS, and so is an anchor.

    Raises:
        ImportError: on import, with another TRL than the tested ones.
        ValueError: targets that are no SIDs, that the tokenizer cannot write, that do not fit in
            ``max_completion_length`` or are not in the catalogue (of a streamed dataset this is seen when the row
            comes up, and so is an anchor of ``anchor_column`` that names no target or does not fit); tools,
            environments, images; constrained generation other than by ``catalogue``; a catalogue in which two texts
            name the same SID. While training: an infinite reward, and an answer for which every function answered
            ``None`` or NaN. A row without targets is no error: it is not repaired.
    """

    _tag_names = ["trl", "grpo", "recast"]
    _sids: Any = None
    _trie: Any = None
    _batch = None  # the generation batch that is being made
    _thinking = None  # bool for each answer to be rewarded, whether its prompt has opened a thought

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: ReCastGRPOConfig | None = None,
        train_dataset: Any = None,
        *arguments: Any,
        catalogue: Iterable[Any] | None = None,
        **options: Any,
    ) -> None:
        args = ReCastGRPOConfig("recast-grpo") if args is None else args
        if not isinstance(args, ReCastGRPOConfig):
            raise TypeError(f"args: expected a ReCastGRPOConfig, got {type(args).__name__}")
        catalogue = _items(catalogue)
        has_targets = args.targets_column in (getattr(train_dataset, "column_names", None) or ())
        if reward_funcs is None and (args.arm != "grpo" or has_targets):
            reward_funcs = self.hit_reward
        super().__init__(model, reward_funcs, args, train_dataset, *arguments, **options)
        args._refuse(self._against_constraints(catalogue))
        if args.arm != "grpo":
            args._refuse(self._against_pairs())
        if args.arm != "grpo" or catalogue is not None or reward_funcs == self.hit_reward:
            self._learn_to_read(catalogue)

    def hit_reward(self, completion_ids: list[list[int]], **columns: Any) -> list[float]:
        """The reward by default: 1 for an answer that names a target, else 0."""
        named = self._sids.read_ids(self._tokenizer, completion_ids, self._thinking)
        wanted = map(self._targets, columns[self.args.targets_column])
        return [float(not set(sids).isdisjoint(targets)) for sids, targets in zip(named, wanted)]

    # --- at the start

    def _against_constraints(self, catalogue):
        args, bounded, items = self.args, catalogue is not None, len(set(catalogue or ()))
        if (bounded or args.beam_groups) and self.rollout_func is not None:
            yield "rollout_func: it samples by itself, out of reach of catalogue and beam_groups"
        if bounded and (args.use_vllm or args.use_transformers_continuous_batching):
            yield "catalogue: only transformers' own generate keeps to it, not vLLM or continuous batching"
        if (bounded or args.arm != "grpo") and "generate" in vars(self.accelerator.unwrap_model(self.model)):
            yield f"model.generate was replaced: {APART}"
        model = self.accelerator.unwrap_model(self.model)
        options = _set(vars(model.generation_config)) if bounded or args.arm != "grpo" else set()
        if options & CONSTRAINTS:
            yield f"model.generation_config: {sorted(options & CONSTRAINTS)}: {APART}"
        options |= _set({"repetition_penalty": args.repetition_penalty}) | _set(args.generation_kwargs)
        reshaping = sorted(options & RESHAPING.keys())
        if bounded and reshaping:
            yield (
                f"{reshaping} (of args, generation_kwargs or model.generation_config): the catalogue says what may "
                "follow, and the log-probs know of nothing else; leave them out"
            )
        if bounded and args.beam_groups and items < self.num_generations:
            yield f"beam_groups: {self.num_generations} different beams need as many items, the catalogue has {items}"

    def _against_pairs(self):
        if self.tools or self.environment_factories:
            yield "tools, environment_factory: an answer must be one turn"
        if {"image", "images"} & set(getattr(self.train_dataset, "column_names", None) or ()):
            yield "images: rows with images are not cut to pairs"
        if self.aux_loss_enabled:
            yield "router_aux_loss_coef: rows that only make batches equal would be balanced too; set it to 0"

    def _learn_to_read(self, catalogue):
        """How SIDs are written, the trie, and whether everything can be written and named."""
        args, name, column = self.args, self.args.targets_column, None
        self._check_columns()
        if isinstance(self.train_dataset, Dataset) and name in self.train_dataset.column_names:
            column = self.train_dataset[name]
        if args.sid_template is not None:
            self._sids = Sids(args.sid_template)
        elif catalogue:
            self._sids = Sids.like(catalogue[0])
        else:
            cells = column if column is not None else (row.get(name) for row in self.train_dataset)
            self._sids = Sids.like(next(filter(None, (_text(name, given) for given in cells)), ""))
        if catalogue is not None:
            self._items = self._encode_catalogue(catalogue)
            self._trie = Trie(list(self._items.values()), self._tokenizer.eos_token_id)
        if column is not None:
            wanted = list(dict.fromkeys(sid for given in column for sid in self._targets(given)))
            self._encode_checked(name, [self._sids.write(sid) for sid in wanted])
            for sid in wanted if catalogue is not None else ():
                self._item(sid)

    def _check_columns(self):
        """Whether the datasets have the columns that are asked for; a stream may not know its own."""
        args, wanted = self.args, []
        if args.arm != "grpo":
            columns = ("targets_column", "anchor_column", "segment_column")
            wanted = [("train_dataset", self.train_dataset, option) for option in columns]
        if self.hit_reward in self.reward_funcs:
            several = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"": self.eval_dataset}
            wanted += [("eval_dataset", dataset, "targets_column") for dataset in several.values()]
        for which, dataset, option in wanted:
            name, known = getattr(args, option), getattr(dataset, "column_names", None)
            if name and known and name not in known:
                raise ValueError(f"{option}: no column {name!r} in the {which}, only {known}")
            if option == "anchor_column" and name and isinstance(dataset, Dataset):
                for given in filter(None, dataset[name]):  # a row that is not repaired needs none
                    _anchor_text(name, given)

    def _encode_catalogue(self, texts):
        """Token ids of each item by the SID that it names."""
        items = {}
        for text, ids in zip(texts, self._encode_checked("catalogue", texts)):
            named = self._sids.read(text)
            if len(named) > 1:
                raise ValueError(f"catalogue: expected texts that name one SID each, {text!r} names {named}")
            other, _ = items.setdefault(named[0], (text, ids))
            if other != text:
                raise ValueError(
                    f"catalogue: {other!r} and {text!r} name the same SID, {self._sids.write(named[0])}: a hit on one "
                    "would be one on the other; give sid_template if yours has more levels"
                )
        return {sid: ids for sid, (_, ids) in items.items()}

    def _item(self, sid):
        """The catalogue's own answer for a target, as token ids."""
        if sid not in self._items:
            raise ValueError(
                f"{self.args.targets_column}: {self._sids.write(sid)} is not in the catalogue, so it can never be named"
            )
        return self._items[sid]

    def _encode_checked(self, name, texts):
        """Token ids of texts, each of which names a SID, is read back from them, and fits."""
        rows = self._encode(list(texts)) if len(texts) else []
        for text, ids, back in zip(texts, rows, self._sids.read_ids(self._tokenizer, rows)):
            if not back or back != self._sids.read(text):
                raise ValueError(
                    f"{name}: {text!r} comes back from the tokenizer as {self._tokenizer.decode(ids)!r}, where the "
                    f"SIDs are {back}: add the code tokens to its vocabulary, or give the sid_template of yours"
                )
            self._check_length(ids, f"{name}: {text!r}")
        return rows

    def _check_length(self, ids, where):
        if self.max_completion_length is not None and len(ids) > self.max_completion_length:
            raise ValueError(f"{where} has {len(ids)} tokens, and max_completion_length={self.max_completion_length}")

    def _encode(self, texts):
        return self._tokenizer(texts, add_special_tokens=False)["input_ids"]

    def _targets(self, given):
        """The SIDs in a cell of the column of targets."""
        text = _text(self.args.targets_column, given)
        sids = self._sids.read(text)
        if text and not sids:
            raise ValueError(
                f"{self.args.targets_column}: expected SIDs such as {self._sids.write((1,) * self._sids.levels)}, got "
                f"{given!r}; an empty cell, or None, is a row without targets"
            )
        return sids

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        columns = (self.args.targets_column, self.args.anchor_column, self.args.segment_column)
        self._signature_columns += [name for name in columns if name and name not in self._signature_columns]

    # --- a generation batch: sample, reward, cut

    def _generate_and_score_completions(self, inputs):
        try:
            if self.args.arm == "grpo" or not self.model.training:
                return super()._generate_and_score_completions(inputs)
            self._batch = batch = _Batch(inputs)
            output = super()._generate_and_score_completions(inputs)  # it calls _generate, then _calculate_rewards
        finally:
            self._batch = self._thinking = None
        self._logs["advantages"].extend(batch.shown)  # in place of the parent's: the log holds one generation batch
        output["advantages"] = batch.advantages
        if self.args.branch_point:
            output["advantages"] = branch_advantages(batch.advantages, output["completion_ids"])
        # The parent shuffles and splits along the first dimension: the two of a pair stay in one optimizer step.
        output = {name: x.unflatten(0, (-1, batch.unit)) if x.dim() else x for name, x in output.items()}
        output["recast_filled"] = batch.filled
        return output

    def _generate(self, prompts):
        output = super()._generate(prompts)
        if self._sids is not None and self._trie is None:  # an answer of the catalogue is one, whatever the prompt
            self._thinking = in_thought(self._tokenizer, output[0])
        if self._batch is None:
            if self.args.arm != "grpo":  # a row of an evaluation, in the same table of completions
                self._log_completion_extra("repaired", [False] * len(prompts))
            return output
        prompt_ids, completion_ids, tool_mask, completions, logprobs, extra, images, tool_images = output
        if images is not None or tool_mask is not None:
            self.args._refuse(["images, and env_mask of a rollout_func, are not cut to pairs"])
        for name, values in extra.items():  # of a rollout_func, for the reward functions
            for row, inputs in enumerate(self._batch.inputs):
                if not isinstance(values, list) or row < len(values):  # as in TRL
                    inputs[name] = values[row] if isinstance(values, list) else values
        self._batch.rewards = self._calculate_rewards(self._batch.inputs, prompts, completions, completion_ids)
        pairs = self._choose(completion_ids)
        completion_ids = list(completion_ids)
        for row, sid in pairs.anchors.items():
            completion_ids[row] = self._anchor(row, completion_ids[row], sid)
        self._log_completion_extra("repaired", [row in pairs.anchors for row in range(len(prompts))])
        rows, real = self._level(pairs, [len(ids) + len(more) for ids, more in zip(prompt_ids, completion_ids)])
        if logprobs is not None:  # an anchor has none: it was not sampled
            logprobs = [[None] * len(completion_ids[i]) if i in pairs.anchors else logprobs[i] for i in rows]
        return (
            [prompt_ids[row] for row in rows],
            [completion_ids[row] for row in rows],
            [[int(counts)] * len(completion_ids[row]) for row, counts in zip(rows, real)],
            completions,  # all of them: the parent logs them
            logprobs,
            extra,
            images,
            tool_images,
        )

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        if self._batch is not None and self._batch.rewards is not None:
            return self._batch.rewards  # of all answers, as sampled
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.model.training:
            hits = (self._summed(rewards).view(-1, self.num_generations) > 0).sum(dim=1)
            for name, is_so in (("all_zero", hits == 0), ("single_hit", hits == 1), ("multi_hit", hits > 1)):
                self._metrics["train"][f"recast/{name}"].append(is_so.float().mean().item())
        return rewards

    def _summed(self, rewards):
        """One reward for each answer of all processes: a function that answered None does not count, as in TRL."""
        return (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)

    def _choose(self, completion_ids):
        """:func:`~.pairs.choose_pairs` among this process's answers."""
        args, batch, everyone = self.args, self._batch, self._batch.rewards
        unanswered = everyone.isnan().all(dim=1).nonzero().flatten().tolist()
        if unanswered:
            raise ValueError(
                f"reward_funcs: every function answered None or NaN for answer {unanswered[0]} of the generation "
                "batch; answer 0 where there is nothing to reward"
            )
        first = self.accelerator.process_index * len(batch.inputs)
        mine = slice(first, first + len(batch.inputs))
        # A stream of its own, the same for any number of processes and after resuming.
        seed = (args.seed * 1_000_003 + self.state.global_step) * 1_009 + self._step % args.gradient_accumulation_steps
        keys = torch.rand(len(everyone), generator=torch.Generator().manual_seed(seed % 2**63))
        return choose_pairs(
            groups=[row // self.num_generations for row in range(len(batch.inputs))],
            rewards=self._summed(everyone)[mine].cpu(),
            named=self._sids.read_ids(self._tokenizer, completion_ids, self._thinking),
            targets=[self._targets(row[args.targets_column]) for row in batch.inputs],
            arm=args.arm,
            weight=args.weight,
            negative_weight=args.negative_weight,
            tie_break=keys[mine],
            normalize=args.scale_rewards != "none",
            eps=TRL_EPS,
        )

    def _anchor(self, row, answer, sid):
        """The ground truth as token ids, in place of an answer."""
        thinking, limit = self._thinking is not None and self._thinking[row], self.max_completion_length
        ends = [self._tokenizer.eos_token_id, *self.eos_token_ids]
        if self.args.anchor_column:
            ids = self._given_anchor(self._batch.inputs[row][self.args.anchor_column], sid, ends, thinking)
        elif self._trie is not None:
            ids = (self._item(sid) + ends[:1])[:limit]
        else:
            ids = self._sids.overwrite(self._tokenizer, answer, sid, ends, limit, thinking)
        self._check_length(ids, f"the anchor {self._tokenizer.decode(ids)!r}")
        return ids

    def _given_anchor(self, given, sid, ends, thinking):
        """A cell of ``anchor_column`` as token ids, with EOS."""
        name = self.args.anchor_column
        ids = self._encode([_anchor_text(name, given)])[0]
        if sid not in self._sids.read_ids(self._tokenizer, [ids], [thinking])[0]:
            raise ValueError(
                f"{name}: expected an answer that names {self._sids.write(sid)}, the row's first target"
                f"{', after the end of the thought that the prompt opens' * thinking}, got {given!r}"
            )
        if ids[-1] not in ends:  # cut at the limit as a sampled answer is
            ids = (ids + ends[:1])[: max(self.max_completion_length, len(ids))]
        device = self.accelerator.device
        if self._trie is not None and (self._trie.paths(torch.tensor([ids], device=device)) < 0).any():
            raise ValueError(f"{name}: {given!r} is not an answer of the catalogue")
        return ids

    def _level(self, pairs, lengths):
        """The rows that go on: as many in each process, because TRL gathers numbers by row, and a multiple of
        ``steps_per_generation``, because it drops the rest. The shortest row, with a mask of 0, makes them up.

        Returns:
            rows, and for each whether it counts.
        """
        args, batch = self.args, self._batch
        batch.unit = 1 if args.arm == "repair" else 2
        units = -(-len(pairs.rows) // batch.unit)
        needed = max(1, -(-units // args.steps_per_generation)) * args.steps_per_generation
        everyone = gather_object([{"needed": needed, "rows": len(pairs.rows), **self._counts(pairs)}])
        filler = max(one["needed"] for one in everyone) * batch.unit - len(pairs.rows)
        rows = [*pairs.rows, *[min(range(len(lengths)), key=lengths.__getitem__)] * filler]
        device = self.accelerator.device
        learned = sum(one["rows"] for one in everyone)
        batch.filled = torch.tensor(len(rows) * len(everyone) / max(learned, 1), device=device)
        batch.advantages = torch.cat([pairs.advantages, torch.zeros(filler)]).to(device)
        batch.shown = self.accelerator.gather(pairs.every_advantage.to(device)).tolist()
        self._log_counts(everyone, learned, len(rows) * len(everyone))
        return rows, [i < len(pairs.rows) for i in range(len(rows))]

    def _counts(self, pairs):
        """How many groups of this process are what, and by segment ``(repaired, groups)``."""
        segments = {}
        for group in pairs.regimes if self.args.segment_column else ():
            name = str(self._batch.inputs[group * self.num_generations][self.args.segment_column])
            repaired, groups = segments.get(name, (0, 0))
            segments[name] = (repaired + (group in pairs.repaired), groups + 1)
        counted = {name: len(getattr(pairs, name)) for name in ("repaired", "skipped", "contradicted")}
        return {**counted, "groups": len(pairs.regimes), "segments": segments}

    def _log_counts(self, everyone, learned, run):
        log = self._metrics["train"]
        groups = sum(one["groups"] for one in everyone)
        for name in ("repaired", "skipped", "contradicted"):
            log[f"recast/{name}"].append(sum(one[name] for one in everyone) / groups)
        log["recast/actor_rows"].append(learned)
        log["recast/rows_run"].append(run)
        for name in sorted({name for one in everyone for name in one["segments"]}):
            counts = [one["segments"].get(name, (0, 0)) for one in everyone]
            log[f"recast/repaired/{name}"].append(sum(c[0] for c in counts) / sum(c[1] for c in counts))

    # --- the update

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Tensor:
        if "recast_filled" not in inputs:
            return super().compute_loss(model, inputs, *arguments, **options)
        filled = inputs["recast_filled"]
        inputs = {name: x.flatten(0, 1) if x.dim() else x for name, x in inputs.items() if name != "recast_filled"}
        loss = super().compute_loss(model, inputs, *arguments, **options)
        return loss * filled if self.loss_type in ROW_MEANS else loss  # those divide by the filler too

    # --- the catalogue, and beams

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, *arguments, **options):
        beams = self.args.beam_groups and num_generations > 1
        if beams and len(prompt_ids) % num_generations:
            self.args._refuse([f"beam_groups: {WHOLE.format(num_generations)}, got {len(prompt_ids)} rows"])
        if beams:  # one search a group: TRL's generation_kwargs would search once for each row, and answer equal rows
            prompt_ids = prompt_ids[::num_generations]
        with self._generating(num_generations if beams else 1):
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, *arguments, **options
            )

    @contextmanager
    def _generating(self, beams):
        """What TRL's ``generation_kwargs`` cannot say: a logits processor, and beams that are different answers."""
        model = self.accelerator.unwrap_model(self.model_wrapped)
        if beams > 1:
            before, self.generation_config = self.generation_config, copy.deepcopy(self.generation_config)
            # Renormalised, beams are ranked by their log-probs under the trie.
            self.generation_config.update(
                num_beams=beams, num_return_sequences=beams, do_sample=False, renormalize_logits=True
            )
        if self._trie is not None:
            model.generate = partial(model.generate, logits_processor=LogitsProcessorList([OnlyTheTrie(self._trie)]))
        try:
            yield
        finally:
            if beams > 1:
                self.generation_config = before
            if self._trie is not None:
                del model.generate

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **options):
        if self._trie is not None:
            bonus = bool(self.args.entropy_coef or self.args.use_adaptive_entropy)
            model = _OnTheTrie(model, self._trie, logits_to_keep, self.temperature, entropy_gradient=bonus)
        return super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **options
        )


class _Batch:
    """What a generation batch has come to."""

    def __init__(self, inputs):
        self.inputs = inputs  # the rows of this process
        self.rewards = None  # (rows of all processes, functions)
        self.unit = None  # rows that stay together: 2 for a pair
        self.advantages = None  # one for each row that goes on
        self.shown = None  # one for each answer of all processes, for the table of completions
        self.filled = None  # rows that go on / rows that count, in all processes


class _OnTheTrie:
    """A model as TRL calls one that has its fused head (``trl.trainer.utils.add_fused_lm_head``), with log-probs of the
    softmax over what the trie allows."""

    def __init__(self, model, trie, answer, temperature, entropy_gradient):
        self.model, self.trie, self.answer, self.temperature = model, trie, answer, temperature
        self.entropy_gradient = entropy_gradient

    def __call__(self, input_ids, labels, fused_lm_head, **inputs):
        # The logits before each token of the answer; the last is about what would come next.
        output = self.model(input_ids=input_ids, logits_to_keep=self.answer + 1, use_cache=False, **inputs)
        tokens, scored = input_ids[:, -self.answer :], labels[:, -self.answer :] != -100
        nodes = self.trie.paths(tokens)[:, :-1]
        logits = output.logits[:, -self.answer - 1 : -1][scored].float() / self.temperature
        logps, entropies = (
            x.new_zeros(scored.shape).masked_scatter(scored, x)
            for x in self.trie.logps(logits, nodes[scored], tokens[scored], self.entropy_gradient)
        )
        return SimpleNamespace(log_probs=logps, entropy=entropies, aux_loss=getattr(output, "aux_loss", None))


def _items(catalogue):
    """The catalogue as a list of texts."""
    if catalogue is None:
        return None
    items = catalogue if isinstance(catalogue, str) else list(catalogue)
    if isinstance(items, str) or not all(isinstance(item, str) for item in items):
        raise ValueError(f"catalogue: expected a list of texts such as '<a_1><b_2><c_3>', got {items[:1]!r}")
    return items


def _set(options):
    """The names of generation options that do something."""
    names = set()
    for name, value in (options or {}).items():
        is_empty = hasattr(value, "__len__") and not len(value)
        if value is not None and not is_empty and value != NEUTRAL.get(name):
            names.add(name)
    return names


def _text(name, given):
    """A cell of the column of targets as one text."""
    texts = [given] if isinstance(given, str) else list(given or ())
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name}: expected SIDs as text, or a list of texts, such as '<a_1><b_2><c_3>', got {given!r}")
    return " ".join(texts)


def _anchor_text(name, given):
    if not isinstance(given, str):
        raise ValueError(f"{name}: expected the whole answer as one text, no chat messages, got {given!r}")
    return given
