"""The processes of a launch, with a watch over them: what every command that runs under torchrun stands on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from mindspeed_moe.bench.devices import DEVICES
from mindspeed_moe.environment import Environment, joins_processes, local_rank
from mindspeed_moe.errors import BenchError
from mindspeed_moe.world.watch import TUNE, Command, Watch


@contextlib.contextmanager
def joined_world(
    environment: Environment, device: str, limit: timedelta, command: Command = TUNE, patience: timedelta | None = None
) -> Iterator[tuple[Any, Watch]]:
    """Join the launch's processes, or make a world of one; yields the store and the watch over all that follows.

    limit: of a step. command: whose watch it is. patience: of one collective; None for the limit.
    Raises BenchError when the processes do not meet within the limit.
    """
    place = DEVICES[device]
    place.enter(local_rank())
    if joins_processes():
        try:
            dist.init_process_group(place.backend, timeout=patience or limit)
        except RuntimeError as error:
            raise BenchError(
                f"rank {environment.rank}: the {environment.world_size} processes of this launch have not met within "
                f"{(patience or limit).total_seconds():.0f} s: {str(error).splitlines()[0]}"
            ) from error
    else:
        alone = dist.HashStore()  # type: ignore[attr-defined]  # torch exports it without saying so
        dist.init_process_group(place.backend, store=alone, rank=0, world_size=1, timeout=patience or limit)
    store = dist.distributed_c10d._get_default_store()
    # A connection of its own for the watch, where torch has that: a wait in the other one does not block it.
    apart = store.clone() if hasattr(store, "clone") else store
    watch = Watch(apart, environment.rank, environment.world_size, limit, command)
    try:
        with watch.watching():
            yield store, watch
            watch.step("leaving")
            dist.destroy_process_group()
    finally:
        # After a failure the process is about to end. With peers gone, a backend could wait here for ever.
        if dist.is_initialized() and environment.world_size == 1:
            dist.destroy_process_group()
