"""`packed` for devices with a memory and streams of their own: one copy into pinned memory, one event wait.

Sequence (design.md, section 4): count into the head of a buffer; one collective fills its tail; the whole buffer
is copied to pinned memory on a side stream, followed by one event; at the point where Megatron first reads a host
value, wait for that event and derive everything in numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from mindspeed_moe.devices.accelerator import Accelerator
from mindspeed_moe.preprocess.packed import Count
from mindspeed_moe.preprocess.site import (
    Site,
    Sites,
    check_routing_map,
    known_out_tokens,
    publish,
    publish_padded,
    sync_point,
)
from mindspeed_moe.preprocess.splits import split_plan


@dataclass
class _InFlight:
    """One call between its copy and its wait. Keeps source and target of the copy alive until then.

    num_out_tokens: T * topk, or None when it depends on the routing map.
    """

    site: Site
    buffer: torch.Tensor
    pinned: torch.Tensor
    copied: Any
    num_out_tokens: int | None
    table_on_device: bool


class PackedOnAccelerator:
    """The floor sequence for one accelerator; counts for the experts stay on the device or come from the copy."""

    def __init__(self, sites: Sites, count: Count, accelerator: Accelerator, *, counts_on_host: bool) -> None:
        self._sites = sites
        self._count = count
        self._accelerator = accelerator
        self._counts_on_host = counts_on_host
        self._in_flight: WeakKeyDictionary[Any, _InFlight] = WeakKeyDictionary()

    def preprocess(self, dispatcher: Any, routing_map: torch.Tensor) -> torch.Tensor | None:
        """Start everything for a routing map [T, E] bool on the device; the host does not wait.

        Returns tokens per local expert [L] int64 on the device, or None when the experts want them on the host:
        `host_copies` returns them from the point on at which the copy has arrived.
        """
        sites = self._sites
        site = sites.of(dispatcher)
        check_routing_map(routing_map, site)
        if dispatcher.drop_and_pad:
            self._in_flight.pop(dispatcher, None)
            return publish_padded(dispatcher, site, routing_map, sites.generation)
        layout, exchange = site.layout, site.exchange
        buffer = torch.empty(exchange.length, dtype=torch.int32, device=routing_map.device)
        self._count(routing_map, buffer[: layout.num_experts])
        sites.agree(site)
        exchange.run(buffer, site.group)
        received = exchange.received(buffer)
        on_device = None if self._counts_on_host else received.sum(dim=(0, 1))
        rows = known_out_tokens(dispatcher, routing_map, sites.generation)
        table_on_device = layout.num_local_experts > 1 and dispatcher.config.moe_permute_fusion
        if table_on_device:
            table = received.transpose(0, 1).reshape(-1, layout.num_local_experts).long()
            setattr(dispatcher, sites.generation.chunk_table, table)
        pinned, copied = self._accelerator.copy_to_host(buffer)
        self._in_flight[dispatcher] = _InFlight(site, buffer, pinned, copied, rows, table_on_device)
        dispatcher._maybe_update_cuda_sync_point(sync_point(dispatcher, site, rows))
        # Consumers that do not wait at our point must not find the last call's values.
        dispatcher.num_out_tokens = rows
        dispatcher.input_splits = dispatcher.output_splits = dispatcher.output_splits_tp = None
        return on_device

    def host_copies(self, dispatcher: Any, point: str, tokens_per_expert: torch.Tensor | None) -> torch.Tensor | None:
        """At the dispatcher's sync point, wait for the copy and set the splits; elsewhere do nothing."""
        if point != dispatcher.cuda_sync_point:
            return tokens_per_expert
        call = self._in_flight.pop(dispatcher, None)
        if call is None:  # drop and pad
            return tokens_per_expert
        call.copied.synchronize()
        counts: np.ndarray[Any, np.dtype[np.int32]] = call.pinned.numpy()
        layout, exchange = call.site.layout, call.site.exchange
        received = exchange.received(call.pinned).numpy()
        plan = split_plan(layout, counts[: layout.num_experts], received, call.num_out_tokens)
        on_host = publish(dispatcher, plan, self._sites.generation, chunk_table=not call.table_on_device)
        return on_host if self._counts_on_host else tokens_per_expert
