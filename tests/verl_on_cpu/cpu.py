"""The platform: torch's CPU as verl's device (``VERL_PLATFORM=cpu``)."""

import os
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


def _nothing(*args, **kwargs):
    return None


def _zero(*args, **kwargs):
    return 0


# What verl asks of torch.cuda; torch.cpu has a part of it.
DEVICE = SimpleNamespace(
    is_available=lambda: True,
    device_count=lambda: 1,
    current_device=torch.cpu.current_device,
    current_stream=torch.cpu.current_stream,
    stream=torch.cpu.stream,
    synchronize=_nothing,
    set_device=_nothing,
    get_device_name=lambda *args: "cpu",
    manual_seed=torch.manual_seed,
    manual_seed_all=torch.manual_seed,
    get_rng_state=torch.get_rng_state,
    set_rng_state=torch.set_rng_state,
    empty_cache=_nothing,
    ipc_collect=_nothing,
    reset_peak_memory_stats=_nothing,
    memory_allocated=_zero,
    memory_reserved=_zero,
    max_memory_allocated=_zero,
    max_memory_reserved=_zero,
    mem_get_info=lambda *args: (0, 0),
)


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """Ray places workers by an accelerator that they hold: it is started with made-up GPUs, one for each rank."""

    device_name = vendor_name = "cpu"
    device_module = DEVICE
    set_device = synchronize = empty_cache = set_allocator_settings = profiler_start = profiler_stop = _nothing
    cudart = _nothing

    def is_available(self):
        return True

    def is_platform_available(self, use_smi_check=False):
        return False  # is asked for by name, and never found by looking around

    def current_device(self):
        return "cpu"  # goes to Tensor.to

    def device_count(self):
        return 1

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_device_capability(self, device_index=0):
        return None, None

    def communication_backend_name(self):
        # verl asks for this to say init_process_group("cpu:gloo,<device>:<answer>"), but only where there is no group
        # yet, and torch refuses a device that is named twice. So the group is made here.
        if "WORLD_SIZE" in os.environ and not torch.distributed.is_initialized():
            torch.distributed.init_process_group(
                "gloo",
                rank=int(os.environ["RANK"]),
                world_size=int(os.environ["WORLD_SIZE"]),
                init_method=os.environ.get("DIST_INIT_METHOD"),
            )
        return "gloo"

    def visible_devices_envvar(self):
        return "CUDA_VISIBLE_DEVICES"

    def nvtx_range(self, msg):
        return nullcontext()

    def ray_resource_name(self):
        return "GPU"

    def ray_noset_envvars(self):
        return []

    def is_ipc_supported(self):
        return False
