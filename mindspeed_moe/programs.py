"""From a row of the dispatch table to the object that runs: its collaborators are put together once, here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from mindspeed_moe.contract.generations import Generation
from mindspeed_moe.devices.accelerator import Accelerator
from mindspeed_moe.devices.npu import npu_streams
from mindspeed_moe.dispatch_table import Decision
from mindspeed_moe.preprocess.counts import COUNTS
from mindspeed_moe.preprocess.packed import PackedOnHost
from mindspeed_moe.preprocess.packed_async import PackedOnAccelerator
from mindspeed_moe.preprocess.reference import Reference
from mindspeed_moe.preprocess.site import Sites


class Program(Protocol):
    """What stands behind the patches of one dispatcher."""

    def preprocess(self, dispatcher: Any, routing_map: torch.Tensor) -> torch.Tensor | None:
        """Turn a routing map [T, E] bool into the dispatcher's splits, or start to."""

    def host_copies(self, dispatcher: Any, point: str, tokens_per_expert: Any) -> Any:
        """Run at each of Megatron's points; returns tokens per local expert as the next reader wants them."""


def _packed_on_host(decision: Decision, sites: Sites) -> Program:
    return PackedOnHost(sites, COUNTS[decision.counts])


def _reference_on_host(decision: Decision, sites: Sites) -> Program:
    return Reference(sites, None, counts_on_host=True)


def _packed_on_accelerator(decision: Decision, sites: Sites) -> Program:
    on_host = decision.tokens_per_expert == "host"
    return PackedOnAccelerator(sites, COUNTS[decision.counts], _accelerator(decision), counts_on_host=on_host)


def _reference_on_accelerator(decision: Decision, sites: Sites) -> Program:
    return Reference(sites, _accelerator(decision), counts_on_host=decision.tokens_per_expert == "host")


def _accelerator(decision: Decision) -> Accelerator:
    return Accelerator(STREAMS[decision.device]())


# device -> the module that offers its streams and events
STREAMS: dict[str, Callable[[], Any]] = {"npu": npu_streams, "cuda": lambda: torch.cuda}

BUILDERS: dict[str, Callable[[Decision, Sites], Program]] = {
    "packed_on_host": _packed_on_host,
    "packed_on_accelerator": _packed_on_accelerator,
    "reference_on_host": _reference_on_host,
    "reference_on_accelerator": _reference_on_accelerator,
}


def build(decision: Decision, generation: Generation, version: str) -> Program | None:
    """Return the program of a decision, None for `stock`.

    version: of this plugin; ranks must agree on it, and on the decision, before their first exchange.
    """
    if decision.row is None:
        return None
    facts = {
        "mindspeed_moe": version,
        "implementation": decision.implementation,
        "exchange": decision.exchange,
    }
    sites = Sites(generation, decision.device, decision.exchange, facts)
    return BUILDERS[decision.row.program](decision, sites)
