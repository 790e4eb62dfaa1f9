"""What preprocess knows of one dispatcher, from its first call on: layout, group, exchange."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch

from mindspeed_moe.contract.generations import Generation
from mindspeed_moe.errors import CountOverflowError, GroupError, RoutingMapError
from mindspeed_moe.preprocess.agreement import Facts, require_agreement
from mindspeed_moe.preprocess.exchange import EXCHANGES, Exchange
from mindspeed_moe.preprocess.experts import ExpertsOf
from mindspeed_moe.preprocess.groups import Groups
from mindspeed_moe.preprocess.layout import ExpertLayout
from mindspeed_moe.preprocess.splits import MAX_ROWS, SplitPlan


@dataclass
class Site:
    """One dispatcher as preprocess sees it: what stays the same from call to call.

    group: the group that the counts travel on, chosen before the first exchange; None until then, and always None
        for a rank without peers, which needs none.
    tp_ep_group: what tells that the process groups were replaced; None for a rank without peers.
    exchange: None for a rank without peers.
    counts_on_host: where the experts read their counts.
    is_here: whether a tensor is on the device; much cheaper than asking for the device's name.
    buffers: what a program keeps for its calls.
    padded: the last capacity of drop-and-pad, and its plan.
    """

    layout: ExpertLayout
    tp_ep_group: Any
    exchange: Exchange | None
    counts_on_host: bool
    device: str
    is_here: Callable[[torch.Tensor], bool]
    group: Any = None
    buffers: Any = None
    padded: tuple[int, SplitPlan] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Choices:
    """How sites are made.

    tokens_per_expert: host or device, for dispatchers whose experts are not known or not asked.
    ask_experts: whether experts that are known decide instead.
    measured_for: E, EP and TP that a tuned file was measured for; None without one.
    """

    device: str
    exchange: str
    groups: Groups
    tokens_per_expert: str
    ask_experts: bool = False
    measured_for: tuple[int, int, int] | None = None


class Sites:
    """Finds the Site of a dispatcher, makes it on its first call, and again when its process group is replaced."""

    def __init__(self, generation: Generation, choices: Choices, facts: Facts) -> None:
        self.generation = generation
        self.experts = ExpertsOf()
        self._choices = choices
        self._facts = facts
        self._sites: WeakKeyDictionary[Any, Site] = WeakKeyDictionary()

    def of(self, dispatcher: Any) -> Site:
        """Return the Site; GroupError when the dispatcher's group does not fit its layout."""
        site = self._sites.get(dispatcher)
        if site is None or (site.tp_ep_group is not None and site.tp_ep_group is not dispatcher.tp_ep_group):
            site = self._bind(dispatcher)
            self._sites[dispatcher] = site
        return site

    def join(self, site: Site, dispatcher: Any) -> None:
        """Before a dispatcher's first exchange: make sure that all ranks expect the same, and choose the group."""
        layout = site.layout
        facts = {
            **self._facts,
            "num_experts": layout.num_experts,
            "num_local_experts": layout.num_local_experts,
            "ep_size": layout.ep_size,
            "tp_size": layout.tp_size,
        }
        require_agreement(site.tp_ep_group, facts)
        site.group = self._choices.groups.choose(dispatcher, layout)

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
        choices = self._choices
        if choices.measured_for not in (None, (experts, layout.ep_size, layout.tp_size)):
            raise GroupError(
                f"tuned: the file was measured for E, EP, TP = {choices.measured_for}; this layer has "
                f"{(experts, layout.ep_size, layout.tp_size)}: run `mindspeed-moe tune` for it, or remove `tuned`"
            )
        asked = self.experts.read_counts_on(dispatcher, choices.device) if choices.ask_experts else None
        return Site(
            layout=layout,
            tp_ep_group=group if size > 1 else None,
            exchange=EXCHANGES[choices.exchange](layout) if size > 1 else None,
            counts_on_host=(asked or choices.tokens_per_expert) == "host",
            device=choices.device,
            is_here=operator.attrgetter(f"is_{choices.device}"),
        )


def check_routing_map(routing_map: torch.Tensor, site: Site) -> None:
    """Raise RoutingMapError unless the map is [T, E] bool on the right device; strides do not matter."""
    if routing_map.dtype is not torch.bool:
        raise RoutingMapError(f"routing map: dtype {routing_map.dtype}; expected torch.bool")
    shape, experts = routing_map.shape, site.layout.num_experts
    if len(shape) != 2 or shape[1] != experts:
        raise RoutingMapError(f"routing map: shape {tuple(shape)}; expected [tokens, {experts}]")
    if not site.is_here(routing_map):
        raise RoutingMapError(f"routing map: on device {routing_map.device}; expected {site.device}")
    if shape[0] > MAX_ROWS:
        raise CountOverflowError(f"routing map: {shape[0]} tokens; counts are exact up to {MAX_ROWS}")
