"""What telemetry adds to a call, and what becomes of the sums of layers when a training step ends."""

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
from mindspeed_moe.telemetry.collector import Collector
from mindspeed_moe.telemetry.jsonl import encoded
from mindspeed_moe.telemetry.load import Call, LayerFacts, Sums

LAYERS = 16
# telemetry: everything that a call does more. telemetry_16_layers: once a step, the lines of so many layers; most of it
# in another thread, which takes Python's lock all the same. Writing them to the disk does not.
TELEMETRY_BLOCKS = ("telemetry", f"telemetry_{LAYERS}_layers")


def telemetry_blocks(
    attributes: Attributes, dispatcher: Any, site: Site, routing_map: torch.Tensor
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return what a call does more, and the end of a step."""
    layout = site.layout
    plan, site.tokens = _plan(layout, int(routing_map.sum())), len(routing_map)
    steps = Steps()
    steps.under_way = True  # else it would begin to listen to optimizers
    nowhere: Any = SimpleNamespace(put=lambda taken: None, close=lambda: None)
    collector = Collector(steps, nowhere, 1)
    sites: Any = SimpleNamespace(attributes=attributes)
    collector.observe(sites)
    watch = attributes.watch
    assert watch is not None
    attributes.watch = None  # unpacking is timed with these attributes, too
    facts = LayerFacts(1, layout, dispatcher.config.moe_router_topk, tuple(range(layout.group_size)), 2048)
    layers = [Sums() for _ in range(LAYERS)]

    def step_ends() -> bytes:
        for sums in layers:
            kept = plan.tokens_per_local_expert, plan.input_splits, plan.num_out_tokens
            sums.calls.append(Call(*kept, site.tokens, False))
        loads = [sums.take(facts, 1).load() for sums in layers]
        return b"".join(encoded(load.line()) for load in loads)

    return lambda: watch(dispatcher, site, plan, False), step_ends


def _plan(layout: ExpertLayout, rows: int) -> SplitPlan:
    """A plan with numbers of a usual size."""
    local, ep = layout.num_local_experts, layout.ep_size
    tokens, sent = np.full(local, rows // local), np.full(ep, rows // ep)
    alone = layout.group_size == 1
    return SplitPlan(None if alone else sent, None if alone else sent, None, tokens, None, rows)
