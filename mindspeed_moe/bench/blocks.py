"""The parts of `packed`, called one by one: what the time of a whole call is made of. And the least it could be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mindspeed_moe.bench.contestants import Team
from mindspeed_moe.preprocess.counts import COUNTS
from mindspeed_moe.preprocess.exchange import make_exchange
from mindspeed_moe.preprocess.layout import ExpertLayout
from mindspeed_moe.preprocess.site import known_out_tokens, publish
from mindspeed_moe.preprocess.splits import split_plan

BLOCKS = ("counting", "exchange", "unpacking")


def packed_blocks(
    team: Team, dispatcher: Any, layout: ExpertLayout, routing_map: torch.Tensor
) -> dict[str, Callable[[], object]]:
    """Return the building blocks of one `packed` call by name; each works on what the ones before it left.

    dispatcher: a dispatcher of Megatron's on the groups that are measured; unpacking writes its attributes.
    Drop and pad has none: everything follows from the capacity.
    """
    if dispatcher.drop_and_pad:
        return {}
    count = COUNTS[team.packed.counts]
    exchange = make_exchange(team.packed.exchange, layout)
    group = dispatcher.tp_ep_group
    buffer = torch.zeros(exchange.length, dtype=torch.int32)  # the blocks are called in any order
    local = buffer[: layout.num_experts]

    def counting() -> None:
        count(routing_map, local)

    def exchanging() -> None:
        exchange.run(buffer, group)

    def unpacking() -> None:
        rows = known_out_tokens(dispatcher, routing_map, team.generation)
        plan = split_plan(layout, local.numpy(), exchange.received(buffer).numpy(), rows)
        publish(dispatcher, plan, team.generation)

    return dict(zip(BLOCKS, (counting, exchanging, unpacking), strict=True))


def read_once(routing_map: torch.Tensor) -> Callable[[], object]:
    """Return a call that reads a routing map [T, E] bool once, eight experts a word: the least that counting costs."""
    flat = routing_map.numpy().ravel()
    words = flat[: flat.size // 8 * 8].view(np.uint64)
    rest = flat[words.size * 8 :]
    return lambda: (np.add.reduce(words), np.add.reduce(rest))
