"""`packed` where the device's memory is the host's: no copy, no wait, every value is there when counting ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mindspeed_moe.preprocess.site import (
    Sites,
    check_routing_map,
    known_out_tokens,
    publish,
    publish_padded,
    sync_point,
)
from mindspeed_moe.preprocess.splits import split_plan

Count = Callable[[torch.Tensor, torch.Tensor], None]


class PackedOnHost:
    """One count, one exchange, one pass over the result (design: the floor sequence without its copy)."""

    def __init__(self, sites: Sites, count: Count) -> None:
        self._sites = sites
        self._count = count

    def preprocess(self, dispatcher: Any, routing_map: torch.Tensor) -> torch.Tensor:
        """Set the dispatcher's splits from a routing map [T, E] bool; returns tokens per local expert [L] int64."""
        sites = self._sites
        site = sites.of(dispatcher)
        check_routing_map(routing_map, site)
        if dispatcher.drop_and_pad:
            return publish_padded(dispatcher, site, routing_map, sites.generation)
        layout, exchange = site.layout, site.exchange
        buffer = torch.empty(exchange.length, dtype=torch.int32)
        local = buffer[: layout.num_experts]
        self._count(routing_map, local)
        sites.agree(site)
        exchange.run(buffer, site.group)
        rows = known_out_tokens(dispatcher, routing_map, sites.generation)
        plan = split_plan(layout, local.numpy(), exchange.received(buffer).numpy(), rows)
        dispatcher._maybe_update_cuda_sync_point(sync_point(dispatcher, site, rows))
        return publish(dispatcher, plan, sites.generation)

    def host_copies(self, dispatcher: Any, point: str, tokens_per_expert: torch.Tensor) -> torch.Tensor:
        """Nothing is left to copy or to wait for at any of Megatron's points."""
        return tokens_per_expert
