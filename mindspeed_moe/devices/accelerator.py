"""What preprocess asks of a device with streams: one copy to the host, one event, one synchronisation.

torch.cuda and torch.npu offer the same names, so one class serves both; only `streams` differs.
"""

from __future__ import annotations

from typing import Any

import torch

from mindspeed_moe.errors import PreprocessError


class Accelerator:
    """Non-blocking copies to pinned memory on a side stream of their own.

    streams: torch.cuda, or torch.npu from the one module that imports torch_npu.
    """

    def __init__(self, streams: Any) -> None:
        self._streams = streams
        self._side: dict[int, Any] = {}  # device index -> stream, made on first use

    def copy_to_host(self, source: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Start copying a contiguous device tensor to pinned memory; returns the target and an event.

        The target holds the data only after `event.synchronize()`. The caller keeps `source` and target alive
        until then; the side stream is recorded on `source` for the allocator.
        """
        if not source.is_contiguous():
            raise AssertionError("a strided source would need a kernel before the copy")
        streams = self._streams
        side = self._side_stream(source.device.index)
        target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        if target.data_ptr() == 0:  # torch_npu 2.13 does not raise when pinned memory is exhausted
            raise PreprocessError(f"no pinned host memory left for {target.nbytes} bytes of counts")
        side.wait_stream(streams.current_stream())
        with streams.stream(side):
            target.copy_(source, non_blocking=True)
            copied = side.record_event()
        source.record_stream(side)
        return target, copied

    def synchronize_current_stream(self) -> None:
        """Wait for everything on the current stream."""
        self._streams.current_stream().synchronize()

    def _side_stream(self, device: int) -> Any:
        if device not in self._side:
            self._side[device] = self._streams.Stream(device=device)
        return self._side[device]
