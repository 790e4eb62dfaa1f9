"""`packed` for devices with a memory and streams of their own: one copy into pinned memory, one event wait.

The counts are made, exchanged, summed for the experts and copied to pinned memory; one event ends that. The host
waits for it where a host value is first read, and derives everything in numpy.

All of it can stand on the current stream, which costs the host least: no event ties streams together, and what is
on the device is in order with every reader. Or everything behind the counts goes to a side stream, so that
permutation 1 runs beside it; what the side stream wrote is there for the current stream when the host has waited,
and is handed out only then. Without peers there is nothing to put aside, and a copy is made only where the host
reads something.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from mindspeed_moe import lifetime
from mindspeed_moe.devices.accelerator import Accelerator
from mindspeed_moe.errors import PreprocessError
from mindspeed_moe.preprocess.exchange import Exchange, Rows, Views
from mindspeed_moe.preprocess.packed import Count
from mindspeed_moe.preprocess.ranges import in_range, profiling
from mindspeed_moe.preprocess.ring import Ring, Slot
from mindspeed_moe.preprocess.site import Site, check_routing_map
from mindspeed_moe.preprocess.sites import Sites
from mindspeed_moe.preprocess.splits import split_plan


@dataclass(eq=False)
class _PeerSlot(Slot):
    """buffer and views on the device; pinned: its words for the host; read: makes rows of them."""

    started: Any
    views: Views
    pinned: torch.Tensor
    read: Callable[[], Rows]


@dataclass(eq=False)
class _AloneSlot(Slot):
    """pinned: [E] int64."""

    pinned: torch.Tensor


@dataclass(eq=False)
class _Call:
    """A call between its copy and its wait.

    due: where a host value is first read (Attributes.due). counts: tokens per local expert on the device, None when
    experts want the host. table: the chunk table on the device, None when it is read on the host. promised: counts for
    the host that were handed out already, [L] int64, to be filled in.
    """

    slot: Any
    due: frozenset[str]
    num_out_tokens: int | None
    counts: torch.Tensor | None
    table: torch.Tensor | None
    promised: torch.Tensor | None = None


class _Abandoned:
    """In the place of splits that nobody brings any more: readers are told so, for None would mean equal parts."""

    def _refuse(self, *unused: Any) -> Any:
        raise PreprocessError("mindspeed_moe was switched off between preprocess and the first reader of its splits")

    __iter__ = __len__ = __bool__ = __getitem__ = __array__ = __getattr__ = _refuse


class _Buffers:
    """What a dispatcher keeps: its ring, and the call that is under way.

    A dispatcher may go in the middle of a call: what the device still writes to is then kept by the program.
    """

    __slots__ = ("_left", "_under_way", "call", "ring")

    def __init__(self, ring: Ring[Any], under_way: set[int], left: list[Ring[Any]]) -> None:
        self.ring, self._under_way, self._left = ring, under_way, left
        self.call: _Call | None = None

    def begin(self, call: _Call) -> None:
        """Keep a call until its wait."""
        self._under_way.add(id(self))
        self.call = call

    def end(self) -> None:
        """The ring has the slot of the call again."""
        self.call = None
        self._under_way.discard(id(self))

    def give_up(self) -> None:
        """Nobody will wait for the call that is under way, if one is."""
        if self.call is not None:
            self.ring.give_up(self.call.slot, self.call)
        self.end()

    def take_back(self, slot: Slot | None, kept: object, *, on_current_stream: bool) -> None:
        """The call that was about to begin has failed: with a slot, and with work on other streams, or without."""
        if slot is not None:
            (self.ring.fail if on_current_stream else self.ring.lose)(slot, kept)
        self.end()

    def __del__(self) -> None:
        if not hasattr(self, "call"):
            return  # interrupted before there was anything to keep
        self.give_up()
        if not self.ring.idle():
            self._left.append(self.ring)


class _Steps(NamedTuple):
    """The parts of a call, plain or with profiler ranges."""

    count_map: Count
    exchange: Callable[[Exchange, Views, Any], None]
    copy: Callable[[torch.Tensor, torch.Tensor, Any], None]
    wait: Callable[[Any], None]
    unpack: Callable[[Any, Site, _Call], torch.Tensor]


class PackedOnAccelerator:
    """The floor sequence for one accelerator.

    aside: whether everything behind the counts goes to a side stream. max_slots: the bound on each dispatcher's ring.
    """

    waits_later = True

    def __init__(self, sites: Sites, count: Count, accelerator: Accelerator, *, aside: bool, max_slots: int) -> None:
        self.sites = sites
        self._ends_with_plugin = False
        self._under_way: set[int] = set()  # ids of the buffers with a call between its copy and its wait
        self._left: list[Ring[Any]] = []  # rings of dispatchers that have gone
        self._aside = aside
        self._accelerator = accelerator
        self._max_slots = max_slots
        self._plain = _Steps(count, _exchange, accelerator.copy_to_host, _wait, self._unpack)
        self._ranged = _Steps(
            count_map=in_range("counts", count),
            exchange=in_range("exchange", _exchange),
            copy=in_range("copy", accelerator.copy_to_host),
            wait=in_range("wait", _wait),
            unpack=in_range("unpack", self._unpack),
        )

    def preprocess(self, dispatcher: Any, routing_map: torch.Tensor) -> torch.Tensor | None:
        """Start everything for a routing map [T, E] bool on the device; the host does not wait.

        Returns tokens per local expert [L] int64 on the device where the current stream is in order with them. Where
        the host reads them, None, and `host_copies` returns them from the first read on; or, to a dispatcher that
        asks nobody again, a tensor that is filled in by then.
        """
        sites = self.sites
        site, attributes = sites.of(dispatcher), sites.attributes
        check_routing_map(routing_map, site)
        buffers = site.buffers
        if buffers is not None and buffers.call is not None:
            buffers.give_up()
        if dispatcher.drop_and_pad:
            return attributes.publish_padded(dispatcher, site, routing_map)
        if buffers is None:
            self._make_buffers(site, routing_map.device)
        rows = attributes.known_out_tokens(dispatcher, routing_map)
        attributes.take_over_waiting(dispatcher, site, rows)
        dispatcher.num_out_tokens = rows
        attributes.forget_splits(dispatcher)
        table_on_device = site.layout.num_local_experts > 1 and attributes.table_on_device(dispatcher)
        steps = self._ranged if profiling() else self._plain
        start = self._start_alone if site.exchange is None else self._start
        return start(dispatcher, routing_map, site, steps, rows, table_on_device)

    def host_copies(self, dispatcher: Any, point: str, tokens_per_expert: torch.Tensor | None) -> torch.Tensor | None:
        """Where a host value is first read, wait for the copy and set the splits; elsewhere do nothing.

        point: one of the hook's points, or the attribute that is about to be read.
        """
        if not self._under_way:
            return tokens_per_expert
        site = self.sites.of(dispatcher)
        buffers = site.buffers
        call = buffers.call if buffers is not None else None
        if call is None or point not in call.due:
            return tokens_per_expert
        steps = self._ranged if profiling() else self._plain
        self.sites.attributes.require_untouched(dispatcher)
        steps.wait(call.slot.copied)
        on_host = steps.unpack(dispatcher, site, call)
        buffers.ring.free(call.slot)
        buffers.end()
        if call.promised is not None:
            call.promised.copy_(on_host)
        return on_host if site.counts_on_host else call.counts

    def under_way(self, dispatcher: Any) -> bool:
        """Return whether the dispatcher's call has not been waited for."""
        buffers = self.sites.of(dispatcher).buffers
        return buffers is not None and buffers.call is not None

    def _start(
        self, dispatcher: Any, routing_map: torch.Tensor, site: Site, steps: _Steps, rows: int | None, fused: bool
    ) -> torch.Tensor | None:
        layout, buffers = site.layout, site.buffers
        if site.group is None:
            self.sites.join(site, dispatcher)
        device, experts = routing_map.device, layout.num_local_experts
        # From the current stream's memory, where the readers are; so they are taken before the side stream starts.
        counts = None if site.counts_on_host else torch.empty(experts, dtype=torch.int64, device=device)
        table = torch.empty(layout.group_size, experts, dtype=torch.int64, device=device) if fused else None
        due, promised = self._promise(dispatcher, site, rows)
        slot, exchanging = None, False
        try:
            slot = buffers.ring.take()
            steps.count_map(routing_map, slot.views.counts)
            exchanging = True
            if self._aside:
                with self._accelerator.side(slot.started):
                    _exchange_and_copy(site, steps, slot, counts, table)
            else:
                _exchange_and_copy(site, steps, slot, counts, table)
            if table is not None:
                setattr(dispatcher, self.sites.attributes.table, table)
            buffers.begin(_Call(slot, due, rows, counts, table, promised))
        except BaseException:
            buffers.take_back(slot, (counts, table), on_current_stream=not exchanging)
            raise
        if counts is None:
            return promised
        # Nobody reads them before the host has waited; a dispatcher with a hook is given them only then all the same.
        return None if self._aside and not self.sites.attributes.returns_at_once else counts

    def _start_alone(
        self, dispatcher: Any, routing_map: torch.Tensor, site: Site, steps: _Steps, rows: int | None, fused: bool
    ) -> torch.Tensor | None:
        counts, buffers = steps.count_map(routing_map), site.buffers
        table = counts.view(1, -1) if fused else None
        if table is not None:
            setattr(dispatcher, self.sites.attributes.table, table)
        table_on_host = site.layout.num_local_experts > 1 and not fused
        if not (site.counts_on_host or table_on_host or rows is None):
            return counts
        due, promised = self._promise(dispatcher, site, rows)
        slot = None
        try:
            slot = buffers.ring.take()
            steps.copy(counts, slot.pinned, slot.copied)
            buffers.begin(_Call(slot, due, rows, counts, table, promised))
        except BaseException:
            buffers.take_back(slot, counts, on_current_stream=True)
            raise
        return promised if site.counts_on_host else counts

    def _promise(self, dispatcher: Any, site: Site, rows: int | None) -> tuple[frozenset[str], torch.Tensor | None]:
        """Return where a call is due, and what is promised to a dispatcher that asks nobody again."""
        attributes = self.sites.attributes
        promised = None
        if attributes.returns_at_once and site.counts_on_host:
            promised = torch.empty(site.layout.num_local_experts, dtype=torch.int64, device="cpu")
        return attributes.due(dispatcher, site, rows), promised

    def _abandon(self) -> None:
        """Switched off in the middle of a call: Megatron's own hook does not know what it would have to wait for."""
        for dispatcher, site in self.sites.known():
            if site.exchange is not None and site.buffers is not None and site.buffers.call is not None:
                dispatcher.input_splits = dispatcher.output_splits = _Abandoned()

    def _unpack(self, dispatcher: Any, site: Site, call: _Call) -> torch.Tensor:
        attributes, host_table = self.sites.attributes, call.table is None
        if site.exchange is None:
            counts = call.slot.pinned.clone()
            return attributes.publish_alone(dispatcher, site, counts, call.num_out_tokens, chunk_table=host_table)
        plan = split_plan(site.layout, call.slot.read(), call.num_out_tokens)
        return attributes.publish(dispatcher, site, plan, chunk_table=host_table)

    def _make_buffers(self, site: Site, device: torch.device) -> None:
        make_slot = self._alone_slot if site.exchange is None else self._peer_slot

        def make() -> Slot:
            with torch.inference_mode(False):  # slots are kept: they must serve later calls in any mode
                return make_slot(site, device)

        for _ in range(len(self._left)):
            ring = self._left.pop(0)
            if ring.expects_copies():
                self._left.append(ring)
        site.buffers = _Buffers(Ring(make, self._max_slots), self._under_way, self._left)
        if not self._ends_with_plugin:
            self._ends_with_plugin = True
            lifetime.at_end(self._abandon)

    def _peer_slot(self, site: Site, device: torch.device) -> _PeerSlot:
        exchange, accelerator = site.exchange, self._accelerator
        assert exchange is not None
        views = exchange.views(torch.empty(exchange.length, dtype=torch.int32, device=device))
        pinned = accelerator.pinned(views.read.numel(), torch.int32)
        return _PeerSlot(accelerator.event(), accelerator.event(), views, pinned, exchange.reader(pinned.numpy()))

    def _alone_slot(self, site: Site, device: torch.device) -> _AloneSlot:
        return _AloneSlot(self._accelerator.event(), self._accelerator.pinned(site.layout.num_experts, torch.int64))


def _exchange_and_copy(
    site: Site, steps: _Steps, slot: _PeerSlot, counts: torch.Tensor | None, table: torch.Tensor | None
) -> None:
    """On the current stream: exchange, what the experts and the fused kernels read there, and the copy."""
    layout, views = site.layout, slot.views
    assert site.exchange is not None
    steps.exchange(site.exchange, views, site.group)
    if counts is not None:
        torch.sum(views.received, dim=(0, 1), dtype=torch.int64, out=counts)
    if table is not None:  # (ep, tp) in the group, (tp, ep) in the second sort
        table.view(layout.tp_size, layout.ep_size, -1).copy_(views.received.transpose(0, 1))
    steps.copy(views.read, slot.pinned, slot.copied)


def _exchange(exchange: Exchange, views: Views, group: Any) -> None:
    exchange.run(views, group)


def _wait(copied: Any) -> None:
    copied.synchronize()
