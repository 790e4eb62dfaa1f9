"""Patches of the dispatchers that copy inside of preprocess and wait inside of their dispatching.

MoEAlltoAllTokenDispatcher of 0.10 and 0.11, and MoEAlltoAllSEQTokenDispatcher, which was not changed until it went.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from mindspeed_moe.contract.generations import ALLTOALL, INLINED, LEGACY, WITH_LEGACY, Generation, generation_named
from mindspeed_moe.patches.waiting import waiting_attributes
from mindspeed_moe.patching import PatchSpec, Switch
from mindspeed_moe.preprocess.adapters import attributes_of
from mindspeed_moe.preprocess.attributes_inline import InlineAttributes
from mindspeed_moe.preprocess.program import Program, not_compiled, uncompiled

_MOE = "megatron/core/transformer/moe"
_UPSTREAM = f"megatron-core 0.10.0 and 0.11.0, {_MOE}/token_dispatcher.py"
_UPSTREAM_SEQ = f"megatron-core 0.10.0 to 0.12.1, {_MOE}/legacy_a2a_token_dispatcher.py"


def _preprocess(original: Callable[..., Any], program: Program) -> Callable[..., Any]:
    run, switch = uncompiled(program.preprocess), Switch()

    @not_compiled
    @functools.wraps(original)
    def preprocess(self: Any, routing_map: torch.Tensor) -> Any:
        return run(self, routing_map) if switch.to is None else switch.to(self, routing_map)

    return switch.of(preprocess)


def _replaced(owner: str, unit: str, generations: tuple[str, ...], upstream: str) -> PatchSpec:
    return PatchSpec(
        target=f"{owner}.preprocess",
        kind="replace",
        build=_preprocess,
        unit=unit,
        parameters=("self", "routing_map"),
        generations=generations,
        why="Turning the routing map into split sizes is host-bound: about ten small kernels and four or five copies "
        "in every MoE layer, and then a wait for the whole stream.",
        how="One count, one exchange of counts, one copy; the splits are derived on the host when one is first read. "
        "`cuda_sync_point` is left at no_sync, so that Megatron does not wait for the stream (`reference`: it does).",
        upstream=upstream,
        remove_when="the release is no longer supported.",
    )


def _waited_for(dispatcher: str, generation: Generation) -> tuple[str, ...]:
    attributes = attributes_of(dispatcher, generation)
    assert isinstance(attributes, InlineAttributes)
    return attributes.waiting


def _alltoall(name: str) -> tuple[PatchSpec, ...]:
    names = _waited_for("alltoall", generation_named(name))
    return waiting_attributes(ALLTOALL, names, unit="alltoall", generations=(name,), upstream=_UPSTREAM)


SPECS = (
    _replaced(ALLTOALL, "alltoall", INLINED, _UPSTREAM),
    *(spec for name in INLINED for spec in _alltoall(name)),
)

SEQ_SPECS = (
    _replaced(LEGACY, "alltoall_seq", WITH_LEGACY, _UPSTREAM_SEQ),
    *waiting_attributes(
        LEGACY,
        _waited_for("alltoall_seq", generation_named(WITH_LEGACY[0])),
        unit="alltoall_seq",
        generations=WITH_LEGACY,
        upstream=_UPSTREAM_SEQ,
    ),
)
