"""What preprocess asks of a device with streams: pinned memory, events, a side stream, copies to the host.

torch.cuda and torch.npu offer the same names, so one class serves both; only `streams` differs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from mindspeed_moe.errors import PreprocessError


class Accelerator:
    """One device's streams and events.

    streams: torch.cuda, or torch.npu from the one module that imports torch_npu.
    """

    def __init__(self, streams: Any) -> None:
        self._streams = streams
        self._sides: dict[int, Any] = {}  # device index -> stream, made on first use

    def pinned(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Return pinned host memory [count]; PreprocessError when there is none left."""
        memory = torch.empty(count, dtype=dtype, pin_memory=True, device="cpu")
        if memory.data_ptr() == 0:  # torch_npu 2.13 does not raise when pinned memory is exhausted
            raise PreprocessError(f"no pinned host memory left for {memory.nbytes} bytes of counts")
        return memory

    def enter_here(self) -> Callable[[], None]:
        """Return what makes this thread's current device that of another thread, which has none by itself."""
        return functools.partial(self._streams.set_device, self._streams.current_device())

    def event(self) -> Any:
        """Return a new event; it may be recorded again once nobody waits for its last record."""
        return self._streams.Event()

    def side(self, started: Any) -> _OnSide:
        """Return a context in which work goes to the side stream, behind what the current stream has by now.

        started: the event that is recorded on the current stream.
        """
        current = self._streams.current_stream()
        started.record(current)
        side = self._sides.get(current.device_index)
        if side is None:
            side = self._sides[current.device_index] = self._streams.Stream()
        side.wait_event(started)
        return _OnSide(self._streams, current, side)

    def copy_to_host(self, source: torch.Tensor, target: torch.Tensor, copied: Any) -> None:
        """Start copying a contiguous device tensor to pinned memory on the current stream, and record `copied`.

        The target holds the data after `copied.synchronize()`; the caller keeps source and target until then.
        """
        if not source.is_contiguous() or source.dtype is not target.dtype:
            raise AssertionError("a strided source or another dtype would need a kernel before the copy")
        target.copy_(source, non_blocking=True)
        copied.record()

    def synchronize_current_stream(self) -> None:
        """Wait for everything on the current stream."""
        self._streams.current_stream().synchronize()


class _OnSide:
    """`with`: the side stream is current. Leaner than torch's own context, which looks up devices on every entry."""

    __slots__ = ("_current", "_side", "_streams")

    def __init__(self, streams: Any, current: Any, side: Any) -> None:
        self._streams, self._current, self._side = streams, current, side

    def __enter__(self) -> None:
        self._streams.set_stream(self._side)

    def __exit__(self, *raised: object) -> None:
        self._streams.set_stream(self._current)
