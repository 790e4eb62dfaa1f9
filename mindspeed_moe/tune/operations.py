"""What one operation costs the host on this machine: the unit prices behind an estimate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from mindspeed_moe.bench.devices import DEVICES
from mindspeed_moe.bench.timing import interleave, nothing, spread
from mindspeed_moe.config.tuned import OperationCosts

_ROUNDS = 200
_WORDS = 512


def measure_operations(device: str, group: Any, seed: int = 0) -> OperationCosts:
    """Time single operations on an idle device, in turns; collective over `group`, so all its ranks must call it.

    group: None for the host's stand-in in a simulated group, a copy. On the host nothing is recorded or waited for,
    and a copy is that of a few words.
    """
    place = DEVICES[device]
    streams: Any = place.streams() if place.streams is not None else None
    source = torch.zeros(_WORDS, dtype=torch.int32, device=device)
    target = torch.zeros(_WORDS, dtype=torch.int32, pin_memory=streams is not None)
    gathered = torch.zeros(_WORDS * (dist.get_world_size(group) if group else 1), dtype=torch.int32, device=device)
    table = source.view(-1, 8)

    def exchange() -> None:
        if group is None:
            gathered.copy_(source)
        else:
            dist.all_gather_into_tensor(gathered, source, group=group)

    work: dict[str, Callable[[], object]] = {
        "kernel": lambda: table.sum(dim=1),
        "collective": exchange,
        "copy": lambda: target.copy_(source, non_blocking=True),
    }
    if streams is not None:
        event = streams.Event()
        event.record()
        work["record"] = event.record
        work["wait"] = event.synchronize
    # Every operation begins on an idle device, so that none pays for a queue; a wait finds its event done.
    taken = interleave(work, _ROUNDS, seed, nothing if streams is None else streams.synchronize)
    medians = {name: round(spread(durations).p50, 3) for name, durations in taken.items()}
    return OperationCosts.model_validate({"record": 0.0, "wait": 0.0, **medians})
