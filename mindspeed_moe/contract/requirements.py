"""What the code that the plugin patches, or leaves its results to, must have: one table a contract.

The facts of a generation tell releases apart; these hold for what is in use, and were read from megatron-core 0.10.0 to
0.19.0, `megatron/core/transformer/moe/{token_dispatcher,legacy_a2a_token_dispatcher,moe_layer,moe_utils}.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mindspeed_moe.contract.generations import (
    ALLTOALL,
    HOOK,
    LEGACY,
    LEGACY_DISPATCHER,
    STAGE_METHODS,
    Generation,
)

MOE_UTILS = "megatron.core.transformer.moe.moe_utils"
MOE_LAYER = "megatron.core.transformer.moe.moe_layer"

# The attribute of the legacy dispatcher, whatever the other one calls its own.
LEGACY_CHUNK_TABLE = "num_global_tokens_per_local_expert_cpu"

_SPLITS = ("input_splits", "output_splits")
_SPLITS_TP = "output_splits_tp"
_HOST_COPIES = "_maybe_dtoh_and_synchronize"
_ORDER = "sort_input_by_local_experts"


@dataclass(frozen=True)
class Requirement:
    """Something that a function or class must have.

    kind: takes    the parameters of the function `target` are `names`, these and no others, in this order
          accepts  the function has a parameter of each name
          reads    its code reads an attribute or a global of each name
          sets     its code sets an attribute of each name
          says     its code holds each string
          has      an object of the class `target` has an attribute of each name: the class or a base defines it, or
                   one of their constructors sets it
          leaves   neither the class nor a base defines the name
    why: who relies on it.
    """

    kind: str
    target: str
    names: tuple[str, ...]
    why: str

    def each(self) -> tuple[Requirement, ...]:
        """Return one requirement a name; a list of parameters stays one."""
        if self.kind == "takes":
            return (self,)
        return tuple(Requirement(self.kind, self.target, (name,), self.why) for name in self.names)

    def __str__(self) -> str:
        named = ", ".join(map(repr, self.names))
        return {
            "takes": f"{self.target} takes",
            "accepts": f"{self.target} has a parameter {named}",
            "reads": f"{self.target} reads {named}",
            "sets": f"{self.target} sets {named}",
            "says": f"{self.target} contains the string {named}",
            "has": f"objects of {self.target} have {named}",
            "leaves": f"{self.target} leaves the name {named} undefined",
        }[self.kind]


def _layout(owner: str, *more: str) -> Requirement:
    """What the plugin reads from a dispatcher of any contract."""
    names = ("config", "num_experts", "local_expert_indices", "ep_size", "tp_size", "ep_group", "drop_and_pad")
    return Requirement("has", owner, (*names, "cuda_sync_point", *more), "the plugin's preprocess reads it")


def _preprocess(owner: str, table: str, *more: str) -> tuple[Requirement, ...]:
    path = f"{owner}.preprocess"
    return (
        Requirement("takes", path, ("self", "routing_map"), "the plugin's own is called in its place"),
        Requirement("sets", path, (*_SPLITS, "num_out_tokens", table, "capacity", *more), "the plugin's own sets it"),
        Requirement(
            "reads", path, ("moe_router_topk", "moe_expert_capacity_factor"), "it decides how many rows are permuted"
        ),
    )


def _hooked(generation: Generation) -> tuple[Requirement, ...]:
    """Return the table of MoEAlltoAllTokenDispatcher that waits in a hook (from 0.12 on)."""
    table, splits = generation.chunk_table, (*_SPLITS, _SPLITS_TP)
    hook = f"{ALLTOALL}.{_HOST_COPIES}"
    padding = generation.router_padding
    return (
        _layout(
            ALLTOALL,
            "tp_rank",
            "tp_ep_group",
            "cuda_dtoh_point",
            "moe_expert_capacity_factor",
            "permute_idx_device",
        ),
        *_preprocess(ALLTOALL, table, _SPLITS_TP),
        *(
            (Requirement("reads", f"{ALLTOALL}.preprocess", (padding,), "with it, rows depend on data"),)
            if padding
            else ()
        ),
        Requirement(
            "reads", f"{ALLTOALL}.preprocess", ("moe_permute_fusion",), "with it, the table stays on the device"
        ),
        Requirement(
            "takes", f"{ALLTOALL}._maybe_update_cuda_sync_point", ("self", "point"), "the plugin's preprocess calls it"
        ),
        Requirement("sets", f"{ALLTOALL}._maybe_update_cuda_sync_point", ("cuda_sync_point",), "the hook waits there"),
        Requirement("takes", hook, ("self", "point", "tokens_per_expert"), "the plugin's own is called in its place"),
        Requirement("reads", hook, ("cuda_sync_point", "cuda_dtoh_point", "drop_and_pad"), "the plugin's own does too"),
        Requirement(
            "sets", hook, (*splits, "num_out_tokens", table), "it copies this, and the plugin's own does instead"
        ),
        *(_stages(table) if (STAGE_METHODS, True) in generation.expected else _whole_dispatch(table)),
        *_utilities("fused"),
    )


def _stages(table: str) -> tuple[Requirement, ...]:
    """Return the consumers of a dispatcher whose layer calls six stages (from 0.13 on)."""
    permute, send, sort = (
        f"{ALLTOALL}.{name}" for name in ("dispatch_preprocess", "token_dispatch", "dispatch_postprocess")
    )
    back = "combine reads it again"
    return (
        Requirement("reads", permute, ("preprocess", "permute", "num_out_tokens", _HOST_COPIES), "permutation 1"),
        Requirement("says", permute, ("before_permutation_1",), "a point of the hook"),
        Requirement("reads", send, (*_SPLITS, "ep_group", _HOST_COPIES), "the all-to-all of tokens"),
        Requirement("says", send, ("before_ep_alltoall",), "a point of the hook"),
        Requirement("reads", sort, (_SPLITS_TP, table, _ORDER, _HOST_COPIES), "the gather over TP and permutation 2"),
        Requirement("says", sort, ("before_permutation_2", "before_finish"), "a point of the hook"),
        Requirement("reads", f"{ALLTOALL}.combine_preprocess", (_SPLITS_TP, table), back),
        Requirement("reads", f"{ALLTOALL}.token_combine", _SPLITS, back),
    )


def _whole_dispatch(table: str) -> tuple[Requirement, ...]:
    """Return the consumers of a dispatcher with the hook and one long method each way (0.12)."""
    forth, back = f"{ALLTOALL}.token_permutation", f"{ALLTOALL}.token_unpermutation"
    points = ("before_permutation_1", "before_ep_alltoall", "before_permutation_2", "before_finish")
    used = (*_SPLITS, _SPLITS_TP, table)
    return (
        Requirement("reads", forth, ("preprocess", "permute", _HOST_COPIES), "it calls what the plugin relies on"),
        Requirement("reads", forth, (*used, "num_out_tokens", _ORDER, "ep_group"), "dispatch uses it"),
        Requirement("says", forth, points, "a point of the hook"),
        Requirement("reads", back, used, "combine reads it again"),
    )


def _inline(generation: Generation) -> tuple[Requirement, ...]:
    """Return the table of MoEAlltoAllTokenDispatcher that waits inside of its dispatching (0.10, 0.11)."""
    table = generation.chunk_table
    return (
        _layout(ALLTOALL, "tp_rank", "tp_ep_group"),
        *_preprocess(ALLTOALL, table, _SPLITS_TP, "cuda_sync_point"),
        *_waits_inside(ALLTOALL, (*_SPLITS, _SPLITS_TP), table, "ep_group"),
        *_utilities(),
    )


def _sequence(generation: Generation) -> tuple[Requirement, ...]:
    """Return the table of MoEAlltoAllSEQTokenDispatcher (0.10 to 0.12)."""
    on_device = "num_global_tokens_per_local_expert"
    return (
        _layout(LEGACY),
        *_preprocess(LEGACY, LEGACY_CHUNK_TABLE, on_device, "cuda_sync_point"),
        *_waits_inside(LEGACY, _SPLITS, LEGACY_CHUNK_TABLE),
        *_utilities(),
    )


def _waits_inside(owner: str, splits: tuple[str, ...], table: str, *more: str) -> tuple[Requirement, ...]:
    forth, back = f"{owner}.token_permutation", f"{owner}.token_unpermutation"
    points = ("before_permutation_1", "before_ep_alltoall", "before_finish")
    waiting = (*splits, "num_out_tokens", table)
    return (
        Requirement("leaves", owner, waiting, "the plugin puts a property there that waits for its value"),
        Requirement("reads", forth, ("preprocess", "permute", _ORDER, *more), "dispatch uses it"),
        Requirement("reads", forth, waiting, "the property waits where this reads it"),
        Requirement("reads", forth, ("cuda_sync_point", "synchronize"), "no_sync keeps it from waiting for the stream"),
        Requirement("says", forth, points, "a point at which it waits"),
        Requirement("says", f"{owner}.__init__", ("no_sync",), "the point at which nothing waits"),
        Requirement("reads", back, (*splits, table), "combine reads it again"),
    )


def _utilities(*more: str) -> tuple[Requirement, ...]:
    return (
        Requirement(
            "accepts",
            f"{MOE_UTILS}.get_capacity",
            ("num_tokens", "num_experts", "capacity_factor"),
            "drop and pad calls it with these keywords",
        ),
        Requirement(
            "accepts", f"{MOE_UTILS}.permute", ("routing_map", "num_out_tokens", *more), "permutation 1 is given it"
        ),
    )


def _experts(generation: Generation) -> tuple[Requirement, ...]:
    """Return the table of MoELayer, whose constructor tells which experts a dispatcher serves."""
    names = ("token_dispatcher", "experts")
    return (Requirement("sets", f"{MOE_LAYER}.MoELayer.__init__", names, "the plugin reads it after the constructor"),)


# unit of patches -> its table; the units without one need nothing beyond what their patches check themselves
_TABLES: dict[str, Callable[[Generation], tuple[Requirement, ...]]] = {
    "alltoall": lambda generation: (_hooked if generation.adapter == HOOK else _inline)(generation),
    "alltoall_seq": lambda generation: (
        _sequence(generation) if (LEGACY_DISPATCHER, True) in generation.expected else ()
    ),
    "experts": _experts,
}
UNITS = tuple(_TABLES)


def requirements_of(unit: str, generation: Generation) -> tuple[Requirement, ...]:
    """Return what the patches of a unit require of a generation, one name each; empty when there is nothing."""
    rows = _TABLES[unit](generation) if unit in _TABLES else ()
    return tuple(one for requirement in rows for one in requirement.each())
