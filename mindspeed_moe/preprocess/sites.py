"""Finds what preprocess knows of a dispatcher, makes it on its first call, and settles what waits for that."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from mindspeed_moe.errors import GroupError
from mindspeed_moe.preprocess.agreement import Facts, LaunchAgreement, refuse, require_agreement
from mindspeed_moe.preprocess.attributes import Attributes
from mindspeed_moe.preprocess.exchange import EXCHANGES
from mindspeed_moe.preprocess.experts import ExpertsOf
from mindspeed_moe.preprocess.groups import Groups
from mindspeed_moe.preprocess.site import Site


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

    def __init__(
        self,
        attributes: Attributes,
        choices: Choices,
        facts: Facts,
        experts: ExpertsOf | None = None,
        launch: LaunchAgreement | None = None,
    ) -> None:
        self.attributes = attributes
        self.experts = ExpertsOf() if experts is None else experts
        self._choices = choices
        self._facts = facts
        self._launch = launch
        self._sites: WeakKeyDictionary[Any, Site] = WeakKeyDictionary()

    def of(self, dispatcher: Any) -> Site:
        """Return the Site; GroupError when the dispatcher's group does not fit its layout, or ranks disagree."""
        site = self._sites.get(dispatcher)
        if site is None or (
            site.full_group is not None and site.full_group is not self.attributes.full_group(dispatcher)
        ):
            site = self._bind(dispatcher)
            self._sites[dispatcher] = site
        return site

    def known(self) -> tuple[tuple[Any, Site], ...]:
        """Return every dispatcher that has been called and is still there, with its Site."""
        return tuple(self._sites.items())

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
        if self._launch is None:
            require_agreement(site.full_group, facts)
        else:
            require_agreement(site.full_group, facts, self._launch.difference)
        # With overlap another micro-batch's tokens may be under way on the EP group: counts would queue behind them.
        overlapped = getattr(dispatcher.config, "overlap_moe_expert_parallel_comm", False)
        site.group = self._choices.groups.choose(site.full_group, dispatcher.ep_group, layout, overlapped=overlapped)

    def _bind(self, dispatcher: Any) -> Site:
        try:
            return self._make(dispatcher)
        except GroupError as error:
            group = self.attributes.full_group(dispatcher)
            if group is not None and group.size() > 1 and not dispatcher.drop_and_pad:
                refuse(group, str(error))  # the others may wait for this rank, in `join`
            raise

    def _make(self, dispatcher: Any) -> Site:
        layout = self.attributes.layout(dispatcher)
        group, size = self.attributes.full_group(dispatcher), layout.group_size
        if size > 1 and group.size() != size:
            raise GroupError(
                f"the TPxEP group has {group.size()} ranks; EP = {layout.ep_size} x TP = {layout.tp_size} needs {size}"
            )
        if size > 1 and group.rank() != layout.group_index:
            raise GroupError(
                f"this rank is number {group.rank()} in the TPxEP group; with EP rank {layout.ep_rank} and TP rank "
                f"{layout.tp_rank} it must be {layout.group_index} (EP-major order)"
            )
        alone = size == 1 or dispatcher.drop_and_pad  # else the group hears it from its first rank, in `join`
        if alone and self._launch is not None:
            self._launch.require()
        choices, sizes = self._choices, (layout.num_experts, layout.ep_size, layout.tp_size)
        if choices.measured_for not in (None, sizes):
            raise GroupError(
                f"tuned: the file was measured for E, EP, TP = {choices.measured_for}; this layer has "
                f"{sizes}: run `mindspeed-moe tune` for it, or remove `tuned`"
            )
        asked = self.experts.read_counts_on(dispatcher, choices.device) if choices.ask_experts else None
        return Site(
            layout=layout,
            full_group=group if size > 1 else None,
            exchange=EXCHANGES[choices.exchange](layout) if size > 1 else None,
            counts_on_host=(asked or choices.tokens_per_expert) == "host",
            device=choices.device,
            is_here=operator.attrgetter(f"is_{choices.device}"),
        )
