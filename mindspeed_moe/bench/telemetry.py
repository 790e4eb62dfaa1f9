"""What telemetry adds to a call, and what becomes of a layer's sums when a training step ends."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from mindspeed_moe.preprocess.attributes import Attributes
from mindspeed_moe.preprocess.layout import ExpertLayout
from mindspeed_moe.preprocess.site import Site
from mindspeed_moe.preprocess.splits import SplitPlan
from mindspeed_moe.preprocess.steps import Steps
from mindspeed_moe.telemetry.jsonl import encoded
from mindspeed_moe.telemetry.load import LayerFacts, Sums
from mindspeed_moe.telemetry.observed import Observed

# telemetry_call: everything that a call does more; telemetry_record: once a layer and step, making its line included,
# which is done in another thread and takes Python's lock all the same.
TELEMETRY_BLOCKS = ("telemetry_call", "telemetry_record")


def telemetry_blocks(
    attributes: Attributes, dispatcher: Any, site: Site, routing_map: torch.Tensor
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a call that does nothing but to be observed, and what becomes of its sums."""
    layout = site.layout
    plan = _plan(layout, int(routing_map.sum()))
    steps = Steps()
    steps.forward = lambda: 0  # type: ignore[method-assign]  # it would wait for optimizers, of which there are none
    sums = Sums(layout)
    collector: Any = SimpleNamespace(steps=steps, begin=lambda *asked: sums)
    sites: Any = SimpleNamespace(attributes=attributes, of=lambda asked: site)

    def publish(asked: Any, given: torch.Tensor) -> None:
        assert attributes.watch is not None
        attributes.watch(dispatcher, site, plan, False)

    inner: Any = SimpleNamespace(
        sites=sites, waits_later=False, preprocess=publish, host_copies=None, under_way=lambda asked: False
    )
    observed = Observed(inner, collector)
    facts = LayerFacts(1, layout, dispatcher.config.moe_router_topk, tuple(range(layout.group_size)), 2048)

    def record() -> bytes:
        load = sums.take(facts, 1)
        assert load is not None
        return encoded(load.line())

    def call() -> None:
        observed.preprocess(dispatcher, routing_map)

    def call_and_record() -> bytes:
        call()
        return record()

    call()
    return call, call_and_record


def _plan(layout: ExpertLayout, rows: int) -> SplitPlan:
    """A plan with numbers of a usual size."""
    local, ep = layout.num_local_experts, layout.ep_size
    tokens, sent = np.full(local, rows // local), np.full(ep, rows // ep)
    alone = layout.group_size == 1
    return SplitPlan(None if alone else sent, None if alone else sent, None, tokens, None, rows)
