"""A world of one process, and Megatron's parallel state in it: what simulated groups stand on."""

from __future__ import annotations

import contextlib
import inspect
import tempfile
from collections.abc import Iterator

import torch.distributed as dist

from mindspeed_moe.bench.devices import BenchDevice
from mindspeed_moe.bench.megatron import parallel_state
from mindspeed_moe.errors import BenchError

_GLOO = "create_gloo_process_groups"


@contextlib.contextmanager
def one_process_world(device: BenchDevice) -> Iterator[None]:
    """Start the device's backend with one rank, and Megatron's groups; both end with the context.

    Raises BenchError when the process belongs to a world already.
    """
    if dist.is_initialized():
        raise BenchError("bench needs a process of its own: torch.distributed is initialised already")
    with tempfile.TemporaryDirectory(prefix="mindspeed-moe-bench-") as folder:
        store = dist.FileStore(f"{folder}/store", 1)  # type: ignore[attr-defined]  # torch exports it without saying so
        dist.init_process_group(device.backend, store=store, rank=0, world_size=1)
        state = parallel_state()
        before = dict(vars(state))
        try:
            # gloo looks up the host's name, which not every machine has; nothing here needs it beside the device's.
            # The oldest releases have no way without it.
            has_choice = _GLOO in inspect.signature(state.initialize_model_parallel).parameters
            state.initialize_model_parallel(**({_GLOO: device.is_host} if has_choice else {}))
            yield
        finally:
            state.destroy_model_parallel()
            vars(state).update(before)  # destroying leaves some names behind
            dist.destroy_process_group()
