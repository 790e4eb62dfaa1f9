"""Mistakes that can be made in the npu code, each as a patch of it. A test passes when every one is caught.

A patch is applied before the plugin is enabled: a program holds on to its steps from then on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from mindspeed_moe.devices.accelerator import Accelerator
from mindspeed_moe.preprocess import packed_async
from mindspeed_moe.preprocess.attributes import Attributes
from mindspeed_moe.preprocess.exchange import AllToAll
from mindspeed_moe.preprocess.packed_async import PackedOnAccelerator
from mindspeed_moe.preprocess.ring import Ring

# ------------------------------------------------------------------------------------------- copies and events


def event_not_waited_for() -> Any:
    def at_once(copied: Any) -> None:
        """Wait for nothing."""

    return mock.patch.object(packed_async, "_wait", at_once)


def event_recorded_before_the_copy() -> Any:
    def copy_to_host(self: Accelerator, source: torch.Tensor, target: torch.Tensor, copied: Any) -> None:
        copied.record()
        target.copy_(source, non_blocking=True)

    return mock.patch.object(Accelerator, "copy_to_host", copy_to_host)


def event_on_the_wrong_stream() -> Any:
    def copy_to_host(self: Accelerator, source: torch.Tensor, target: torch.Tensor, copied: Any) -> None:
        target.copy_(source, non_blocking=True)
        copied.record(self._streams.Stream())

    return mock.patch.object(Accelerator, "copy_to_host", copy_to_host)


def event_on_the_stream_that_was_current() -> Any:
    def copy_to_host(self: Accelerator, source: torch.Tensor, target: torch.Tensor, copied: Any) -> None:
        target.copy_(source, non_blocking=True)
        copied.record(self._streams.default_stream())

    return mock.patch.object(Accelerator, "copy_to_host", copy_to_host)


def pageable_target() -> Any:
    return mock.patch.object(Accelerator, "pinned", lambda self, count, dtype: torch.empty(count, dtype=dtype))


def waited_for_after_the_first_read() -> Any:
    def due(self: Attributes, dispatcher: Any, site: Any, rows: int | None) -> frozenset[str]:
        return frozenset(("before_permutation_2",))

    return mock.patch.object(Attributes, "due", due)


# --------------------------------------------------------------------------------------------- slots and memory


def one_slot_for_all_layers() -> Any:
    slots: list[Any] = []

    def take(self: Ring[Any]) -> Any:
        if not slots:
            slots.append(self._make())
        return slots[0]

    return mock.patch.object(Ring, "take", take)


def one_device_buffer_for_all_slots() -> Any:
    """What the device still has to send or to copy is overwritten by the next layer."""
    views_of, buffers = AllToAll.views, {}

    def views(self: AllToAll, buffer: torch.Tensor) -> Any:
        return views_of(self, buffers.setdefault(buffer.shape, buffer))

    return mock.patch.object(AllToAll, "views", views)


def buffer_of_a_slot_handed_out() -> Any:
    unpack = PackedOnAccelerator._unpack

    def borrow(self: Any, dispatcher: Any, site: Any, call: Any) -> torch.Tensor:
        counts = unpack(self, dispatcher, site, call)
        table = getattr(dispatcher, self.sites.attributes.table)
        setattr(dispatcher, self.sites.attributes.table, call.slot.pinned[-table.numel() :].view(table.shape))
        return counts

    return mock.patch.object(PackedOnAccelerator, "_unpack", borrow)


def slot_free_when_its_call_is_given_up() -> Any:
    return mock.patch.object(Ring, "give_up", lambda self, slot, kept: self._free.append(slot))


def slot_taken_before_its_copy_is_done() -> Any:
    def take(self: Ring[Any]) -> Any:
        self._free += [slot for slot, _ in self._given_up]
        self._given_up = []
        return original(self)

    original = Ring.take
    return mock.patch.object(Ring, "take", take)


def tensors_of_a_given_up_call_dropped() -> Any:
    return mock.patch.object(Ring, "give_up", lambda self, slot, kept: self._given_up.append((slot, None)))


# ------------------------------------------------------------------------------------------------- side stream


def side_stream_does_not_wait() -> Any:
    side = Accelerator.side
    return mock.patch.object(Accelerator, "side", lambda self, started: side(self, _NoEvent()))


class _NoEvent:
    """Stands for the event that orders a side stream behind the current one, and orders nothing."""

    def record(self, stream: Any) -> None:
        """Record nothing."""

    def wait(self, stream: Any) -> None:
        """Make no stream wait: what Stream.wait_event asks of an event."""


def counts_handed_out_before_the_wait() -> Any:
    start = PackedOnAccelerator._start

    def hasty(self: Any, dispatcher: Any, routing_map: Any, site: Any, *rest: Any) -> Any:
        start(self, dispatcher, routing_map, site, *rest)
        return site.buffers.call.counts

    return mock.patch.object(PackedOnAccelerator, "_start", hasty)


# ------------------------------------------------------------------------------------------------------ groups


def send_order_swapped() -> Any:
    views_of = AllToAll.views

    def views(self: AllToAll, buffer: torch.Tensor) -> Any:
        ep, tp, local = self._shape
        made = views_of(self, buffer)
        area = buffer[: self._words].view(tp, ep, local)
        return dataclasses.replace(made, repeated=(area, made.counts.view(1, ep, local)))

    return mock.patch.object(AllToAll, "views", views)


def received_order_swapped() -> Any:
    reader_of = AllToAll.reader

    def reader(self: AllToAll, words: Any) -> Any:
        ep, tp, local = self._shape
        swapped = words.copy()

        def read() -> Any:
            swapped[:] = words
            swapped[ep * local :] = words[ep * local :].reshape(ep, tp, local).swapaxes(0, 1).ravel()
            return rows()

        rows = reader_of(self, swapped)
        return read

    return mock.patch.object(AllToAll, "reader", reader)


def collective_on_the_wrong_group() -> Any:
    run = AllToAll.run

    def elsewhere(self: AllToAll, views: Any, group: Any) -> None:
        from megatron.core import parallel_state

        run(self, views, parallel_state.get_expert_model_parallel_group())

    return mock.patch.object(AllToAll, "run", elsewhere)


def _named(*mutations: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    return {one.__name__: one for one in mutations}


ON_EACH_STREAM = _named(event_not_waited_for, event_recorded_before_the_copy, one_slot_for_all_layers)
ON_THE_CURRENT_STREAM = ON_EACH_STREAM | _named(
    event_on_the_wrong_stream,
    pageable_target,
    waited_for_after_the_first_read,
    buffer_of_a_slot_handed_out,
)
# What the order of one stream makes harmless shows on a side stream.
ON_A_SIDE_STREAM = ON_EACH_STREAM | _named(
    event_on_the_stream_that_was_current,
    side_stream_does_not_wait,
    counts_handed_out_before_the_wait,
    one_device_buffer_for_all_slots,
    slot_free_when_its_call_is_given_up,
    slot_taken_before_its_copy_is_done,
    tensors_of_a_given_up_call_dropped,
)
# What needs TP > 1 and EP > 1 to show.
IN_A_TP_EP_GROUP = _named(send_order_swapped, received_order_swapped, collective_on_the_wrong_group)

# EP, TP, and by stream what is tried there.
EP_TP: dict[str, tuple[int, int, dict[str, dict[str, Callable[[], Any]]]]] = {
    "ep2": (2, 1, {"current": ON_THE_CURRENT_STREAM, "side": ON_A_SIDE_STREAM}),
    "tp2ep2": (2, 2, {"current": IN_A_TP_EP_GROUP}),
}
