"""Gathers the layers of a process, and hands their records to the writers when a training step ends."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from mindspeed_moe.preprocess.site import Site
from mindspeed_moe.preprocess.sites import Sites
from mindspeed_moe.preprocess.splits import SplitPlan
from mindspeed_moe.preprocess.steps import Steps
from mindspeed_moe.telemetry.load import LayerFacts, Sums, Taken
from mindspeed_moe.telemetry.outlet import Outlet

_APART = 1000  # between the numbers of layers that Megatron numbers alike: those of a second model, for instance


@dataclass
class _Layer:
    dispatcher: weakref.ref[Any]
    sites: Sites
    site: Site
    sums: Sums
    facts: LayerFacts | None = field(default=None)


class Collector:
    """One for a process. interval: training steps that a record adds up."""

    def __init__(self, steps: Steps, outlet: Outlet, interval: int) -> None:
        self.steps = steps
        self._outlet = outlet
        self._interval = interval
        self._layers: list[_Layer] = []
        self._ended = 0
        steps.at_step_end(self._step_ended)

    def observe(self, sites: Sites) -> None:
        """Add up what is published for these sites.

        Calls without gradients are not counted: the first of the two passes of recomputation, and evaluation.
        """
        forward, counted = self.steps.forward, torch.is_grad_enabled

        def watch(dispatcher: Any, site: Site, plan: SplitPlan, padded: bool) -> None:
            if not counted():
                return
            sums = site.watched
            if sums is None:
                sums = site.watched = self._begin(dispatcher, sites, site)
            forward()
            sums.add(plan, site.tokens, padded)

        sites.attributes.watch = watch

    def _begin(self, dispatcher: Any, sites: Sites, site: Site) -> Sums:
        sums = Sums()
        self._layers.append(_Layer(weakref.ref(dispatcher), sites, site, sums))
        return sums

    def _step_ended(self, step: int) -> None:
        self._ended += 1
        if self._ended % self._interval:
            return
        taken: list[Taken] = []
        for layer in self._layers:
            if layer.sums.empty:
                continue
            facts = layer.facts or self._facts(layer)
            if facts is not None:
                taken.append(layer.sums.take(facts, step))
        if taken:
            self._outlet.put(taken)

    def _facts(self, layer: _Layer) -> LayerFacts | None:
        dispatcher = layer.dispatcher()
        if dispatcher is None:
            self._layers = [one for one in self._layers if one is not layer]
            return None
        config, site = dispatcher.config, layer.site
        width = config.hidden_size
        if not layer.sites.attributes.splits_over_tp:  # alltoall_seq sends a part of each row
            width //= dispatcher.tp_size
        full = site.full_group
        own = dist.get_rank() if dist.is_initialized() else 0
        layer.facts = LayerFacts(
            layer=self._number(layer, dispatcher),
            layout=site.layout,
            topk=config.moe_router_topk,
            group=(own,) if full is None else tuple(dist.get_process_group_ranks(full)),
            row_bytes=width * config.params_dtype.itemsize,
        )
        return layer.facts

    def _number(self, layer: _Layer, dispatcher: Any) -> int:
        """Return Megatron's number of the layer, or its place among the layers; never that of another one."""
        number = layer.sites.experts.layer_number(dispatcher)
        if number is None:
            number = next(place for place, one in enumerate(self._layers) if one is layer)
        taken = {one.facts.layer for one in self._layers if one.facts is not None}
        while number in taken:
            number += _APART
        return number
