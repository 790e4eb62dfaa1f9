"""Patches of MoEAlltoAllTokenDispatcher for the generations that copy to the host in a hook (0.12 on)."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

from mindspeed_moe import log
from mindspeed_moe.contract.generations import ALLTOALL, HOOKED
from mindspeed_moe.errors import PreprocessError
from mindspeed_moe.patching import PatchSpec, Switch
from mindspeed_moe.patching.target import beneath, locate
from mindspeed_moe.preprocess.attributes import BEFORE_FINISH, BEFORE_PERMUTATION_1
from mindspeed_moe.preprocess.program import Program, not_compiled, uncompiled

UNIT = "alltoall"
_HOOK = f"{ALLTOALL}._maybe_dtoh_and_synchronize"

# On a dispatcher, from our preprocess to the last point of the hook: its own id, so that a copy does not pass for it.
_SERVED = "_served_by_mindspeed_moe"


def _preprocess(original: Callable[..., Any], program: Program) -> Callable[..., Any]:
    run, waits_later, switch = uncompiled(program.preprocess), program.waits_later, Switch()
    hooks: set[Any] = set()  # that were seen to call ours

    @not_compiled
    @functools.wraps(original)
    def preprocess(self: Any, routing_map: torch.Tensor) -> Any:
        if switch.to is not None:
            return switch.to(self, routing_map)
        if waits_later and type(self)._maybe_dtoh_and_synchronize not in hooks and not _waits(type(self), hooks):
            vars(self).pop(_SERVED, None)
            return original(self, routing_map)
        if self.cuda_dtoh_point == BEFORE_PERMUTATION_1:  # later where a graph captures preprocess
            vars(self)[_SERVED] = id(self)
            return run(self, routing_map)
        vars(self).pop(_SERVED, None)
        # A replay of a CUDA graph would not repeat what lives outside of the tensors.
        log.once(logging.WARNING, "a CUDA graph captures MoE preprocess: Megatron's own stays in use there")
        return original(self, routing_map)

    return switch.of(preprocess)


def _waits(dispatcher: type, hooks: set[Any]) -> bool:
    """Return whether the class's hook is ours, or somebody's that calls ours; only then will anybody wait for us."""
    hook = dispatcher._maybe_dtoh_and_synchronize  # type: ignore[attr-defined]
    found = beneath(hook, dispatcher)
    if found is None or found.path != _HOOK:
        log.once(
            logging.WARNING,
            f"mindspeed_moe has no effect in layers with a {dispatcher.__name__} whose {_HOOK.rpartition('.')[2]} is "
            f"{locate(hook)}, which is not seen to call ours: Megatron's own preprocess runs there",
        )
        return False
    hooks.add(hook)
    return True


def _host_copies(original: Callable[..., Any], program: Program) -> Callable[..., Any]:
    run, waits_later, switch = uncompiled(program.host_copies), program.waits_later, Switch()
    # MindSpeed's hook copies the chunk table to the host, fused permutation or not: without triton it is read there.
    program.sites.attributes.sorts_on_host = str(getattr(original, "__module__", "")).startswith("mindspeed.")

    @not_compiled
    @functools.wraps(original)
    def _maybe_dtoh_and_synchronize(self: Any, point: str, tokens_per_expert: Any = None) -> Any:
        if switch.to is not None:
            return switch.to(self, point, tokens_per_expert)
        served = vars(self).get(_SERVED)
        if served != id(self):
            if served is None:  # somebody's preprocess, which did not call ours, leaves its copies to Megatron's hook
                return original(self, point, tokens_per_expert)
            raise PreprocessError(
                f"a {type(self).__name__} was copied between preprocess and {point}: its splits went to the other one"
            )
        if point == BEFORE_FINISH:
            del vars(self)[_SERVED]
        return run(self, point, tokens_per_expert) if waits_later else tokens_per_expert

    return switch.of(_maybe_dtoh_and_synchronize)


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
        target=_HOOK,
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
