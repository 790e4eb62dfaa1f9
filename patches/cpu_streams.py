"""`device: cpu`: Megatron asks torch.cuda for streams, events and the current device; the host has one of each."""

from __future__ import annotations

from typing import Any

import torch

from mindspeed_moe.devices import cpu
from mindspeed_moe.patching import PatchSpec

UNIT = "cpu streams"
_UPSTREAM = "megatron-core asks torch.cuda for these by name, throughout"
_REMOVE = "Megatron asks an accelerator-neutral interface (torch.accelerator) instead of torch.cuda."


def _stand_in(name: str, value: Any, why: str, home: str = "torch.cuda") -> PatchSpec:
    return PatchSpec(
        target=f"torch.cuda.{name}",
        kind="replace",
        build=lambda original, context: value,
        unit=UNIT,
        home=(home,),
        why=why,
        how=f"mindspeed_moe.devices.cpu.{value.__name__}",
        upstream=_UPSTREAM,
        remove_when=_REMOVE,
    )


SPECS = (
    _stand_in("Stream", cpu.HostStream, "Dispatchers make a stream for their copies.", "torch.cuda.streams"),
    _stand_in("Event", cpu.HostEvent, "Dispatchers wait for events of their copies.", "torch.cuda.streams"),
    _stand_in("stream", cpu.stream, "Copies run `with torch.cuda.stream(...)`."),
    _stand_in("current_stream", cpu.current_stream, "The copy stream waits for the current one."),
    _stand_in("current_device", cpu.current_device, "Buffers are made on the current device."),
    _stand_in("set_device", cpu.set_device, "Launch scripts choose a device by local rank."),
    _stand_in("synchronize", cpu.synchronize, "Timers and checkpoints wait for the device."),
    PatchSpec(
        target="torch.Tensor.cuda",
        kind="replace",
        build=lambda original, context: cpu.to_current_device,
        unit=UNIT,
        why="Losses, masks and parameters are moved with `.cuda()`.",
        how="mindspeed_moe.devices.cpu.to_current_device: a tensor on the host is on its device.",
        upstream=_UPSTREAM,
        remove_when=_REMOVE,
    ),
)

assert torch.cuda  # the stand-ins are for names that torch has in every build
