"""The parts of `packed`, called one by one: what the time of a whole call is made of. And the least it could be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mindspeed_moe.bench.contestants import Team
from mindspeed_moe.bench.telemetry import TELEMETRY_BLOCKS, end_of_step, observe
from mindspeed_moe.bench.timing import nothing
from mindspeed_moe.preprocess.adapters import attributes_of
from mindspeed_moe.preprocess.attributes import Attributes
from mindspeed_moe.preprocess.counts import COUNTS
from mindspeed_moe.preprocess.exchange import EXCHANGES
from mindspeed_moe.preprocess.layout import ExpertLayout
from mindspeed_moe.preprocess.packed import Count
from mindspeed_moe.preprocess.ranges import profiling
from mindspeed_moe.preprocess.site import Site
from mindspeed_moe.preprocess.splits import split_plan

Block = Callable[[], object]
Unpacking = Callable[[Attributes], Block]

# profiler: asking whether one listens, which every call does once; empty: a call of nothing, which all others contain
BLOCKS = ("counting", "exchange", "unpacking", "profiler", "empty", *TELEMETRY_BLOCKS)


def packed_blocks(team: Team, dispatcher: Any, layout: ExpertLayout, routing_map: torch.Tensor) -> dict[str, Block]:
    """Return the building blocks of one `packed` call by name; each works on what the ones before it left.

    dispatcher: a dispatcher of Megatron's on the groups that are measured; unpacking writes its attributes.
    Drop and pad has none: everything follows from the capacity.
    """
    if dispatcher.drop_and_pad:
        return {}
    count = COUNTS[team.packed.counts]
    site = _site(layout, len(routing_map))
    parts = _alone if layout.group_size == 1 else _with_peers
    counting, exchange, unpacking = parts(team, dispatcher, site, routing_map, count)
    alone, observed = (attributes_of(team.packed.dispatcher, team.generation) for _ in range(2))
    observe(observed)
    blocks = (
        counting,
        exchange,
        unpacking(alone),
        profiling,
        nothing,
        unpacking(observed),
        end_of_step(dispatcher, site, routing_map),
    )
    return dict(zip(BLOCKS, blocks, strict=True))


def _with_peers(
    team: Team, dispatcher: Any, site: Site, routing_map: torch.Tensor, count: Count
) -> tuple[Block, Block, Unpacking]:
    layout = site.layout
    exchange = EXCHANGES[team.packed.exchange](layout)
    group = dispatcher.tp_ep_group
    views = exchange.views(torch.zeros(exchange.length, dtype=torch.int32))  # the blocks are called in any order
    read = exchange.reader(views.read.numpy())

    def unpacking(attributes: Attributes) -> Block:
        def unpack() -> None:
            rows = attributes.known_out_tokens(dispatcher, routing_map)
            attributes.publish(dispatcher, site, split_plan(layout, read(), rows))

        return unpack

    entries = attributes_of(team.packed.dispatcher, team.generation).known_out_tokens(dispatcher, routing_map)
    return lambda: count(routing_map, views.counts, entries), lambda: exchange.run(views, group), unpacking


def _alone(
    team: Team, dispatcher: Any, site: Site, routing_map: torch.Tensor, count: Count
) -> tuple[Block, Block, Unpacking]:
    counts = count(routing_map)

    def unpacking(attributes: Attributes) -> Block:
        def unpack() -> None:
            rows = attributes.known_out_tokens(dispatcher, routing_map)
            attributes.publish_alone(dispatcher, site, counts, rows)

        return unpack

    entries = attributes_of(team.packed.dispatcher, team.generation).known_out_tokens(dispatcher, routing_map)
    return lambda: count(routing_map, None, entries), lambda: None, unpacking


def _site(layout: ExpertLayout, tokens: int) -> Site:
    site = Site(layout, None, None, counts_on_host=True, device="cpu", is_here=torch.is_tensor)
    site.tokens = tokens
    return site


def read_once(routing_map: torch.Tensor) -> Callable[[], object]:
    """Return a call that reads a routing map [T, E] bool once, eight experts a word: the least that counting costs."""
    flat = routing_map.numpy().ravel()
    words = flat[: flat.size // 8 * 8].view(np.uint64)
    rest = flat[words.size * 8 :]
    return lambda: (np.add.reduce(words), np.add.reduce(rest))
