"""verl's own trainer on a machine without an accelerator: ``python tests/verl_on_cpu recast`` in the checkout.

``python -m verl.trainer.main_ppo`` as it is installed (V1 trainer, Ray, TransferQueue, FSDP2, agent loop, rewards,
weight sync, checkpoints, validation), with nothing patched. What a GPU machine has and this one has not comes through
verl's registries:

1. ``cpu``      the platform: torch's CPU as verl's device
2. ``engine``   verl's FSDP2 engine on gloo; log-probs under a catalogue; what each pass saw
3. ``rollout``  answers from transformers' model under the same catalogue: samples, or the beams of a search
4. ``reward``   1 for an answer that names the target
5. ``world``    a tiny Qwen3, its tokenizer and next items, made from nothing
6. ``run``      the overrides, and how a run is started

verl imports ``cpu`` in every process (``VERL_USE_EXTERNAL_MODULES``), and ``engine`` and ``rollout`` with the model
(``actor_rollout_ref.model.external_lib``). ``catalogue`` is one option, of the model, for the sampler and for every
log-prob::

    +actor_rollout_ref.model.override_config.catalogue=/path/catalogue.txt     a SID a line

With it, old, reference and new log-probs, their entropies, and those of the rollout are over the answers that the
catalogue has; without it, all of them are over the whole vocabulary. A sampler that keeps to a catalogue beside
log-probs that do not would teach the policy to leave it.

Written against verl 0.9.1. Two names in it are private: the adapter's half of the rollout registry
(``_ROLLOUT_REGISTRY``, which has no ``register``), and ``FSDPEngine._build_fsdp_module`` (the reference model's
parameters would be pinned, which takes an accelerator). And one thing hangs on the order of two lines of verl's
``initialize_global_process_group_ray``, see ``cpu``.
"""
