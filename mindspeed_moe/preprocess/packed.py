"""`packed` where the device's memory is the host's: no copy, no wait, every value is there when counting ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch

from mindspeed_moe.preprocess.exchange import Exchange, Rows, Views
from mindspeed_moe.preprocess.layout import ExpertLayout
from mindspeed_moe.preprocess.ranges import in_range, profiling
from mindspeed_moe.preprocess.site import check_routing_map
from mindspeed_moe.preprocess.sites import Sites
from mindspeed_moe.preprocess.splits import SplitPlan, split_plan


class Count(Protocol):
    """One of mindspeed_moe.preprocess.counts.COUNTS."""

    def __call__(
        self, routing_map: torch.Tensor, out: torch.Tensor | None = None, entries: int | None = None
    ) -> torch.Tensor:
        """Return tokens per expert [E] of a routing map [T, E] bool: `out` int32, or a new tensor int64.

        entries: how many the map should have, which may save a look at it.
        """


class _Buffers:
    """The words of one dispatcher; free again when a call returns, for its plan owns its memory."""

    __slots__ = ("read", "views")

    def __init__(self, exchange: Exchange) -> None:
        with torch.inference_mode(False):  # kept: they must serve later calls in any mode
            self.views = exchange.views(torch.empty(exchange.length, dtype=torch.int32, device="cpu"))
        self.read = exchange.reader(self.views.read.numpy())


class _Steps(NamedTuple):
    """The parts of a call, plain or with profiler ranges."""

    count_map: Count
    exchange: Callable[[Exchange, Views, Any], None]
    unpack: Callable[[ExpertLayout, Callable[[], Rows], int | None], SplitPlan]


class PackedOnHost:
    """One count, one exchange, one pass over the result (design: the floor sequence without its copy)."""

    waits_later = False

    def __init__(self, sites: Sites, count: Count) -> None:
        self.sites = sites
        self._plain = _Steps(count, _exchange, _unpack)
        self._ranged = _Steps(in_range("counts", count), in_range("exchange", _exchange), in_range("unpack", _unpack))

    def preprocess(self, dispatcher: Any, routing_map: torch.Tensor) -> torch.Tensor:
        """Set the dispatcher's splits from a routing map [T, E] bool; returns tokens per local expert [L] int64."""
        sites = self.sites
        site, attributes = sites.of(dispatcher), sites.attributes
        check_routing_map(routing_map, site)
        if dispatcher.drop_and_pad:
            return attributes.publish_padded(dispatcher, site, routing_map)
        rows = attributes.known_out_tokens(dispatcher, routing_map)
        attributes.take_over_waiting(dispatcher, site, rows)
        dispatcher.num_out_tokens = rows
        steps = self._ranged if profiling() else self._plain
        if site.exchange is None:
            return attributes.publish_alone(dispatcher, site, steps.count_map(routing_map, None, rows), rows)
        if site.group is None:
            sites.join(site, dispatcher)
            site.buffers = _Buffers(site.exchange)
        buffers = site.buffers
        steps.count_map(routing_map, buffers.views.counts, rows)
        steps.exchange(site.exchange, buffers.views, site.group)
        return attributes.publish(dispatcher, site, steps.unpack(site.layout, buffers.read, rows))

    def host_copies(self, dispatcher: Any, point: str, tokens_per_expert: torch.Tensor) -> torch.Tensor:
        """Nothing is left to copy or to wait for at any of Megatron's points."""
        return tokens_per_expert

    def under_way(self, dispatcher: Any) -> bool:
        """Every value is there when preprocess returns."""
        return False


def _exchange(exchange: Exchange, views: Views, group: Any) -> None:
    exchange.run(views, group)


def _unpack(layout: ExpertLayout, read: Callable[[], Rows], num_out_tokens: int | None) -> SplitPlan:
    return split_plan(layout, read(), num_out_tokens)
