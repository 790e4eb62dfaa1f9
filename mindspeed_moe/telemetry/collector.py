"""Gathers the layers of a process, and hands their calls to the writers when a training step ends."""

from __future__ import annotations

import itertools
import logging
import weakref
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from mindspeed_moe import lifetime, log
from mindspeed_moe.preprocess.agreement import launch_store
from mindspeed_moe.preprocess.site import Site
from mindspeed_moe.preprocess.sites import Sites
from mindspeed_moe.preprocess.steps import Steps
from mindspeed_moe.telemetry.load import Call, LayerFacts, Sums, Taken
from mindspeed_moe.telemetry.outlet import MISSING, Outlet

_APART = 1000  # between the numbers of layers that Megatron numbers alike: those of a second model, for instance


@dataclass
class _Layer:
    """place: among the layers, in the order of first calls. facts: None until something is handed over.

    life: of the process groups that the layer was called in first. launch: this rank there, and how many there were.
    """

    sites: Sites
    site: Site
    place: int
    sums: Sums = field(default_factory=Sums)
    facts: LayerFacts | None = None
    life: int = 0
    launch: tuple[int, int] = (0, 1)


class Collector:
    """One for a process. interval: training steps that a record adds up."""

    def __init__(self, steps: Steps, outlet: Outlet, interval: int) -> None:
        self.steps = steps
        self._outlet = outlet
        self._interval = interval
        self._layers: WeakKeyDictionary[Any, _Layer] = WeakKeyDictionary()
        self._places = itertools.count()
        self._observed: list[Sites] = []
        self._ended = 0
        self._known: Any = lambda: None  # the store of the process groups; held, it would outlive them
        self._lives = 0
        self._ends_with_plugin = False
        steps.at_step_end(self._step_ended)
        outlet.before_close = self._hand_over_the_rest

    def observe(self, sites: Sites) -> None:
        """Keep what is published for these sites.

        Calls without gradients are not counted: the first of the two passes of recomputation, and evaluation.
        """
        steps, counted, new_call = self.steps, torch.is_grad_enabled, tuple.__new__

        def watch(dispatcher: Any, site: Site, received: Any, sent: Any, rows: int, padded: bool) -> None:
            if not counted():
                return
            try:
                sums = site.watched
                if sums is None:
                    sums = site.watched = self._begin(dispatcher, sites, site)
                if not steps.under_way:
                    steps.forward()
                if sums is not _NOT_KEPT:
                    calls = sums.calls
                    # Call's own constructor would be one more call of Python's.
                    calls.append(new_call(Call, (received, sent, rows, site.tokens, padded)))
                    if len(calls) >= Sums.MOST:
                        sums.add_up()
            except Exception as error:
                _training_goes_on(error)

        sites.attributes.watch = watch
        self._observed.append(sites)

    def _begin(self, dispatcher: Any, sites: Sites, site: Site) -> Any:
        """A layer's first call, or its first one in new process groups."""
        if not self._ends_with_plugin:
            self._ends_with_plugin = True
            lifetime.at_end(self._end)
            self._outlet.open()
        if not sites.attributes.speaks_for_tp(dispatcher):
            return _NOT_KEPT
        layer = self._layers.get(dispatcher)
        if layer is None:
            layer = self._layers[dispatcher] = _Layer(sites, site, next(self._places))
        else:
            if layer.facts is not None and not layer.sums.empty:
                self._outlet.put([layer.sums.take(layer.facts, self.steps.current)])  # under the ranks that they had
            layer.site, layer.sums = site, Sums()
        self._joined(layer)
        return layer.sums

    def _end(self) -> None:
        """The plugin is off; programs that go on, because somebody has patched over them, are not observed."""
        self._hand_over_the_rest()
        self._outlet.close()
        for sites in self._observed:
            sites.attributes.watch = None

    def _step_ended(self, step: int) -> None:
        self._ended += 1
        if self._ended % self._interval == 0:
            self._hand_over(step)

    def _hand_over_the_rest(self) -> None:
        self._hand_over(self.steps.latest)

    def _hand_over(self, step: int) -> None:
        try:
            taken: list[Taken] = []
            for dispatcher, layer in list(self._layers.items()):
                if not layer.sums.empty:
                    if layer.site.full_group is None and layer.life != self._life():
                        self._joined(layer)  # there is no group whose replacement would be seen in a call
                    if layer.facts is None:
                        layer.facts = self._facts(layer, dispatcher)
                    taken.append(layer.sums.take(layer.facts, step))
            if taken:
                self._outlet.put(taken)
        except Exception as error:
            _training_goes_on(error)

    def _life(self) -> int:
        """Return a number that is another one when the process groups were made anew; ranks may be others then."""
        store = launch_store()
        if store is not None and store is not self._known():
            self._known = weakref.ref(store)
            self._lives += 1
        return self._lives

    def _joined(self, layer: _Layer) -> None:
        """Note the process groups that a layer is in from here on: ranks may be asked for when they are gone."""
        layer.life, layer.facts = self._life(), None
        layer.launch = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    def _facts(self, layer: _Layer, dispatcher: Any) -> LayerFacts:
        config, site = dispatcher.config, layer.site
        number, numbered = self._number(layer, dispatcher)
        full = site.full_group
        return LayerFacts(
            layer=number,
            layout=site.layout,
            topk=config.moe_router_topk,
            group=layer.launch[:1] if full is None else tuple(dist.get_process_group_ranks(full)),
            # alltoall_seq sends a part of each row on every TP rank, and one of them speaks for all.
            row_bytes=config.hidden_size * config.params_dtype.itemsize,
            numbered=numbered,
            drops=config.moe_expert_capacity_factor is not None,
            launch=layer.launch,
        )

    def _number(self, layer: _Layer, dispatcher: Any) -> tuple[int, bool]:
        """Return Megatron's number of the layer, or its place among the layers; never that of another one.

        And whether it is Megatron's. Layers of process groups that are gone have left their numbers.
        """
        number = layer.sites.experts.layer_number(dispatcher)
        numbered = number is not None
        if number is None:
            number = layer.place
        others = (one for one in self._layers.values() if one is not layer and one.life == layer.life)
        taken = {one.facts.layer for one in others if one.facts is not None}
        while number in taken:
            number += _APART
        return number, numbered


_NOT_KEPT = object()  # in the place of sums: another rank speaks


def _training_goes_on(error: Exception) -> None:
    log.once(logging.WARNING, f"{MISSING}: {error!r}; training goes on", MISSING)
