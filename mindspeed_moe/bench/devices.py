"""Where a bench runs: what a device wants of the process, and its streams, events and clocks under one name each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mindspeed_moe.devices.npu import npu_streams, use_npu_as_cuda
from mindspeed_moe.programs import STREAMS

CPU = "cpu"


@dataclass(frozen=True)
class BenchDevice:
    """One device's ways.

    backend: of torch.distributed. enter: called once with the device's index, before Megatron is imported.
    streams: returns torch.cuda or its counterpart; None where everything runs in order on the host.
    """

    name: str
    backend: str
    enter: Callable[..., None]
    streams: Callable[[], Any] | None

    @property
    def is_host(self) -> bool:
        """Whether the device's memory is the host's, so that nothing is launched and nobody waits."""
        return self.streams is None


def _nothing(index: int = 0) -> None:
    pass


def _gpu(index: int = 0) -> None:
    importlib.import_module("torch").cuda.set_device(index)


def _npu(index: int = 0) -> None:
    use_npu_as_cuda(index)


DEVICES = {
    CPU: BenchDevice(CPU, "gloo", _nothing, None),
    "cuda": BenchDevice("cuda", "nccl", _gpu, STREAMS["cuda"]),
    "npu": BenchDevice("npu", "hccl", _npu, npu_streams),
}


class Clockwork:
    """The streams and events of one accelerator, as far as a bench uses them.

    streams: torch.cuda or its counterpart.
    """

    def __init__(self, streams: Any) -> None:
        self.streams = streams

    def synchronize(self) -> None:
        """Wait until the device has nothing left to do."""
        self.streams.synchronize()

    def timer(self) -> Any:
        """Return an event that takes the device's time."""
        return self.streams.Event(enable_timing=True)

    def current(self) -> Any:
        """Return the current stream."""
        return self.streams.current_stream()

    def duration_us(self, work: Callable[[], object]) -> float:
        """Return the device time between the start and the end of what `work` puts on the current stream."""
        start, end = self.timer(), self.timer()
        self.synchronize()
        start.record()
        work()
        end.record()
        self.synchronize()
        return float(start.elapsed_time(end)) * 1e3
