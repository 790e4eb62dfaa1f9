"""What telemetry adds to a call, and what becomes of the calls of layers when a training step ends."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from mindspeed_moe.preprocess.attributes import Attributes
from mindspeed_moe.preprocess.experts import ExpertsOf
from mindspeed_moe.preprocess.layout import ExpertLayout
from mindspeed_moe.preprocess.site import Site
from mindspeed_moe.preprocess.steps import Steps
from mindspeed_moe.telemetry.collector import Collector
from mindspeed_moe.telemetry.jsonl import encoded
from mindspeed_moe.telemetry.load import Call, LayerFacts, Sums, loads

LAYERS = 16
# unpacking_telemetry: unpacking of a layer that is observed. telemetry_16_layers: once a step, the lines of so many
# layers; it runs in another thread, which takes Python's lock all the same. Writing them to the disk does not.
TELEMETRY_BLOCKS = ("unpacking_telemetry", f"telemetry_{LAYERS}_layers")


def observe(attributes: Attributes) -> None:
    """Let a collector watch what is published with these attributes."""
    steps = Steps()
    steps.under_way = True  # else it would begin to listen to optimizers
    nowhere: Any = SimpleNamespace(open=lambda: None, put=lambda taken: None, close=lambda: None)
    sites: Any = SimpleNamespace(attributes=attributes, experts=ExpertsOf())
    Collector(steps, nowhere, 1).observe(sites)


def end_of_step(dispatcher: Any, site: Site, routing_map: torch.Tensor) -> Callable[[], object]:
    """Return what is done once a step: the layers' calls are taken, added up and become lines."""
    layout, topk = site.layout, dispatcher.config.moe_router_topk
    facts = LayerFacts(1, layout, topk, tuple(range(layout.group_size)), 2048)
    call = _call(layout, len(routing_map), int(routing_map.sum()))
    layers = [Sums() for _ in range(LAYERS)]

    def step_ends() -> bytes:
        for sums in layers:
            sums.calls.append(call)
        added_up = loads([sums.take(facts, 1) for sums in layers])
        return b"".join(encoded(load.line()) for load in added_up)

    return step_ends


def _call(layout: ExpertLayout, tokens: int, rows: int) -> Call:
    """A call with numbers of a usual size."""
    local, ep = layout.num_local_experts, layout.ep_size
    sent = None if layout.group_size == 1 else np.full(ep, rows // ep)
    return Call(np.full(local, rows // local), sent, rows, tokens, False)
