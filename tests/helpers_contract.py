"""What the MoE modules of megatron-core have in them, as data, and stub modules made of it.

Written by hand from the sources of the releases, beside and not from mindspeed_moe.contract.requirements.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

MOE = "megatron.core.transformer.moe"


@dataclass(frozen=True)
class Code:
    """A function or method: its parameters, and the names that its code sets, reads and says, space-separated."""

    parameters: str
    sets: str = ""
    reads: str = ""
    says: str = ""
    first: str = ""  # a line that is always run
    result: str = "None"

    def source(self, name: str, indent: str) -> str:
        """Return its text. What it sets, reads and says stands in a branch that is compiled and never taken."""
        subject = self.parameters.replace("=", ",").partition(",")[0]
        lines = [f"def {name}({self.parameters}):", *([f"    {self.first}"] if self.first else [])]
        lines.append(f"    if {subject} is Ellipsis:")
        lines += [f"        {subject}.{one} = 0" for one in self.sets.split()]
        lines += [f"        {subject}.{one}" for one in self.reads.split()]
        lines += [f"        word = {one!r}" for one in self.says.split()]
        lines += ["        pass", f"    return {self.result}"]
        return "".join(f"{indent}{line}\n" for line in lines)


Contents = dict[str, Code]  # dotted path below megatron.core.transformer.moe -> code; @ before a name: a property

A2A = "token_dispatcher.MoEAlltoAllTokenDispatcher"
BASE = "token_dispatcher.MoETokenDispatcher"
SEQ = "legacy_a2a_token_dispatcher.MoEAlltoAllSEQTokenDispatcher"
SEQ_BASE = "legacy_a2a_token_dispatcher.MoETokenDispatcher"

_SPLITS = "input_splits output_splits"
_POINTS = "before_permutation_1 before_ep_alltoall before_finish"
_CONSTRUCTED = "num_local_experts num_experts local_expert_indices drop_and_pad capacity cuda_sync_point"


def contents(features: Set[str]) -> Contents:
    """Return what the modules of a release with these features (helpers_megatron.FEATURES) have in them."""
    table = "num_global_tokens_per_local_expert" + ("_cpu" if "cpu_table" in features else "")
    new = "hook" in features
    found: Contents = {}
    if "stages" in features:  # groups are given to the constructor, and kept
        groups = "config ep_group tp_group tp_ep_group tp_size tp_rank ep_size"
        found[f"{BASE}.__init__"] = Code("self, config", sets=groups)
    else:
        found[f"{BASE}.__init__"] = Code("self, config", sets="config tp_size ep_size")
        for name in ("ep_group", "tp_group", "tp_rank", "tp_ep_group"):
            found[f"{BASE}.@{name}"] = Code("self")
    found |= _alltoall(features, table, new)
    if "legacy" in features:
        found[f"{SEQ_BASE}.__init__"] = Code("self, config", sets="config")
        found[f"{SEQ_BASE}.@ep_group"] = Code("self")
        found |= _sequence()
    fused = ", fused=False, drop_and_pad=False" if new else ""
    found["moe_utils.get_capacity"] = Code("num_tokens, num_experts, capacity_factor, min_capacity=None")
    found["moe_utils.permute"] = Code(f"tokens, routing_map, num_out_tokens=None{fused}", result="tokens")
    found["moe_layer.MoELayer.__init__"] = Code("self, config", sets="router token_dispatcher experts")
    return found


def _alltoall(features: Set[str], table: str, new: bool) -> Contents:
    last = ", pg_collection=None" if "group_collection" in features else ""
    graphs = "cudagraph_attrs" if "graphs" in features else ""
    points = "cuda_dtoh_point moe_expert_capacity_factor permute_idx_device" if new else ""
    padding = "moe_router_padding_for_" + ("quantization" if graphs else "fp8") if "stages" in features else ""
    used = f"{_SPLITS} output_splits_tp {table}"
    found = {
        f"{A2A}.__init__": Code(
            f"self, num_local_experts, local_expert_indices, config{last}",
            sets=f"{_CONSTRUCTED} {_SPLITS} {points} {graphs}",
            says="no_sync",
            first="self.config = config",
        ),
        f"{A2A}.preprocess": Code(
            "self, routing_map",
            sets=f"{used} num_out_tokens capacity" + ("" if new else " cuda_sync_point"),
            reads=f"moe_router_topk moe_expert_capacity_factor tp_ep_group {padding}"
            + (" moe_permute_fusion _maybe_update_cuda_sync_point" if new else ""),
            result="routing_map.sum(dim=0)",
        ),
    }
    if new:
        event = "d2h_event" if "event" in features else "cuda_dtoh_stream"
        found[f"{A2A}._maybe_update_cuda_sync_point"] = Code("self, point", sets="cuda_sync_point")
        found[f"{A2A}._maybe_dtoh_and_synchronize"] = Code(
            "self, point, tokens_per_expert=None",
            sets=f"{used} num_out_tokens",
            reads=f"cuda_sync_point cuda_dtoh_point drop_and_pad {event} synchronize",
            result="tokens_per_expert",
        )
    hook = "_maybe_dtoh_and_synchronize" if new else "cuda_sync_point synchronize"
    if "stages" not in features:
        points = f"{_POINTS} before_permutation_2" if new else _POINTS
        reads = f"preprocess permute {used} num_out_tokens sort_input_by_local_experts ep_group {hook}"
        found[f"{A2A}.token_permutation"] = Code("self, hidden_states, probs, routing_map", reads=reads, says=points)
        found[f"{A2A}.token_unpermutation"] = Code("self, hidden_states, bias=None", reads=used)
        return found
    nccl = "use_nccl_stream" if "nccl_stream" in features else ""
    return {
        **found,
        f"{A2A}.dispatch_preprocess": Code(
            "self, hidden_states, routing_map, probs",
            reads=f"preprocess permute num_out_tokens {hook}",
            says="before_permutation_1",
        ),
        f"{A2A}.token_dispatch": Code(
            "self, tokens, probs", reads=f"{_SPLITS} ep_group {nccl} {hook}", says="before_ep_alltoall"
        ),
        f"{A2A}.dispatch_postprocess": Code(
            "self, tokens, probs",
            reads=f"output_splits_tp {table} sort_input_by_local_experts {hook}",
            says="before_permutation_2 before_finish",
        ),
        f"{A2A}.combine_preprocess": Code("self, hidden_states", reads=f"output_splits_tp {table}"),
        f"{A2A}.token_combine": Code("self, hidden_states", reads=_SPLITS),
    }


def _sequence() -> Contents:
    table = "num_global_tokens_per_local_expert_cpu"
    used = f"{_SPLITS} {table}"
    return {
        f"{SEQ}.__init__": Code(
            "self, num_local_experts, local_expert_indices, config",
            sets=f"{_CONSTRUCTED} {_SPLITS} ep_size tp_size",
            says="no_sync",
        ),
        f"{SEQ}.preprocess": Code(
            "self, routing_map",
            sets=f"{used} num_global_tokens_per_local_expert num_out_tokens capacity cuda_sync_point",
            reads="moe_router_topk moe_expert_capacity_factor ep_group",
            result="routing_map.sum(dim=0)",
        ),
        f"{SEQ}.token_permutation": Code(
            "self, hidden_states, probs, routing_map",
            reads=f"preprocess permute {used} num_out_tokens sort_input_by_local_experts cuda_sync_point synchronize",
            says=_POINTS,
        ),
        f"{SEQ}.token_unpermutation": Code("self, hidden_states, bias=None", reads=used),
    }


def module_source(found: Contents, module: str) -> str:
    """Return the text of one of the modules, `token_dispatcher` for instance."""
    classes: dict[str, list[str]] = {}
    text = ""
    for path, code in found.items():
        where, *inner = path.split(".")
        if where != module:
            continue
        if len(inner) == 1:
            text += code.source(inner[0], "")
            continue
        owner, name = inner
        decorator = "    @property\n" if name.startswith("@") else ""
        classes.setdefault(owner, []).append(decorator + code.source(name.lstrip("@"), "    "))
    for owner, methods in classes.items():
        base = "(MoETokenDispatcher)" if "Dispatcher" in owner and owner != "MoETokenDispatcher" else ""
        text += f"class {owner}{base}:\n" + "".join(methods)
    return text
