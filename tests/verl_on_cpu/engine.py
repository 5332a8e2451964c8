"""verl's FSDP2 engine on gloo, with two things added: log-probs under the catalogue, and a note of what a pass saw."""

import copy

from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from .catalogue import only_the_catalogue, trie_of
from .notes import note, of_rows


@EngineRegistry.register(model_type="language_model", backend="fsdp2", device="cpu")
class CPUEngine(FSDPEngineWithLMHead):
    def __init__(self, model_config, *args, **kwargs):
        super().__init__(model_config, *args, **kwargs)
        path = model_config.override_config.get("catalogue")
        self.trie = trie_of(path, model_config.tokenizer) if path else None

    def _build_fsdp_module(self, module):
        # For a model that only runs forward verl takes CPUOffloadPolicy(pin_memory=True), which needs an accelerator.
        config = self.engine_config
        self.engine_config = copy.copy(config)
        object.__setattr__(self.engine_config, "forward_only", False)
        try:
            return super()._build_fsdp_module(module)
        finally:
            self.engine_config = config

    def prepare_model_outputs(self, output, output_args, micro_batch, logits_processor_func):
        """All of verl's arithmetic (temperature, log-probs, entropies), from logits that keep to the catalogue."""
        if self.trie:
            output.logits = only_the_catalogue(self.trie, output.logits, micro_batch)
        return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)

    def forward_backward_batch(self, data, loss_function, forward_only=False):
        kind = "update" if not forward_only else "ref" if self.engine_config.forward_only else "old"
        note(kind=kind, rank=self.rank, **of_rows(data))
        return super().forward_backward_batch(data, loss_function, forward_only)
