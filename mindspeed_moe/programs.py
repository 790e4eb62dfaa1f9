"""From a row of the dispatch table to the object that runs: its collaborators are put together once, here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mindspeed_moe.contract.generations import Generation
from mindspeed_moe.devices.accelerator import Accelerator
from mindspeed_moe.devices.npu import npu_streams, small_hccl_buffer
from mindspeed_moe.dispatch_table import AUTO, REFERENCE, Decision
from mindspeed_moe.preprocess.adapters import attributes_of
from mindspeed_moe.preprocess.agreement import Facts, LaunchAgreement
from mindspeed_moe.preprocess.counts import COUNTS
from mindspeed_moe.preprocess.experts import ExpertsOf
from mindspeed_moe.preprocess.groups import Groups, SmallBuffer
from mindspeed_moe.preprocess.packed import PackedOnHost
from mindspeed_moe.preprocess.packed_async import PackedOnAccelerator
from mindspeed_moe.preprocess.program import Program
from mindspeed_moe.preprocess.reference import Reference
from mindspeed_moe.preprocess.sites import Choices, Sites
from mindspeed_moe.preprocess.steps import Steps
from mindspeed_moe.telemetry.collector import Collector
from mindspeed_moe.verify.verification import Verification
from mindspeed_moe.verify.verified import Verified


@dataclass(frozen=True)
class Parts:
    """What builders put together. max_slots: the bound on each dispatcher's ring of slots."""

    decision: Decision
    sites: Sites
    max_slots: int

    def accelerator(self) -> Accelerator:
        """Return the streams and events of the decision's device."""
        return Accelerator(STREAMS[self.decision.device]())


def _packed_on_host(parts: Parts) -> Program:
    return PackedOnHost(parts.sites, COUNTS[parts.decision.counts])


def _reference_on_host(parts: Parts) -> Program:
    return Reference(parts.sites, None)


def _packed_on_accelerator(parts: Parts) -> Program:
    count = COUNTS[parts.decision.counts]
    aside = parts.decision.stream == "side"
    return PackedOnAccelerator(parts.sites, count, parts.accelerator(), aside=aside, max_slots=parts.max_slots)


def _reference_on_accelerator(parts: Parts) -> Program:
    return Reference(parts.sites, parts.accelerator())


# device -> the module that offers its streams and events
STREAMS: dict[str, Callable[[], Any]] = {"npu": npu_streams, "cuda": lambda: torch.cuda}

# device -> what makes the options of a group for counts alone
SMALL_BUFFERS: dict[str, SmallBuffer] = {"npu": small_hccl_buffer}

BUILDERS: dict[str, Callable[[Parts], Program]] = {
    "packed_on_host": _packed_on_host,
    "packed_on_accelerator": _packed_on_accelerator,
    "reference_on_host": _reference_on_host,
    "reference_on_accelerator": _reference_on_accelerator,
}


@dataclass(frozen=True)
class Watched:
    """What looks on while programs run; each None where the configuration does not ask for it.

    steps: that they count.
    """

    verification: Verification | None = None
    collector: Collector | None = None
    steps: Steps | None = None

    def around(self, program: Program, parts: Parts) -> Program:
        """Return a program with what looks on; `reference` is not compared with itself, and publishes no plan."""
        decision = parts.decision
        if decision.implementation == REFERENCE:
            return program
        if self.verification is not None:
            accelerator = parts.accelerator() if decision.device in STREAMS else None
            name = f"{decision.implementation}, {decision.exchange}"
            program = Verified(program, accelerator, self.verification, name)
        if self.collector is not None:
            self.collector.observe(program.sites)
        return program


def build(
    decision: Decision,
    generation: Generation,
    facts: Facts,
    max_slots: int = 8,
    measured_for: tuple[int, int, int] | None = None,
    experts: ExpertsOf | None = None,
    watched: Watched = Watched(),
    launch: LaunchAgreement | None = None,
) -> Program | None:
    """Return the program of a decision, None for `stock`.

    facts: what ranks must agree on before their first exchange, beside the decision: version, configuration.
    max_slots: preprocess.max_slots of the configuration. measured_for: E, EP and TP of a tuned file.
    experts: what is known of the experts behind dispatchers; several programs may share it.
    launch: what all ranks must have in common, whatever their groups; None where programs are made side by side.
    """
    if decision.row is None:
        return None
    decided = {
        "dispatcher": decision.dispatcher,
        "implementation": decision.implementation,
        "exchange": decision.exchange,
        "exchange_group": decision.exchange_group,
    }
    asks = decision.tokens_per_expert == AUTO
    choices = Choices(
        device=decision.device,
        exchange=decision.exchange,
        groups=Groups(decision.exchange_group, SMALL_BUFFERS.get(decision.device)),
        tokens_per_expert=decision.row.tokens_per_expert[0] if asks else decision.tokens_per_expert,
        ask_experts=asks,
        measured_for=measured_for,
    )
    sites = Sites(attributes_of(decision.dispatcher, generation), choices, {**facts, **decided}, experts, launch)
    parts = Parts(decision, sites, max_slots)
    return watched.around(BUILDERS[decision.row.program](parts), parts)
