"""The adapter: the only module that knows what Megatron's dispatcher calls its attributes.

Reads what preprocess needs from a dispatcher, and writes what the consumers read. The attribute names hold for
the generations that copy in a hook (megatron-core 0.12 on); what differs between them comes from Generation.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from mindspeed_moe.contract.generations import Generation
from mindspeed_moe.errors import CountOverflowError, GroupError, RoutingMapError
from mindspeed_moe.preprocess.agreement import Facts, require_agreement
from mindspeed_moe.preprocess.exchange import Exchange, make_exchange
from mindspeed_moe.preprocess.layout import ExpertLayout
from mindspeed_moe.preprocess.splits import MAX_ROWS, SplitPlan, padded_plan

_MOE_UTILS = "megatron.core.transformer.moe.moe_utils"


@dataclass
class Site:
    """One dispatcher as preprocess sees it: what stays the same from call to call.

    agreed: whether the group's ranks have been found to agree on the layout.
    """

    layout: ExpertLayout
    group: Any
    exchange: Exchange
    device: str
    agreed: bool = False


class Sites:
    """Finds the Site of a dispatcher, makes it on its first call, and again when its process group is replaced."""

    def __init__(self, generation: Generation, device: str, exchange: str, facts: Facts) -> None:
        self.generation = generation
        self._device = device
        self._exchange = exchange
        self._facts = facts
        self._sites: WeakKeyDictionary[Any, Site] = WeakKeyDictionary()

    def of(self, dispatcher: Any) -> Site:
        """Return the Site; GroupError when the dispatcher's group does not fit its layout."""
        site = self._sites.get(dispatcher)
        if site is None or site.group is not dispatcher.tp_ep_group:
            site = self._bind(dispatcher)
            self._sites[dispatcher] = site
        return site

    def agree(self, site: Site) -> None:
        """Before a dispatcher's first exchange, make sure that all ranks of its group expect the same."""
        if site.agreed or site.layout.group_size == 1:
            return
        site.agreed = True  # a failed comparison ends the run; it is not repeated on a half-dead group
        facts = {
            **self._facts,
            "num_experts": site.layout.num_experts,
            "num_local_experts": site.layout.num_local_experts,
            "ep_size": site.layout.ep_size,
            "tp_size": site.layout.tp_size,
        }
        require_agreement(site.group, facts)

    def _bind(self, dispatcher: Any) -> Site:
        experts, own = dispatcher.num_experts, dispatcher.local_expert_indices
        group, size = dispatcher.tp_ep_group, dispatcher.ep_size * dispatcher.tp_size
        if own != list(range(own[0], own[0] + len(own))) or experts != len(own) * dispatcher.ep_size:
            raise GroupError(
                f"local experts {own} of {experts} on EP = {dispatcher.ep_size}: expected "
                f"{experts // dispatcher.ep_size} neighbours on every rank"
            )
        layout = ExpertLayout(
            num_experts=experts,
            ep_size=dispatcher.ep_size,
            tp_size=dispatcher.tp_size,
            ep_rank=own[0] // len(own),
            tp_rank=dispatcher.tp_rank,
        )
        if size > 1 and group.size() != size:
            raise GroupError(
                f"the TPxEP group has {group.size()} ranks; EP = {layout.ep_size} x TP = {layout.tp_size} needs {size}"
            )
        if size > 1 and group.rank() != layout.group_index:
            raise GroupError(
                f"this rank is number {group.rank()} in the TPxEP group; with EP rank {layout.ep_rank} and TP rank "
                f"{layout.tp_rank} it must be {layout.group_index} (EP-major order)"
            )
        return Site(layout, group, make_exchange(self._exchange, layout), self._device)


# ------------------------------------------------------------------------------------------------ reading


def check_routing_map(routing_map: torch.Tensor, site: Site) -> None:
    """Raise RoutingMapError unless the map is [T, E] bool on the right device; strides do not matter."""
    if routing_map.dtype is not torch.bool:
        raise RoutingMapError(f"routing map: dtype {routing_map.dtype}; expected torch.bool")
    shape, experts = routing_map.shape, site.layout.num_experts
    if len(shape) != 2 or shape[1] != experts:
        raise RoutingMapError(f"routing map: shape {tuple(shape)}; expected [tokens, {experts}]")
    if routing_map.device.type != site.device:
        raise RoutingMapError(f"routing map: on device {routing_map.device}; expected {site.device}")
    if shape[0] > MAX_ROWS:
        raise CountOverflowError(f"routing map: {shape[0]} tokens; counts are exact up to {MAX_ROWS}")


def known_out_tokens(dispatcher: Any, routing_map: torch.Tensor, generation: Generation) -> int | None:
    """Return the rows after the first permutation, T * topk, or None when they depend on the routing map."""
    config = dispatcher.config
    padding = generation.router_padding
    if config.moe_expert_capacity_factor is not None or (padding and getattr(config, padding)):
        return None
    return int(routing_map.shape[0] * config.moe_router_topk)


def sync_point(dispatcher: Any, site: Site, num_out_tokens: int | None) -> str:
    """Return the first point at which Megatron's stages read a host value (0.12.1 `preprocess`)."""
    if num_out_tokens is None:
        return "before_permutation_1"
    if site.layout.group_size > 1:
        return "before_ep_alltoall"
    if site.layout.num_local_experts > 1 and not dispatcher.config.moe_permute_fusion:
        return "before_permutation_2"
    return "before_finish"


# ------------------------------------------------------------------------------------------------ writing


def publish(dispatcher: Any, plan: SplitPlan, generation: Generation, *, chunk_table: bool = True) -> torch.Tensor:
    """Give the consumers what they read; returns tokens per local expert, [L] int64 on the host.

    The splits are None on a rank without peers, whatever an earlier call left. chunk_table=False leaves the
    table alone, for a program that keeps it on the device.
    """
    dispatcher.input_splits = plan.input_splits
    dispatcher.output_splits = plan.output_splits
    dispatcher.output_splits_tp = plan.output_splits_tp
    dispatcher.num_out_tokens = plan.num_out_tokens
    if chunk_table and plan.chunk_table is not None:
        setattr(dispatcher, generation.chunk_table, torch.from_numpy(plan.chunk_table))
    return torch.from_numpy(plan.tokens_per_local_expert)


def publish_padded(dispatcher: Any, site: Site, routing_map: torch.Tensor, generation: Generation) -> torch.Tensor:
    """Drop and pad: everything follows from the capacity, known on the host; returns [L] int64 on the host."""
    # Looked up at call time: a name imported at module level would outlive somebody's patch of it.
    dispatcher.capacity = sys.modules[_MOE_UTILS].get_capacity(
        num_tokens=routing_map.shape[0] * dispatcher.config.moe_router_topk,
        num_experts=dispatcher.num_experts,
        capacity_factor=dispatcher.moe_expert_capacity_factor,
    )
    plan = padded_plan(site.layout, dispatcher.capacity)
    counts = publish(dispatcher, plan, generation)
    on_device = dispatcher.permute_idx_device
    if on_device is not None and torch.device(on_device).type != "cpu":
        table = getattr(dispatcher, generation.chunk_table)
        setattr(dispatcher, generation.chunk_table, table.to(on_device))
    return counts
