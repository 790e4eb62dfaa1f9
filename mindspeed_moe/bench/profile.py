"""What calls launch on the device, and how long that takes there: read from torch.profiler's own trace."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mindspeed_moe.bench.devices import Clockwork
from mindspeed_moe.files import read_text

_CALLS = 10
_ON_DEVICE = {"kernel": "kernels", "gpu_memcpy": "copies", "gpu_memset": "fills"}  # category of a trace -> what it is
_OF_RUNTIME = ("cuda_runtime", "cuda_driver")


@dataclass(frozen=True)
class Launches:
    """One call, on average of several.

    device_us: time of everything that ran on the device, in microseconds, added up.
    kernels, copies, fills: how many ran. by_name: name -> (number, microseconds).
    runtime: name of the driver's or runtime's function -> number of calls by the host, of at least one in each.
    """

    device_us: float
    kernels: float
    copies: float
    fills: float
    by_name: Mapping[str, tuple[float, float]]
    runtime: Mapping[str, float]


def launches(clockwork: Clockwork, call: Callable[[], object]) -> Launches | None:
    """Profile a few calls; returns None when the profiler sees nothing on the device."""
    on_device = torch.profiler.ProfilerActivity.CUDA
    if on_device not in torch.profiler.supported_activities():  # type: ignore[no-untyped-call]
        return None
    clockwork.synchronize()
    with tempfile.TemporaryDirectory(prefix="mindspeed-moe-bench-") as folder:
        path = Path(folder) / "trace.json"
        with torch.profiler.profile(activities=[on_device]) as profiler:
            for _ in range(_CALLS):
                call()
            clockwork.synchronize()
        profiler.export_chrome_trace(str(path))
        events = json.loads(read_text(path, errors="replace"))["traceEvents"]
    return read_trace(events, _CALLS)


def read_trace(events: Iterable[Mapping[str, Any]], calls: int) -> Launches | None:
    """Add up a Chrome trace's events for `calls` equal calls; None when nothing ran on the device."""
    kinds: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    times: Counter[str] = Counter()
    runtime: Counter[str] = Counter()
    for event in events:
        category = event.get("cat")
        if category in _ON_DEVICE:
            kinds[_ON_DEVICE[category]] += 1
            numbers[event["name"]] += 1
            times[event["name"]] += event["dur"]
        elif category in _OF_RUNTIME:
            runtime[event["name"]] += 1
    if not kinds:
        return None
    return Launches(
        device_us=sum(times.values()) / calls,
        kernels=kinds["kernels"] / calls,
        copies=kinds["copies"] / calls,
        fills=kinds["fills"] / calls,
        by_name={name: (number / calls, times[name] / calls) for name, number in numbers.most_common()},
        runtime={name: number / calls for name, number in runtime.most_common() if number >= calls},
    )
