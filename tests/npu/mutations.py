"""Mistakes that can be made in the npu code, each as a patch of it. A test passes when every one is caught."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mindspeed_moe.devices.accelerator import Accelerator
from mindspeed_moe.preprocess import packed_async
from mindspeed_moe.preprocess.exchange import AllToAll


@contextmanager
def _swap(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


class _NoWait:
    def synchronize(self) -> None:
        """Do not wait."""


def _copy(
    self: Accelerator,
    source: torch.Tensor,
    *,
    wait: bool = True,
    right_stream: bool = True,
    target: torch.Tensor | None = None,
    record: bool = True,
) -> tuple[torch.Tensor, Any]:
    """Accelerator.copy_to_host with single steps left out."""
    streams, side = self._streams, self._side_stream(source.device.index)
    if target is None:
        target = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
    if wait:
        side.wait_stream(streams.current_stream())
    with streams.stream(side):
        target.copy_(source, non_blocking=True)
        copied = side.record_event()
    if not right_stream:
        copied = streams.current_stream().record_event()
    if record:
        source.record_stream(side)
    return target, copied


def host_buffer_read_before_the_event() -> Any:
    return _swap(Accelerator, "copy_to_host", lambda self, source: (_copy(self, source)[0], _NoWait()))


def event_on_the_wrong_stream() -> Any:
    return _swap(Accelerator, "copy_to_host", lambda self, source: _copy(self, source, right_stream=False))


def side_stream_does_not_wait() -> Any:
    return _swap(Accelerator, "copy_to_host", lambda self, source: _copy(self, source, wait=False))


def pinned_buffer_reused_in_flight() -> Any:
    buffers: dict[Any, torch.Tensor] = {}

    def copy_to_host(self: Accelerator, source: torch.Tensor) -> tuple[torch.Tensor, Any]:
        if source.shape not in buffers:
            buffers[source.shape] = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        return _copy(self, source, target=buffers[source.shape])

    return _swap(Accelerator, "copy_to_host", copy_to_host)


def pageable_target() -> Any:
    def copy_to_host(self: Accelerator, source: torch.Tensor) -> tuple[torch.Tensor, Any]:
        return _copy(self, source, target=torch.empty(source.shape, dtype=source.dtype))

    return _swap(Accelerator, "copy_to_host", copy_to_host)


@contextmanager
def source_freed_before_the_copy() -> Iterator[None]:
    in_flight = packed_async._InFlight

    def forget_source(site: Any, buffer: Any, *rest: Any) -> Any:
        return in_flight(site, None, *rest)  # type: ignore[arg-type]

    with (
        _swap(Accelerator, "copy_to_host", lambda self, source: _copy(self, source, record=False)),
        _swap(packed_async, "_InFlight", forget_source),
    ):
        yield


def source_overwritten_before_the_copy() -> Any:
    def copy_to_host(self: Accelerator, source: torch.Tensor) -> tuple[torch.Tensor, Any]:
        copied = _copy(self, source)
        source.zero_()
        return copied

    return _swap(Accelerator, "copy_to_host", copy_to_host)


def group_order_swapped() -> Any:
    def received(self: AllToAll, buffer: torch.Tensor) -> torch.Tensor:
        ep, tp, local = self._shape
        return buffer[-self._words :].view(tp, ep, local).transpose(0, 1)

    return _swap(AllToAll, "received", received)


def collective_on_the_wrong_group() -> Any:
    run = AllToAll.run

    def elsewhere(self: AllToAll, buffer: torch.Tensor, group: Any) -> None:
        from megatron.core import parallel_state

        run(self, buffer, parallel_state.get_expert_model_parallel_group())

    return _swap(AllToAll, "run", elsewhere)


# Those that any group shows, and those that need TP > 1 and EP > 1 to show.
IN_EVERY_GROUP: dict[str, Callable[[], Any]] = {
    one.__name__: one
    for one in (
        host_buffer_read_before_the_event,
        event_on_the_wrong_stream,
        side_stream_does_not_wait,
        pinned_buffer_reused_in_flight,
        pageable_target,
        source_freed_before_the_copy,
        source_overwritten_before_the_copy,
    )
}
IN_A_TP_EP_GROUP: dict[str, Callable[[], Any]] = {
    one.__name__: one for one in (group_order_swapped, collective_on_the_wrong_group)
}
EP_TP = {"ep2": (2, 1, IN_EVERY_GROUP), "tp2ep2": (2, 2, IN_A_TP_EP_GROUP)}
