"""Patches of MoEAlltoAllTokenDispatcher for the generations that copy to the host in a hook (0.12 on)."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

from mindspeed_moe import log
from mindspeed_moe.contract.generations import ALLTOALL, HOOKED
from mindspeed_moe.patching import PatchSpec
from mindspeed_moe.preprocess.attributes import BEFORE_PERMUTATION_1
from mindspeed_moe.preprocess.program import Program, not_compiled, uncompiled

UNIT = "alltoall"


def _preprocess(original: Callable[..., Any], program: Program) -> Callable[..., Any]:
    run = uncompiled(program.preprocess)

    @not_compiled
    @functools.wraps(original)
    def preprocess(self: Any, routing_map: torch.Tensor) -> Any:
        if self.cuda_dtoh_point == BEFORE_PERMUTATION_1:  # later where a graph captures preprocess
            return run(self, routing_map)
        # A replay of a CUDA graph would not repeat what lives outside of the tensors.
        log.once(logging.WARNING, "a CUDA graph captures MoE preprocess: Megatron's own stays in use there")
        return original(self, routing_map)

    return preprocess


def _host_copies(original: Callable[..., Any], program: Program) -> Callable[..., Any]:
    run = uncompiled(program.host_copies)
    # MindSpeed's hook copies the chunk table to the host, fused permutation or not: without triton it is read there.
    program.sites.attributes.sorts_on_host = str(getattr(original, "__module__", "")).startswith("mindspeed.")

    @functools.wraps(original)
    def returns_at_once(self: Any, point: str, tokens_per_expert: Any = None) -> Any:
        if self.cuda_dtoh_point == BEFORE_PERMUTATION_1:
            return tokens_per_expert
        return original(self, point, tokens_per_expert)

    if not program.waits_later:
        return returns_at_once

    @not_compiled
    @functools.wraps(original)
    def _maybe_dtoh_and_synchronize(self: Any, point: str, tokens_per_expert: Any = None) -> Any:
        if self.cuda_dtoh_point == BEFORE_PERMUTATION_1:
            return run(self, point, tokens_per_expert)
        return original(self, point, tokens_per_expert)

    return _maybe_dtoh_and_synchronize


SPECS = (
    PatchSpec(
        target=f"{ALLTOALL}.preprocess",
        kind="replace",
        build=_preprocess,
        unit=UNIT,
        parameters=("self", "routing_map"),
        generations=HOOKED,
        why="Turning the routing map into split sizes is host-bound: about ten small kernels in every MoE layer.",
        how="One count, one exchange of counts, one copy; the splits are derived on the host. "
        "Megatron's own runs where CUDA graphs capture preprocess.",
        upstream="megatron-core from 0.12 on, megatron/core/transformer/moe/token_dispatcher.py",
        remove_when="Megatron's preprocess costs no more than two kernels and one copy on every device.",
    ),
    PatchSpec(
        target=f"{ALLTOALL}._maybe_dtoh_and_synchronize",
        kind="replace",
        build=_host_copies,
        unit=UNIT,
        parameters=("self", "point", "tokens_per_expert"),
        generations=HOOKED,
        why="Megatron copies three to six tensors one by one, and 0.12 waits for the whole copy stream.",
        how="The copy is in flight already when this hook is called; it waits for one event where Megatron first "
        "reads a host value, and does nothing elsewhere.",
        upstream="megatron-core from 0.12 on, megatron/core/transformer/moe/token_dispatcher.py; "
        "its comment asks for a batched copy",
        remove_when="the patch of preprocess goes; the two belong together.",
    ),
)
