"""Starts ``python -m verl.trainer.main_ppo`` on a world: the overrides in two lists, and what a run leaves behind."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import world

HERE = Path(__file__).parent
PROMPTS, SEARCH_WIDTH = 8, 8  # of a step, and answers to each

# Whoever has GPUs leaves these out: they are about the machine and about how small the model is.
CPU = [
    "trainer.device=cpu",
    "actor_rollout_ref.model.external_lib=[verl_on_cpu.engine,verl_on_cpu.rollout]",
    "actor_rollout_ref.rollout.name=trie",
    "actor_rollout_ref.rollout.agent.default_agent_loop=session_agent",
    "actor_rollout_ref.rollout.agent.num_workers=1",
    "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
    "actor_rollout_ref.rollout.free_cache_engine=False",
    "actor_rollout_ref.rollout.load_format=auto",
    "actor_rollout_ref.actor.strategy=fsdp2",
    "actor_rollout_ref.ref.strategy=fsdp2",
    "actor_rollout_ref.actor.fsdp_config.model_dtype=fp32",
    "actor_rollout_ref.ref.fsdp_config.model_dtype=fp32",
    "+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32",
    "+actor_rollout_ref.ref.fsdp_config.mixed_precision.param_dtype=fp32",
    "actor_rollout_ref.actor.use_torch_compile=False",
    "actor_rollout_ref.actor.fsdp_config.use_torch_compile=False",
    "actor_rollout_ref.ref.fsdp_config.use_torch_compile=False",
    "actor_rollout_ref.model.use_remove_padding=False",
    "actor_rollout_ref.model.enable_gradient_checkpointing=False",
    "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
    "data.dataloader_num_workers=0",
    "reward.num_workers=1",
    "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
    "transfer_queue.backend.SimpleStorage.total_storage_size=2000",
    "+ray_kwargs.ray_init.address=local",  # a Ray of its own, whatever else runs here
    "+ray_kwargs.ray_init.include_dashboard=False",
    "+ray_kwargs.ray_init.object_store_memory=100000000",
]

# A small GRPO, as one would also have it elsewhere.
GRPO = [
    "algorithm.adv_estimator=grpo",
    "algorithm.use_kl_in_reward=False",
    f"data.train_batch_size={PROMPTS}",
    f"data.max_prompt_length={world.PROMPT_LENGTH}",
    f"data.max_response_length={world.RESPONSE_LENGTH}",
    "data.filter_overlong_prompts=False",
    "data.seed=1",
    "reward.custom_reward_function.path=pkg://verl_on_cpu.reward",
    f"actor_rollout_ref.rollout.n={SEARCH_WIDTH}",
    f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS}",
    "actor_rollout_ref.actor.use_dynamic_bsz=True",  # a micro-batch is so many tokens, and need not divide the rows
    "actor_rollout_ref.actor.use_kl_loss=True",
    "actor_rollout_ref.actor.kl_loss_coef=0.001",
    "actor_rollout_ref.actor.optim.lr=6e-3",
    "trainer.nnodes=1",
    "trainer.total_epochs=100",
    "trainer.val_before_train=False",
    "trainer.test_freq=-1",
    "trainer.save_freq=-1",
    "trainer.resume_mode=disable",
]

# ReCast: nothing but configuration.
RECAST = [
    "trainer.v1.sampler.custom_sampler.path=pkg://recast_ref.trainers.verl_v1",
    "trainer.v1.sampler.custom_sampler.name=ReCastReplayBuffer",
    f"+trainer.v1.sampler.sampler_kwargs={{search_width: {SEARCH_WIDTH}, negative_weight: 0.2}}",
    "+actor_rollout_ref.rollout.agent.agent_loop_manager_class=recast_ref.trainers.verl_v1.WideAgentLoopManager",
    "actor_rollout_ref.rollout.n=2",
    "actor_rollout_ref.rollout.calculate_log_probs=False",  # verl's default is True, and an anchor was not sampled
    "algorithm.adv_estimator=recast",
]

# A step takes about a second here, and verl would look for finished groups every 2 s.
QUICK = {
    "grpo": [
        "trainer.v1.sampler.custom_sampler.path=pkg://verl_on_cpu.rollout",
        "trainer.v1.sampler.custom_sampler.name=QuickReplayBuffer",
    ],
    "recast": ["+trainer.v1.sampler.sampler_kwargs.poll_interval=0.05"],
}
ARMS = {"grpo": [], "recast": RECAST}


class Failed(RuntimeError):
    pass


def train(folder, arm, overrides=(), steps=3, ranks=1, catalogue=True, timeout=1800, tell=None):
    """Train in a world of :func:`~verl_on_cpu.world.make_world`, in another process.

    Args:
        folder: the world's.
        arm: ``"grpo"`` or ``"recast"``.
        overrides: more of verl's, of Hydra's form; the last one counts.
        steps: of training.
        ranks: data-parallel workers.
        catalogue: whether sampler and log-probs keep to the world's.
        timeout: in seconds.
        tell: is called with each step's number and metrics (a dict of verl's names) as soon as they are there.

    What verl prints goes to ``verl.txt`` in the folder, checkpoints to ``checkpoints``.

    Returns:
        ``(metrics, passes)``: the metrics of each step, ``{step: {name: number}}``, and what each pass saw, a list of
        dicts as :mod:`~verl_on_cpu.notes` writes them.

    Raises:
        Failed: verl ended otherwise than well or in time; the end of what it printed is in the message.
    """
    folder = Path(folder).resolve()
    # Ray's sockets lie in its folder, and their paths must stay below 108 characters.
    scratch = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    metrics, passes, output = scratch / "metrics.jsonl", scratch / "passes.jsonl", folder / "verl.txt"
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *CPU, *GRPO, *ARMS[arm], *QUICK[arm]]
    command += [
        f"+ray_kwargs.ray_init._temp_dir={scratch}",
        f"+ray_kwargs.ray_init.num_gpus={ranks}",
        # verl takes three for each rank and one for each process around them; with too few it waits without a word.
        f"ray_kwargs.ray_init.num_cpus={3 * ranks + 5}",
        f"hydra.run.dir={scratch}/hydra",
        "trainer.logger=[console,file]",
        f"trainer.n_gpus_per_node={ranks}",
        f"trainer.total_training_steps={steps}",
        f"data.train_files={folder}/train.parquet",
        f"data.val_files={folder}/test.parquet",
        f"actor_rollout_ref.model.path={folder}/model",
        f"trainer.default_local_dir={folder}/checkpoints",
    ]
    command += [f"+actor_rollout_ref.model.override_config.catalogue={folder}/catalogue.txt"] if catalogue else []
    paths = [str(HERE.parent), str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "PYTHONPATH": os.pathsep.join(paths),
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": "verl_on_cpu.cpu",
        "VERL_FILE_LOGGER_PATH": str(metrics),
        "VERL_ON_CPU_PASSES": str(passes),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    try:
        with open(output, "wb") as file:
            process = subprocess.Popen(
                [*command, *overrides],
                env=environment,
                cwd=scratch,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _wait(process, metrics, time.monotonic() + timeout, tell)
        if process.returncode:
            raise Failed(f"verl ended with {process.returncode}\n" + output.read_text(errors="replace")[-8000:])
        return dict(_lines(metrics)), [json.loads(line) for line in passes.read_text().splitlines()]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def reward_sampled(metrics):
    """The mean reward of the answers that were sampled: of pairs verl's own score would be 0.5 for ever."""
    return metrics["recast/reward_sampled" if "recast/reward_sampled" in metrics else "critic/score/mean"]


def _wait(process, metrics, deadline, tell):
    told = 0
    try:
        while True:
            ended = process.poll() is not None
            for step, values in _lines(metrics)[told:]:
                told += 1
                if tell:
                    tell(step, values)
            if ended:
                return
            if time.monotonic() > deadline:
                raise Failed(f"verl did not end in time; steps done: {told}")
            time.sleep(0.2)
    finally:
        if process.poll() is None:
            # Ray's processes end with the driver; SIGTERM lets it tidy up first.
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _lines(path):
    """``(step, metrics)`` of every whole line in verl's file of metrics."""
    text = path.read_text() if path.exists() else ""
    entries = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [(entry["step"], entry["data"]) for entry in entries]
