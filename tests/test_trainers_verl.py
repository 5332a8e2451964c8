"""ReCast's parts for verl without a trainer: ``recast_batch``, the estimator, the sampler, and what is refused."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.verl
verl = pytest.importorskip("verl", reason="verl is not installed (extra verl)")

from omegaconf import OmegaConf  # noqa: E402
from tensordict import TensorDict  # noqa: E402
from verl import DataProto  # noqa: E402
from verl.trainer.ppo import core_algos  # noqa: E402

from recast_ref import reference  # noqa: E402
from recast_ref.trainers.pairs import pad_sids  # noqa: E402
from recast_ref.trainers.verl import OF_SAMPLES, recast_batch  # noqa: E402

T = torch.tensor
CODES = 4  # of each of three levels
WORDS = ["<pad>", "<eos>", "<think>", "</think>", "hmm", "<|sid_begin|>", "<|sid_end|>"]
WORDS += [f"<s_{level}_{code}>" for level in "abc" for code in range(CODES)]
PAD, EOS, THINK, DONE, HMM, BEGIN, END = range(7)


class Tokenizer:
    """Of transformers, as far as it is asked."""

    pad_token_id, eos_token_id = PAD, EOS

    def __call__(self, text, add_special_tokens=False):
        return {"input_ids": [WORDS.index(word) for word in re.findall(r"<[^>]*>|hmm", text)]}

    def batch_decode(self, rows, **_):
        return ["".join(WORDS[int(token)] for token in row) for row in rows]

    def decode(self, ids, **_):
        return self.batch_decode([ids])[0]


TOKENIZER = Tokenizer()


def codes(sid):
    return [7 + CODES * level + code for level, code in enumerate(sid)]


def text(sid):
    return TOKENIZER.decode(codes(sid))


def read(ids):
    """The last SID in token ids, or None: what these tests take for the answer's."""
    found = [
        (a - 7, b - 7 - CODES, c - 7 - 2 * CODES)
        for a, b, c in zip(ids, ids[1:], ids[2:])
        if 7 <= a < 7 + CODES <= b < 7 + 2 * CODES <= c
    ]
    return found[-1] if found else None


sids = st.tuples(*[st.integers(0, CODES - 1)] * 3)
befores = st.sampled_from([[], [BEGIN], [THINK, HMM, DONE], [THINK, HMM, HMM, DONE, BEGIN]])
afters = st.sampled_from([[], [END], [EOS], [END, EOS]])


@st.composite
def groups(draw, fewest=1):
    """A prompt's ``(uid, prompt ids, target or None, [(response ids, reward)])``, several of them."""
    found, width = [], 12
    for number in range(draw(st.integers(fewest, 4))):
        target = draw(st.none() | sids)
        answers = []
        for _ in range(draw(st.integers(1, 5))):
            sid = draw(sids if target is None else sids | st.just(target))
            response = draw(befores) + codes(sid) + draw(afters)
            response = draw(st.sampled_from([response, response, [HMM, EOS]]))
            hit = float(target is not None and read(response) == target)
            answers.append((response, draw(st.sampled_from([hit, hit, hit, 0.0, -1.0, 0.25]))))
        assert all(len(response) <= width for response, _ in answers)
        found.append((f"u{number}", draw(st.lists(st.just(HMM), min_size=1, max_size=3)), target, answers))
    return found


def proto(groups, order=None, width=12, prompt_width=4, extra=()):
    """A DataProto as verl's agent loops make it: prompts padded on the left, responses on the right."""
    rows = [(uid, prompt, target, *answer) for uid, prompt, target, answers in groups for answer in answers]
    rows = [rows[i] for i in order] if order is not None else rows
    ids = T([[PAD] * (prompt_width - len(p)) + p + r + [PAD] * (width - len(r)) for _, p, _, r, _ in rows])
    mask = T(
        [[0] * (prompt_width - len(p)) + [1] * (len(p) + len(r)) + [0] * (width - len(r)) for _, p, _, r, _ in rows]
    )
    scores = torch.zeros(len(rows), width)
    for row, (*_, response, reward) in enumerate(rows):
        scores[row, len(response) - 1] = reward
    tensors = {
        "prompts": ids[:, :prompt_width],
        "responses": ids[:, prompt_width:],
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        "response_mask": mask[:, prompt_width:].clone(),
        "rm_scores": scores,
    }
    tensors |= {name: torch.zeros(len(rows), width) for name in extra}
    truths = np.empty(len(rows), dtype=object)
    truths[:] = [{"ground_truth": "" if target is None else text(target)} for _, _, target, *_ in rows]
    return DataProto(
        batch=TensorDict(tensors, batch_size=len(rows)),
        non_tensor_batch={
            "uid": np.array([uid for uid, *_ in rows], dtype=object),
            "reward_model": truths,
            "row": np.arange(len(rows)),
            "segment": np.array(["new" if len(prompt) == 1 else "old" for _, prompt, *_ in rows], dtype=object),
        },
        meta_info={"global_token_num": mask.sum(1).tolist()},
    )


def cut(groups, order=None, **options):
    return recast_batch(proto(groups, order), TOKENIZER, sid_template="<s_a_{}><s_b_{}><s_c_{}>", **options)


def rows_of(batch, prompt_width=4):
    """``(uid, response ids, reward, how many tokens count)`` of each row."""
    lengths = batch.batch["attention_mask"][:, prompt_width:].sum(1).tolist()
    return [
        (uid, response[:n].tolist(), scores.sum().item(), int(mask.sum()))
        for uid, response, n, scores, mask in zip(
            batch.non_tensor_batch["uid"],
            batch.batch["responses"],
            lengths,
            batch.batch["rm_scores"],
            batch.batch["response_mask"],
        )
    ]


# ---- recast_batch


@given(groups(), st.randoms(use_true_random=False), st.integers(0, 3))
def test_the_order_of_the_rows_does_not_matter(drawn, shuffle, step):
    order = list(range(sum(len(answers) for *_, answers in drawn)))
    shuffle.shuffle(order)
    one, other = cut(drawn, step=step), cut(drawn, order, step=step)
    pairs = [{uid: [row for row in rows_of(batch) if row[0] == uid] for uid, *_ in drawn} for batch in (one, other)]
    skipped = {uid for uid, its in pairs[0].items() if not any(counted for *_, counted in its)}
    for uid, its in pairs[0].items():
        if uid not in skipped and any(counted == len(response) for _, response, _, counted in its):
            assert its == pairs[1][uid]
    assert one.meta_info["recast"] == pytest.approx(other.meta_info["recast"])


@given(groups(), st.sampled_from(["recast", "contrast"]))
def test_each_prompt_keeps_two_rows_and_what_has_no_pair_teaches_nothing(drawn, arm):
    batch = cut(drawn, arm=arm)
    assert [row[0] for row in rows_of(batch)].count(drawn[0][0]) == 2 and len(batch) == 2 * len(drawn)
    paired = 0
    for uid, *_ in drawn:
        first, second = (row for row in rows_of(batch) if row[0] == uid)
        if first[2] > 0:  # a pair
            paired += 1
            assert second[2] <= 0 and min(first[3], second[3]) > 0
        else:
            assert first[2] == second[2] == 0
    counted = [counted for *_, counted in rows_of(batch)]
    if paired:
        assert counted.count(0) == 2 * (len(drawn) - paired)
    else:  # a loss over no token is NaN in verl: one token stays (of a group of one, in both copies)
        assert max(counted) == 1 and sum(counted) <= 2
    advantages, _ = core_algos.get_adv_estimator_fn("recast")(
        token_level_rewards=batch.batch["rm_scores"],
        response_mask=batch.batch["response_mask"],
        index=batch.non_tensor_batch["uid"],
    )
    rows = (advantages != 0).any(dim=1)
    assert rows.sum() == 2 * paired


@given(groups())
def test_a_group_with_a_hit_is_left_as_it_was_sampled(drawn):
    batch, sampled = cut(drawn), proto(drawn)
    for row, number in enumerate(batch.non_tensor_batch["row"]):
        uid = batch.non_tensor_batch["uid"][row]
        answers = next(answers for u, _, _, answers in drawn if u == uid)
        if (
            any(reward > 0 for _, reward in answers)
            and batch.batch["response_mask"][row].any()
            and batch.batch["rm_scores"].any()
        ):
            for name in ("responses", "input_ids", "attention_mask", "position_ids"):
                assert torch.equal(batch.batch[name][row], sampled.batch[name][number]), name


@given(groups())
def test_an_anchor_names_its_target_and_what_stands_around_it_stays(drawn):
    batch, sampled = cut(drawn), proto(drawn)
    for row, number in enumerate(batch.non_tensor_batch["row"]):
        uid, response, reward, counted = rows_of(batch)[row]
        _, prompt, target, answers = next(group for group in drawn if group[0] == uid)
        repaired = all(reward <= 0 for _, reward in answers) and reward == 1
        if not repaired:
            continue
        before = rows_of(sampled)[number][1]
        assert read(response) == target and counted == len(response)
        if read(before):
            at = before.index(codes(read(before))[0])
            assert response[:at] == before[:at]
            if any(r[-1] == EOS for *_, its in drawn for r, _ in its):
                assert response[-1] == EOS
            else:
                assert response == before[:at] + codes(target) + before[at + 3 :]
        tensors, n = batch.batch[row], len(prompt) + len(response)
        assert tensors["input_ids"][4 - len(prompt) :][:n].tolist() == prompt + response
        assert tensors["position_ids"][4 - len(prompt) :][:n].tolist() == list(range(n))
        assert tensors["attention_mask"].tolist() == [0] * (4 - len(prompt)) + [1] * n + [0] * (
            16 - 4 + len(prompt) - n
        )
        assert tensors["rm_scores"].nonzero().tolist() == [[len(response) - 1]]


@given(groups(), st.sampled_from([None, 0.2]), st.booleans())
def test_the_pair_and_its_advantages_are_the_references(drawn, negative_weight, branch_point):
    """Bit for bit, where the choice does not hang on ties and no rows contradict each other."""
    batch = cut(drawn, negative_weight=negative_weight, branch_point=branch_point)
    assume(batch.meta_info["recast"]["recast/contradicted"] == 0)
    advantages, returns = core_algos.get_adv_estimator_fn("recast")(
        token_level_rewards=batch.batch["rm_scores"],
        response_mask=batch.batch["response_mask"],
        index=batch.non_tensor_batch["uid"],
    )
    assert torch.equal(advantages, returns)
    for uid, _, target, answers in drawn:
        named = pad_sids([[read(ids)] if read(ids) else [] for ids, _ in answers], 3)[None]
        rewards = T([[reward for _, reward in answers]])
        scores = reference.structural_scores(named, pad_sids([[target] if target else []], 3))
        expected = reference.recast(rewards, scores, T([target is not None]), negative_weight=negative_weight)
        mine = [row for row in range(len(batch)) if batch.non_tensor_batch["uid"][row] == uid]
        if expected.positive < 0:
            assert not advantages[mine].any()
            continue
        for row, chosen in zip(mine, (expected.positive, expected.negative)):
            value = expected.advantages[0, chosen].item()
            assert (advantages[row] == value * batch.batch["response_mask"][row]).all()
        negative = rows_of(batch)[mine[1]]
        if not branch_point:
            assert negative[3] == len(negative[1])
        else:
            positive = rows_of(batch)[mine[0]][1]
            shared = [a == b for a, b in zip(positive, negative[1])] + [False]
            assert negative[3] == len(negative[1]) - shared.index(False)


@given(groups(fewest=2), st.data())
def test_a_dataproto_can_still_be_reordered_split_and_joined(drawn, data):
    batch = cut(drawn)
    whole = rows_of(batch)
    assert batch.meta_info["global_token_num"] == batch.batch["attention_mask"].sum(1).tolist()
    assert [part for chunk in batch.chunk(len(drawn)) for part in rows_of(chunk)] == whole
    assert [part for piece in batch.split(2) for part in rows_of(piece)] == whole
    assert rows_of(DataProto.concat(batch.chunk(2))) == whole
    order = data.draw(st.permutations(range(len(batch))))
    batch.reorder(T(order))
    assert rows_of(batch) == [whole[i] for i in order]
    assert batch.non_tensor_batch["score"].tolist() == [row[2] for row in rows_of(batch)]


@given(groups())
def test_metrics_are_shares_of_the_groups(drawn):
    metrics = cut(drawn, segment_key="segment").meta_info["recast"]
    hits = [sum(reward > 0 for _, reward in answers) for *_, answers in drawn]
    shares = [metrics[f"recast/{name}"] for name in ("all_zero", "single_hit", "multi_hit")]
    assert shares == pytest.approx([sum(min(h, 2) == k for h in hits) / len(hits) for k in range(3)])
    rewards = [reward for *_, answers in drawn for _, reward in answers]
    assert metrics["recast/reward_sampled"] == pytest.approx(sum(rewards) / len(rewards), abs=1e-6)
    assert (metrics["recast/rows_in"], metrics["recast/rows_out"]) == (len(rewards), 2 * len(drawn))
    assert metrics["recast/repaired"] <= metrics["recast/all_zero"]
    sizes = {name: [len(prompt) == 1 for _, prompt, *_ in drawn].count(name == "new") for name in ("new", "old")}
    parts = [metrics[f"recast/repaired/{name}"] * size for name, size in sizes.items() if size]
    assert sum(parts) == pytest.approx(metrics["recast/repaired"] * len(drawn))


@given(groups())
def test_repair_alone_keeps_all_rows_with_the_advantages_of_the_group(drawn):
    batch = cut(drawn, arm="repair")
    assert batch.non_tensor_batch["row"].tolist() == list(range(len(batch)))
    advantages, _ = core_algos.get_adv_estimator_fn("recast")(
        token_level_rewards=batch.batch["rm_scores"],
        response_mask=batch.batch["response_mask"],
        index=batch.non_tensor_batch["uid"],
    )
    for uid in {uid for uid, *_ in drawn}:
        mine = T([row for row in range(len(batch)) if batch.non_tensor_batch["uid"][row] == uid])
        rewards = batch.batch["rm_scores"][mine].sum(1)
        assert torch.allclose(advantages[mine, 0], reference.group_advantages(rewards[None])[0], atol=1e-5)


@given(groups(), sids)
def test_an_anchor_of_ones_own_may_be_longer_or_shorter(drawn, other):
    long = [THINK, HMM, HMM, HMM, DONE, BEGIN]
    batch = cut(drawn, anchor=lambda response, sid, tokenizer: long + codes(sid))
    for uid, response, reward, _ in rows_of(batch):
        _, _, target, answers = next(group for group in drawn if group[0] == uid)
        if reward == 1 and all(reward <= 0 for _, reward in answers):
            assert response == long + codes(target)


ALL_ZERO = [("u0", [HMM], (1, 2, 3), [(codes((1, 2, 0)), 0.0), (codes((0, 0, 0)), 0.0)])]


@pytest.mark.parametrize(
    "options, what",
    [
        ({"anchor": lambda *_: [HMM]}, "anchor: expected an answer that names <s_a_1><s_b_2><s_c_3>"),
        ({"anchor": lambda response, sid, _: [HMM] * 12 + codes(sid)}, "anchor: 15 tokens"),
        ({"arm": "recasted"}, "arm: expected one of recast"),
        ({"branch_point": True, "arm": "repair"}, "branch_point: needs pairs"),
        ({"sid_template": "a{}"}, "sid_template"),
        ({"rewards": T([0.0, torch.nan])}, "rewards"),
        ({"weight": -1.0}, "weight"),
    ],
)
def test_what_cannot_work_is_refused_and_the_batch_is_as_it_was(options, what):
    batch, before = proto(ALL_ZERO), proto(ALL_ZERO)
    with pytest.raises(ValueError, match=re.escape(what)):
        recast_batch(batch, TOKENIZER, **options)
    assert (
        all(torch.equal(batch.batch[name], x) for name, x in before.batch.items()) and "recast" not in batch.meta_info
    )


def test_a_template_that_no_ground_truth_follows_is_told():
    with pytest.warns(UserWarning, match="sid_template='<a_{}><b_{}>': no ground truth .*<s_a_1>"):
        recast_batch(proto(ALL_ZERO), TOKENIZER, sid_template="<a_{}><b_{}>")


@pytest.mark.parametrize("name", sorted(OF_SAMPLES))
def test_what_was_computed_for_sampled_answers_is_refused(name):
    with pytest.raises(ValueError, match=name):
        recast_batch(proto(ALL_ZERO, extra=[name]), TOKENIZER)


def test_answers_with_tokens_of_a_tool_and_batches_without_rewards_are_refused():
    batch = proto(ALL_ZERO)
    batch.batch["response_mask"][:, 0] = 0
    with pytest.raises(ValueError, match="response_mask: .*tool"):
        recast_batch(batch, TOKENIZER)
    batch = proto(ALL_ZERO)
    batch.batch = batch.batch.exclude("rm_scores")
    with pytest.raises(ValueError, match="rm_scores"):
        recast_batch(batch, TOKENIZER)
    assert len(recast_batch(batch, TOKENIZER, rewards=T([0.0, 0.0]))) == 2
    batch = proto(ALL_ZERO)
    batch.non_tensor_batch["reward_model"][0] = {"truth": "x"}
    with pytest.raises(ValueError, match="reward_model: expected .*'ground_truth'"):
        recast_batch(batch, TOKENIZER)


def test_positions_of_several_kinds_go_on_from_the_prompts():
    batch = proto(ALL_ZERO)
    batch.batch["position_ids"] = torch.stack([batch.batch["position_ids"]] * 3, dim=1) + T([0, 5, 9])[:, None]
    recast_batch(batch, TOKENIZER)
    assert batch.batch["position_ids"][0, :, 3:7].tolist() == [[k, k + 1, k + 2, k + 3] for k in (0, 5, 9)]


def test_the_estimator_says_where_nothing_was_left():
    with pytest.raises(ValueError, match="nothing was left for prompt 'of another process'"):
        core_algos.get_adv_estimator_fn("recast")(
            token_level_rewards=torch.ones(1, 2), response_mask=torch.ones(1, 2), index=["of another process"]
        )


REGISTERED = "from verl.trainer.ppo import core_algos; print(core_algos.get_adv_estimator_fn('recast').__module__)"


@pytest.mark.parametrize(
    "program, answer",
    [
        (f"import verl; {REGISTERED}", "recast_ref.trainers.verl"),
        ("import sys, recast_ref, recast_ref.trainers.pairs; print('verl' in sys.modules)", "False"),
    ],
)
def test_importing_verl_registers_the_estimator_and_recast_ref_imports_no_verl(program, answer):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=1800, check=False)
    assert done.stdout.split()[-1:] == [answer], done.stderr


# ---- the trainer's configuration

V1 = "recast_ref.trainers.verl_v1"
OVERRIDES = [
    f"trainer.v1.sampler.custom_sampler.path=pkg://{V1}",
    "trainer.v1.sampler.custom_sampler.name=ReCastReplayBuffer",
    "+trainer.v1.sampler.sampler_kwargs={search_width: 8, poll_interval: 0.01}",
    f"+actor_rollout_ref.rollout.agent.agent_loop_manager_class={V1}.WideAgentLoopManager",
    "actor_rollout_ref.rollout.n=2",
    "actor_rollout_ref.rollout.calculate_log_probs=False",
    "algorithm.adv_estimator=recast",
]


def configured(*more, overrides=OVERRIDES):
    """verl's own configuration with overrides, as its ``main_ppo`` makes it."""
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=[*overrides, "actor_rollout_ref.rollout.name=hf", *more])


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("<[^>]*>|hmm"), "isolated")
    backend.decoder = decoders.Fuse()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    return folder


def sampler(tokenizer_folder, *more, name="ReCastReplayBuffer", mode="sync", refill=None):
    """The sampler as verl's trainer makes it."""
    from recast_ref.trainers import verl_v1

    config = configured(f"actor_rollout_ref.model.path={tokenizer_folder}", "data.max_response_length=12", *more)
    return getattr(verl_v1, name)(
        trainer_mode=mode,
        trainer_config=config.trainer.v1.get(mode, {}),
        max_off_policy_threshold=config.trainer.v1.sampler.max_off_policy_threshold,
        max_off_policy_strategy=config.trainer.v1.sampler.max_off_policy_strategy,
        sampler_kwargs=config.trainer.v1.sampler.sampler_kwargs,
        refill_fn=refill,
    )


REFUSED = [
    ("actor_rollout_ref.rollout.n=8", "rollout.n=8: set 2, the width of the update"),
    ("trainer.v1.sampler.sampler_kwargs.search_width=1", "search_width: expected"),
    ("~trainer.v1.sampler.sampler_kwargs.search_width", "search_width: expected"),
    ("+trainer.v1.sampler.sampler_kwargs.arm=best", "arm: expected one of recast"),
    ("+trainer.v1.sampler.sampler_kwargs.arm=repair", "rollout.n=2: set .*search_width=8"),
    ("+trainer.v1.sampler.sampler_kwargs.wieght=1", "unknown .'wieght'., expected of"),
    ("+trainer.v1.sampler.sampler_kwargs.negative_weight=-1", "negative_weight: expected"),
    ("+trainer.v1.sampler.sampler_kwargs.catalogue=items.txt", "catalogue: .*collapses"),
    (
        "~actor_rollout_ref.rollout.agent.agent_loop_manager_class",
        "agent_loop_manager_class: nothing would search 8 wide",
    ),
    ("algorithm.adv_estimator=grpo", "adv_estimator=grpo: set recast"),
    ("algorithm.filter_groups.enable=True", "filter_groups.enable: it drops all-zero groups"),
    ("algorithm.use_kl_in_reward=True", "use_kl_in_reward"),
    ("actor_rollout_ref.rollout.calculate_log_probs=True", "calculate_log_probs: an anchor was not sampled"),
    ("algorithm.rollout_correction.bypass_mode=True", "rollout_correction.bypass_mode: .*an anchor was not sampled"),
    ("algorithm.rollout_correction.rollout_is=token", "rollout_correction.rollout_is: .*an anchor was not sampled"),
    ("reward.reward_model.enable=True", "a colocated reward model scores after the sampler"),
    ("+actor_rollout_ref.rollout.engine_kwargs.vllm.logits_processors=[x]", "engine_kwargs.vllm: .*collapses"),
]


@pytest.mark.parametrize(
    "override, what",
    [
        ("algorithm.filter_groups.enable=True", "verl filters in its own sampler only"),
        ("algorithm.adv_estimator=recast", "adv_estimator=recast: arm=grpo chooses no pairs"),
    ],
)
def test_plain_groups_refuse_what_would_do_nothing_or_fail_later(override, what, tokenizer_folder):
    whole = ["actor_rollout_ref.rollout.n=8", "+trainer.v1.sampler.sampler_kwargs.arm=grpo"]
    with pytest.raises(ValueError, match=what):
        sampler(tokenizer_folder, *whole, "algorithm.adv_estimator=grpo", override)


@pytest.mark.parametrize("mode, mini_batch", [("sync", 1024), ("colocate_async", 1024), ("separate_async", 256)])
def test_a_warning_says_where_a_pair_can_be_parted_and_only_there(mode, mini_batch, tokenizer_folder):
    """separate_async takes a batch in ``parameter_sync_step`` updates, 4 by default."""
    name = "ReCastReplayBuffer" + "Async" * (mode != "sync")
    key = "actor_rollout_ref.actor.ppo_mini_batch_size"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="actor_rollout_ref")
        sampler(tokenizer_folder, f"{key}={mini_batch}", name=name, mode=mode)
    with pytest.warns(UserWarning, match=f"different optimizer steps; set {mini_batch}"):
        sampler(tokenizer_folder, f"{key}={mini_batch // 2}", name=name, mode=mode)


@pytest.mark.parametrize("override, what", REFUSED, ids=[override for override, _ in REFUSED])
def test_settings_that_cannot_work_are_refused_before_anything_starts(override, what, tokenizer_folder):
    with pytest.raises(ValueError, match=what):
        sampler(tokenizer_folder, override)


def test_the_settings_that_work_do_and_the_sampler_fits_the_trainer(tokenizer_folder):
    with pytest.warns(UserWarning, match="different optimizer steps"):  # verl's defaults: 1024 prompts in steps of 256
        sampler(tokenizer_folder)
    sampler(tokenizer_folder, "actor_rollout_ref.rollout.n=8", "+trainer.v1.sampler.sampler_kwargs.arm=repair")
    sampler(
        tokenizer_folder,
        "actor_rollout_ref.rollout.n=8",
        "+trainer.v1.sampler.sampler_kwargs.arm=grpo",
        "algorithm.adv_estimator=grpo",
    )
    sampler(tokenizer_folder, name="ReCastReplayBufferAsync", mode="colocate_async")
    with pytest.raises(ValueError, match="custom_sampler.name=ReCastReplayBufferAsync"):
        sampler(tokenizer_folder, mode="separate_async")
    with pytest.raises(ValueError, match="custom_sampler.name=ReCastReplayBuffer, not"):
        sampler(tokenizer_folder, name="ReCastReplayBufferAsync")


@pytest.mark.parametrize(
    "version, fits", [("0.9.0", False), ("0.9.1", True), ("0.9.2.post1", True), ("0.10.0.dev0", False)]
)
def test_other_versions_of_verl_are_refused(version, fits, monkeypatch):
    monkeypatch.setattr(verl, "__version__", version)
    spec = importlib.util.find_spec(V1)
    with nullcontext() if fits else pytest.raises(ImportError, match=f"tested with verl>=.*this is {version}"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize("gone", ["custom_sampler.name", "sampler_kwargs.search_width"])
def test_a_wide_search_without_a_sampler_that_cuts_it_is_refused(gone):
    from recast_ref.trainers.verl_v1 import WideAgentLoopManager

    config = configured(f"~trainer.v1.sampler.{gone}" if "kwargs" in gone else f"trainer.v1.sampler.{gone}=null")
    with pytest.raises(ValueError, match="a sampler must cut them"):
        WideAgentLoopManager(config, llm_client=None)


# ---- the sampler on a real TransferQueue


@pytest.fixture(scope="module")
def queue():
    """TransferQueue on a Ray of its own, without a trainer."""
    import ray
    import transfer_queue as tq

    folder = tempfile.mkdtemp(prefix="rq")  # Ray's sockets need a short path
    ray.init(
        address="local",  # whatever else runs here
        num_cpus=2,
        object_store_memory=100_000_000,
        include_dashboard=False,
        _temp_dir=folder,
        log_to_driver=False,
    )
    storage = {"total_storage_size": 10_000, "num_data_storage_units": 1}
    try:
        tq.init(OmegaConf.create({"backend": {"storage_backend": "SimpleStorage", "SimpleStorage": storage}}))
        yield tq
        tq.close()
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def put(tq, drawn, partition="train", step=1, without=None):
    """Groups as verl's agent loops put them."""
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    for uid, prompt, target, answers in drawn:
        fields, tags = [], []
        for response, reward in answers:
            n = len(response)
            fields.append(
                {
                    "prompts": T(prompt),
                    "responses": T(response),
                    "response_mask": torch.ones(n, dtype=torch.int64),
                    "loss_mask": torch.ones(n, dtype=torch.int64),
                    "input_ids": T(prompt + response),
                    "position_ids": torch.arange(len(prompt) + n),
                    "rm_scores": torch.nn.functional.pad(T([reward]), (n - 1, 0)),
                    "reward_model": {"ground_truth": "" if target is None else text(target), "style": "rule"},
                    "uid": uid,
                    "segment": "new" if len(prompt) == 1 else "old",
                }
            )
            fields[-1].pop(without, None)
            lengths = {"prompt_len": len(prompt), "response_len": n, "seq_len": len(prompt) + n}
            tags.append({"status": "success", "global_steps": step, **lengths})
        tq.kv_batch_put(
            keys=[f"{uid}_{i}_0" for i in range(len(answers))],
            partition_id=partition,
            fields=list_of_dict_to_tensordict(fields),
            tags=tags,
        )
        done = {"is_prompt": True, "status": "finished", "global_steps": step}
        tq.kv_put(key=uid, partition_id=partition, tag=done)


def clear(tq):
    for partition, keys in (tq.kv_list() or {}).items():
        if keys:
            tq.kv_clear(keys=list(keys), partition_id=partition)


NARROW = "trainer.v1.sampler.sampler_kwargs.search_width=2"  # groups of any size
TEMPLATE = "+trainer.v1.sampler.sampler_kwargs.sid_template='<s_a_{}><s_b_{}><s_c_{}>'"


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(groups(), st.integers(1, 5), st.sampled_from([("", "sync"), ("Async", "colocate_async")]))
@pytest.mark.filterwarnings("ignore:actor_rollout_ref")
def test_the_sampler_hands_on_the_pairs_that_recast_batch_makes(queue, tokenizer_folder, drawn, step, kind):
    """From a real TransferQueue, whatever order the rows are in there; what is dropped is cleared."""
    clear(queue)
    put(queue, drawn, step=step)
    options = [TEMPLATE, NARROW, "+trainer.v1.sampler.sampler_kwargs.segment_key=segment"]
    mine = sampler(tokenizer_folder, *options, name=f"ReCastReplayBuffer{kind[0]}", mode=kind[1])
    batch, metrics = mine.sample(global_steps=step, partition_id="train", batch_size=len(drawn))
    expected = cut(drawn, step=step, segment_key="segment")
    data = queue.kv_batch_get(keys=batch.keys, partition_id="train")
    got = {}
    for key, response, scores, mask, loss_mask, ids, positions, tag in zip(
        batch.keys,
        *(
            data[name].unbind()
            for name in ("responses", "rm_scores", "response_mask", "loss_mask", "input_ids", "position_ids")
        ),
        batch.tags,
    ):
        got.setdefault(key.split("_")[0], []).append((response.tolist(), scores.sum().item()))
        assert torch.equal(ids[-len(response) :], response) and positions.tolist() == list(range(len(ids)))
        assert (tag["response_len"], tag["seq_len"]) == (len(response), len(ids))
        assert len(scores) == len(response) and torch.equal(mask, loss_mask)
        assert mask.all() or metrics["recast/skipped"] == 1
    paired = {}
    for uid, response, reward, counted in rows_of(expected):
        if counted == len(response):
            paired.setdefault(uid, []).append((response, reward))
    if metrics["recast/skipped"] < 1:
        assert got == paired
        assert metrics["recast/rows_out"] == len(batch) == 2 * len(paired)
    else:
        assert int(data["response_mask"].unbind()[0].sum()) == 1
    same = {name: value for name, value in expected.meta_info["recast"].items() if name != "recast/rows_out"}
    assert {name: metrics[name] for name in same} == pytest.approx(same)
    assert set(queue.kv_list()["train"]) == set(batch.keys)


@pytest.mark.filterwarnings("ignore:actor_rollout_ref")
def test_validation_and_plain_groups_pass_as_they_are(queue, tokenizer_folder):
    clear(queue)
    put(queue, ALL_ZERO, partition="val")
    batch, metrics = sampler(tokenizer_folder).sample(global_steps=1, partition_id="val", batch_size=1)
    assert len(batch) == 2 and not metrics
    clear(queue)
    put(queue, ALL_ZERO)
    whole = [
        "actor_rollout_ref.rollout.n=8",
        "+trainer.v1.sampler.sampler_kwargs.arm=grpo",
        "algorithm.adv_estimator=grpo",
    ]
    batch, metrics = sampler(tokenizer_folder, *whole).sample(global_steps=1, partition_id="train", batch_size=1)
    assert len(batch) == 2 and metrics["recast/all_zero"] == 1 and "recast/repaired" not in metrics


@pytest.mark.filterwarnings("ignore:actor_rollout_ref")
@pytest.mark.parametrize("name", ["rm_scores", "reward_model", "segment"])
def test_a_field_that_is_missing_is_named(queue, tokenizer_folder, name):
    clear(queue)
    put(queue, ALL_ZERO, partition=f"without {name}", without=name)
    mine = sampler(tokenizer_folder, NARROW, "+trainer.v1.sampler.sampler_kwargs.segment_key=segment")
    with pytest.raises(ValueError, match=f"{name} is not in TransferQueue"):
        mine.sample(global_steps=1, partition_id=f"without {name}", batch_size=1)


@pytest.mark.filterwarnings("ignore:actor_rollout_ref")
def test_a_search_that_is_as_narrow_as_the_update_is_refused(queue, tokenizer_folder):
    """As where another agent-loop manager samples ``rollout.n`` answers."""
    clear(queue)
    put(queue, ALL_ZERO)
    with pytest.raises(ValueError, match="search_width=8, and the groups have 2 answers: set"):
        sampler(tokenizer_folder).sample(global_steps=1, partition_id="train", batch_size=1)


@pytest.mark.filterwarnings("ignore:actor_rollout_ref")
def test_groups_without_an_answer_are_sampled_anew_where_verl_would(queue, tokenizer_folder):
    clear(queue)
    queue.kv_put(key="lost", partition_id="train", tag={"is_prompt": True, "status": "failure", "global_steps": 1})
    asked = []

    def refill(count):
        asked.append(count)
        put(queue, ALL_ZERO)

    mine = sampler(tokenizer_folder, NARROW, "trainer.v1.sampler.sync_refill_failed_groups=True", refill=refill)
    batch, metrics = mine.sample(global_steps=1, partition_id="train", batch_size=1)
    assert asked == [1] and len(batch) == 2 and metrics["recast/repaired"] == 1
