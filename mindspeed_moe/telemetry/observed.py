"""A program whose published counts are added up on their way to the dispatcher."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch

from mindspeed_moe.preprocess.program import Program
from mindspeed_moe.preprocess.site import Site
from mindspeed_moe.preprocess.splits import SplitPlan
from mindspeed_moe.telemetry.collector import Collector
from mindspeed_moe.telemetry.load import Sums


class Observed:
    """Stands for `inner`.

    Calls without gradients are not counted: the first of the two passes of recomputation, and evaluation.
    """

    def __init__(self, inner: Program, collector: Collector) -> None:
        self.sites = inner.sites
        self.waits_later = inner.waits_later
        self.host_copies = inner.host_copies  # nothing to do there: plans come by themselves
        self.under_way = inner.under_way
        self._run = inner.preprocess
        self._collector = collector
        self._forward = collector.steps.forward
        self._sums: WeakKeyDictionary[Any, Sums] = WeakKeyDictionary()
        inner.sites.attributes.watch = self._note

    def preprocess(self, dispatcher: Any, routing_map: torch.Tensor) -> torch.Tensor | None:
        """Run the inner program, and remember how many pairs of token and expert there are to place."""
        self._forward()
        sums = self._sums.get(dispatcher)
        if sums is None:
            site = self.sites.of(dispatcher)
            sums = self._sums[dispatcher] = self._collector.begin(dispatcher, self.sites, site)
        pairs = routing_map.shape[0] * dispatcher.config.moe_router_topk if torch.is_grad_enabled() else None
        sums.pairs = pairs
        return self._run(dispatcher, routing_map)

    def _note(self, dispatcher: Any, site: Site, plan: SplitPlan, padded: bool) -> None:
        sums = self._sums.get(dispatcher)
        if sums is None:  # somebody else's, such as the shadow that `verify` runs the reference for
            return
        if padded:
            sums.add_padded(plan)
        else:
            sums.add(plan)
