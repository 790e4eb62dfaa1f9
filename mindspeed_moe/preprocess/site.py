"""What preprocess knows of one dispatcher, from its first call on: layout, group, exchange."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from mindspeed_moe.errors import CountOverflowError, GroupError, MindSpeedMoEError, RoutingMapError
from mindspeed_moe.preprocess.agreement import refuse
from mindspeed_moe.preprocess.exchange import Exchange
from mindspeed_moe.preprocess.layout import ExpertLayout
from mindspeed_moe.preprocess.splits import MAX_ROWS, SplitPlan


@dataclass
class Site:
    """One dispatcher as preprocess sees it: what stays the same from call to call.

    group: the group that the counts travel on, chosen before the first exchange; None until then, and always None
        for a rank without peers, which needs none.
    full_group: all ranks that exchange counts; tells that the process groups were replaced. None without peers.
    exchange: None for a rank without peers.
    counts_on_host: where the experts read their counts.
    is_here: whether a tensor is on the device; much cheaper than asking for the device's name.
    buffers: what a program keeps for its calls.
    padded: the last capacity of drop-and-pad, and its plan.
    tokens: T of the last call. watched: what `Attributes.watch` keeps for the site.
    """

    layout: ExpertLayout
    full_group: Any
    exchange: Exchange | None
    counts_on_host: bool
    device: str
    is_here: Callable[[torch.Tensor], bool]
    group: Any = None
    buffers: Any = None
    padded: tuple[int, SplitPlan] | None = field(default=None, repr=False)
    tokens: int = 0
    watched: Any = field(default=None, repr=False)


def expert_layout(dispatcher: Any, *, tp_size: int, tp_rank: int) -> ExpertLayout:
    """Return a dispatcher's layout; GroupError when its experts are not an EP rank's run of neighbours."""
    experts, own = dispatcher.num_experts, dispatcher.local_expert_indices
    if own != list(range(own[0], own[0] + len(own))) or experts != len(own) * dispatcher.ep_size:
        raise GroupError(
            f"local experts {own} of {experts} on EP = {dispatcher.ep_size}: expected "
            f"{experts // dispatcher.ep_size} neighbours on every rank"
        )
    return ExpertLayout(
        num_experts=experts,
        ep_size=dispatcher.ep_size,
        tp_size=tp_size,
        ep_rank=own[0] // len(own),
        tp_rank=tp_rank,
    )


def check_routing_map(routing_map: torch.Tensor, site: Site) -> None:
    """Raise RoutingMapError unless the map is [T, E] bool on the right device; strides do not matter. Notes T."""
    if routing_map.dtype is not torch.bool:
        raise _announced(site, RoutingMapError(f"routing map: dtype {routing_map.dtype}; expected torch.bool"))
    shape, experts = routing_map.shape, site.layout.num_experts
    if len(shape) != 2 or shape[1] != experts:
        problem = f"routing map: shape {tuple(shape)}; expected [tokens, {experts}]"
        raise _announced(site, RoutingMapError(problem))
    if not site.is_here(routing_map):
        problem = f"routing map: on device {routing_map.device}; expected {site.device}"
        raise _announced(site, RoutingMapError(problem))
    if shape[0] > MAX_ROWS:
        problem = f"routing map: {shape[0]} tokens; counts are exact up to {MAX_ROWS}"
        raise _announced(site, CountOverflowError(problem))
    site.tokens = shape[0]


def _announced(site: Site, error: MindSpeedMoEError) -> MindSpeedMoEError:
    """Before a layer's first exchange its group compares what it expects, and waits for this rank."""
    if site.exchange is not None and site.group is None and site.full_group is not None:
        refuse(site.full_group, str(error))
    return error
