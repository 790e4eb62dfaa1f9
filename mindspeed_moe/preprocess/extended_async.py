"""preprocess for tensor-parallel ranks that hold whole experts: one count, one exchange, one copy, one wait.

Nothing is patched: a dispatcher of this layout makes one ExtendedPreprocess a layer, calls `start` with the routing
map, and `wait` on what it returns where it first reads a host value. Several calls may be under way at once; each has
a slot of buffers. Everything is ordered by the current stream, on which the counts for the experts are readable at
once.

Where owners do not hold neighbours in order, counts must be put in the order of owners: by one kernel more before the
exchange; or, where every rank gathers all counts and only the host reads them, by an index there, without a kernel.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from mindspeed_moe.devices.accelerator import Accelerator
from mindspeed_moe.errors import ConfigError, DeviceError, PreprocessError
from mindspeed_moe.preprocess.agreement import Facts, require_agreement
from mindspeed_moe.preprocess.counts import COUNTS
from mindspeed_moe.preprocess.exchange import EXCHANGES, Exchange, Rows, Views, Words
from mindspeed_moe.preprocess.extended import ExtendedLayout, ExtendedPlan, extended_padded_plan, extended_plan
from mindspeed_moe.preprocess.layout import ExpertLayout
from mindspeed_moe.preprocess.ring import Ring, Slot
from mindspeed_moe.preprocess.site import Site, check_routing_map


@dataclass(eq=False)
class _Slot(Slot):
    """counted: [E] int32, where the map is counted: views.counts itself when experts need no other order.

    words: what the host reads, pinned; on the host views.read itself. read: makes rows of it.
    """

    views: Views
    counted: torch.Tensor
    words: torch.Tensor
    read: Callable[[], Rows]


class ExtendedCall:
    """One call of preprocess that has been started.

    counts: [L] int64, tokens per own expert on the device, in order with the current stream; None until `wait`
        where they were not asked for there.
    num_out_tokens: rows after the first permutation; None until `wait` where they depend on the routing map.
    """

    __slots__ = ("_finish", "_give_up", "_plan", "_slot", "counts", "num_out_tokens")

    def __init__(
        self,
        slot: _Slot,
        counts: torch.Tensor | None,
        num_out_tokens: int | None,
        finish: Callable[[_Slot, ExtendedCall], ExtendedPlan],
        give_up: Callable[[_Slot, object], None],
    ) -> None:
        self._slot: _Slot | None = slot
        self._plan: ExtendedPlan | None = None
        self._finish, self._give_up = finish, give_up
        self.counts, self.num_out_tokens = counts, num_out_tokens

    def wait(self) -> ExtendedPlan:
        """Wait for the copy and return the plan; every further call returns the same at once.

        Raises CountOverflowError when a buffer would hold more than 2**31 - 1 rows, PreprocessError when the call was
        given up or its first wait failed.
        """
        if self._plan is None:
            slot, self._slot = self._slot, None
            if slot is None:
                raise PreprocessError("wait: the call was given up, or its first wait failed")
            self._plan = plan = self._finish(slot, self)
            self.counts, self.num_out_tokens = plan.counts, plan.num_out_tokens
        return self._plan

    def give_up(self) -> None:
        """Tell that nobody will wait; dropping the last reference does the same. After `wait` it does nothing."""
        slot, self._slot = self._slot, None
        if slot is not None:
            self._give_up(slot, None)

    def __del__(self) -> None:
        self.give_up()


class ExtendedPreprocess:
    """From routing maps to plans, for one layer.

    layout: who owns what. group: the TPxEP group, on which counts travel; None for a rank without peers.
    device: cpu, npu or cuda, where routing maps are. accelerator: its streams and events; None on the host.
    counts: a key of COUNTS. exchange: a key of EXCHANGES.
    counts_on_device: whether the experts read their counts there; costs one kernel.
    max_slots: how many calls may be under way or given up with their copies still to come.
    facts: what else all ranks must agree on, such as the version of this package.
    Raises GroupError when the group does not fit the layout, ConfigError for an unknown `counts` or `exchange`,
    DeviceError when a device other than the host comes without its accelerator.
    """

    def __init__(
        self,
        layout: ExtendedLayout,
        group: dist.ProcessGroup | None,
        *,
        device: str = "cpu",
        accelerator: Accelerator | None = None,
        counts: str = "sum",
        exchange: str = "all_to_all",
        counts_on_device: bool = False,
        max_slots: int = 8,
        facts: Facts | None = None,
    ) -> None:
        for name, value, known in (("counts", counts, list(COUNTS)), ("exchange", exchange, list(EXCHANGES))):
            if value not in known:
                raise ConfigError(f"{name}: {value!r}; allowed: {', '.join(known)}")
        if accelerator is None and device != "cpu":
            raise DeviceError(f"device {device!r} without an accelerator: copies to the host need its streams")
        layout.require_group(group)
        alone = layout.group_size == 1
        self.layout = layout
        self._group = None if alone else group
        self._accelerator = accelerator
        self._count = COUNTS[counts]
        self._exchange = _Alone(layout.by_owner) if alone else EXCHANGES[exchange](layout.by_owner)
        self._counts_on_device = counts_on_device and accelerator is not None
        # Whether counts stay in the experts' own numbering until the host reads them.
        self._by_name = not layout.in_order and (alone or exchange == "all_gather") and not self._counts_on_device
        self._facts = {
            **(facts or {}),
            "implementation": "extended",
            "exchange": exchange,
            "num_experts": layout.num_experts,
            "group_size": layout.group_size,
            "owned_experts": layout.digest,
            "counts_travel": "by expert" if self._by_name else "by owner",
        }
        self._site = Site(
            layout.by_owner,
            self._group,
            exchange=self._exchange,
            counts_on_host=not self._counts_on_device,
            device=device,
            is_here=operator.attrgetter(f"is_{device}"),
        )
        self._max_slots = max_slots
        self._order: torch.Tensor | None = None  # [E], on the device
        self._ring: Ring[_Slot] | None = None

    def start(self, routing_map: torch.Tensor, topk: int | None = None) -> ExtendedCall:
        """Start everything for a routing map [T, E] bool, any strides; on an accelerator the host does not wait.

        topk: experts a token, when none was dropped or added (dropless): the call then knows its rows, T * topk.
        The ranks of the group are compared before their first exchange.
        Raises RoutingMapError for another kind of map, CountOverflowError for more than 2**31 - 1 rows, GroupError
        when ranks disagree, PreprocessError when more than max_slots calls are under way.
        """
        check_routing_map(routing_map, self._site)
        if self._ring is None:
            self._ring = self._make_ring(routing_map.device)
        if self._site.group is None and self._group is not None:
            require_agreement(self._group, self._facts)
            self._site.group = self._group
        rows = None if topk is None else routing_map.shape[0] * topk
        slot = None
        try:
            slot = self._ring.take()
            counts = self._run(slot, routing_map, rows)
            call = ExtendedCall(slot, counts, rows, self._finish, self._ring.give_up)
        except BaseException:
            if slot is not None:
                ring = self._ring
                on_device = ring.fail if self._group is None else ring.lose
                (ring.free if self._accelerator is None else lambda one: on_device(one, None))(slot)
            raise
        if self._accelerator is None:
            call.wait()
        return call

    def padded(self, capacity: int) -> ExtendedPlan:
        """Return the plan of drop-and-pad, known on the host; see `extended_padded_plan`."""
        return extended_padded_plan(self.layout, capacity)

    def _run(self, slot: _Slot, routing_map: torch.Tensor, rows: int | None) -> torch.Tensor | None:
        """Count, exchange, and start the copy; returns the experts' counts when they read them on the device."""
        views = slot.views
        self._count(routing_map, slot.counted, rows)
        if self._order is not None:
            torch.index_select(slot.counted, 0, self._order, out=views.counts)
        self._exchange.run(views, self._site.group)
        counts = torch.sum(views.received, dim=(0, 1), dtype=torch.int64) if self._counts_on_device else None
        if self._accelerator is not None:
            self._accelerator.copy_to_host(views.read, slot.words, slot.copied)
        return counts

    def _finish(self, slot: _Slot, call: ExtendedCall) -> ExtendedPlan:
        assert self._ring is not None
        if self._accelerator is not None:
            try:
                slot.copied.synchronize()
            except BaseException:
                self._ring.give_up(slot, call.counts)
                raise
        try:
            rows = slot.read()
        finally:
            self._ring.free(slot)
        plan = extended_plan(self.layout, rows, call.num_out_tokens)
        counts = torch.from_numpy(plan.tokens_per_local_expert) if call.counts is None else call.counts
        return plan._replace(counts=counts)

    def _make_ring(self, device: torch.device) -> Ring[_Slot]:
        def make() -> _Slot:
            with torch.inference_mode(False):  # slots are kept: they must serve later calls in any mode
                return self._make_slot(device)

        if not (self._by_name or self.layout.in_order):
            with torch.inference_mode(False):
                self._order = torch.tensor(self.layout.order, dtype=torch.int64, device=device)
        return Ring(make, self._max_slots)

    def _make_slot(self, device: torch.device) -> _Slot:
        views = self._exchange.views(torch.empty(self._exchange.length, dtype=torch.int32, device=device))
        counted = views.counts if self._order is None else torch.empty_like(views.counts)
        if self._accelerator is None:
            copied, words = None, views.read
        else:
            copied, words = self._accelerator.event(), self._accelerator.pinned(views.read.numel(), torch.int32)
        return _Slot(copied, views, counted, words, self._reader(words.numpy()))

    def _reader(self, words: Words) -> Callable[[], Rows]:
        if not self._by_name:
            return self._exchange.reader(words)
        places = self.layout.places
        return lambda: words.take(places).astype(np.int64)


class _Alone(Exchange):
    """A rank without peers receives what it sends."""

    def __init__(self, layout: ExpertLayout) -> None:
        super().__init__(layout)
        self.length = layout.num_experts

    def views(self, buffer: torch.Tensor) -> Views:
        """All views are of the counts."""
        return Views(buffer, None, buffer, buffer, buffer.view(1, 1, -1), buffer)

    def run(self, views: Views, group: dist.ProcessGroup) -> None:
        """Nothing to do."""

    def reader(self, words: Words) -> Callable[[], Rows]:
        """The counts twice, as sent and as received."""
        row = words.reshape(1, -1)
        return lambda: np.concatenate((row, row), dtype=np.int64)
