"""The job that looks for the plugin's ranges in a profile, and for what they cost when nobody profiles."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any
from unittest import mock

import torch
from torch.autograd import profiler_legacy

import mindspeed_moe
from npu import layer
from npu.counting import WARM_UP, cost_of

EXPERTS = 8
PREFIX = "mindspeed_moe."


def profile(rank: int, device: str, ep: int, streams: list[str]) -> dict[str, dict[str, Any]]:
    """By stream: one call under a profiler, and one without.

    ranges: name -> operators inside, in order of time. plain, profiled: the ledger (npu). entered_plain,
    entered_profiled: whether a range is entered, which a range that raises shows.
    """
    layer.groups(ep=ep, tp=1)
    return {stream: _profile(rank, device, ep, stream) for stream in streams}


def _profile(rank: int, device: str, ep: int, stream: str) -> dict[str, Any]:
    mindspeed_moe.enable({"device": device, "dispatchers": {"alltoall": "packed"}, "preprocess": {"stream": stream}})
    dispatcher = layer.make_dispatcher(EXPERTS)
    routing_map = torch.tensor(layer.routing_maps(7, ep, EXPERTS)[rank], dtype=torch.bool).to(device)

    def call() -> None:
        layer.pass_points(dispatcher, dispatcher.preprocess(routing_map))

    for _ in range(WARM_UP):
        call()
    gc.collect()
    found: dict[str, Any] = {"plain": _count(device, ep, call)}
    with _profiler(device) as profiled:
        found["profiled"] = _count(device, ep, call)
    found["ranges"] = _ranges(_events(profiled))
    found["entered_plain"] = _enters_a_range(call)
    with _profiler(device):
        found["entered_profiled"] = _enters_a_range(call)
    mindspeed_moe.disable()
    return found


def _profiler(device: str) -> AbstractContextManager[Any]:
    # transfer_to_npu puts torch_npu's own profiler in the place of torch's, and that needs a driver.
    if device == "npu":
        return profiler_legacy.profile()
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])


def _events(profiled: Any) -> list[Any]:
    return list(getattr(profiled, "function_events", None) or profiled.events())


def _ranges(events: list[Any]) -> dict[str, list[str]]:
    """Range -> names of the operators within its time, on its thread."""
    ranges = sorted((one for one in events if one.name.startswith(PREFIX)), key=lambda one: one.time_range.start)
    return {
        one.name: sorted({inner.name for inner in events if inner is not one and _within(inner, one)}) for one in ranges
    }


def _within(event: Any, outer: Any) -> bool:
    parent = event.cpu_parent
    while parent is not None and parent is not outer:
        parent = parent.cpu_parent
    return parent is not None


def _count(device: str, ep: int, call: Callable[[], None]) -> dict[str, int]:
    if device != "npu":
        call()
        return {}
    from tests.ascend_sim import ledger

    with ledger.record() as counts:
        call()
    torch.npu.synchronize()
    return asdict(cost_of(counts, ep))


class _EnteredError(Exception):
    pass


def _enters_a_range(call: Callable[[], None]) -> bool:
    with mock.patch.object(torch.profiler, "record_function", side_effect=_EnteredError):
        try:
            call()
        except _EnteredError:
            return True
    return False
