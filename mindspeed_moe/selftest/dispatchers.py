"""Megatron's dispatchers of whatever release is installed: made for a step, or stood in for, and run in stages."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from mindspeed_moe.bench.contestants import group_arguments, layer_config, process_groups
from mindspeed_moe.bench.megatron import parallel_state, token_dispatcher, transformer_config
from mindspeed_moe.bench.points import POINTS
from mindspeed_moe.bench.shapes import Shape
from mindspeed_moe.contract import Generation
from mindspeed_moe.contract.generations import HOST_COPY_HOOK, LEGACY_MODULE, STAGE_METHODS
from mindspeed_moe.contract.probes import import_whole
from mindspeed_moe.preprocess.attributes import BEFORE_PERMUTATION_1
from mindspeed_moe.selftest.steps import ALLTOALL, DROP, PAD, ROUTER_PADDING, SEQ, Layout, Step
from mindspeed_moe.selftest.traffic import FACTOR

# What consumers of each dispatcher are given; nobody reads splits over TP in the older one.
SPLITS = {ALLTOALL: ("input_splits", "output_splits", "output_splits_tp"), SEQ: ("input_splits", "output_splits")}
_SEQ_TABLE = "num_global_tokens_per_local_expert_cpu"  # whatever the other dispatcher calls it


class Maker:
    """Makes dispatchers on the groups that Megatron's parallel state names now."""

    def __init__(self, generation: Generation, device: str) -> None:
        self.generation = generation
        self.device = device
        self._configs: dict[tuple[Layout, str, str], Any] = {}

    def table(self, dispatcher: str) -> str:
        """Return the attribute that holds the chunk table."""
        return _SEQ_TABLE if dispatcher == SEQ else self.generation.chunk_table

    def dispatcher(self, layout: Layout, dispatcher: str, mode: str) -> Any:
        """Return Megatron's own object."""
        kind, own = _class(dispatcher), self._own_experts(layout)
        return kind(len(own), own, config=self._config(layout, dispatcher, mode), **group_arguments(kind))

    def stand_in(self, layout: Layout, dispatcher: str, mode: str) -> Any:
        """Return an object of Megatron's class with what preprocess reads, and nothing of its constructor's work."""
        kind, own, groups = _class(dispatcher), self._own_experts(layout), process_groups()
        made = kind.__new__(kind)
        values = {
            "config": self._config(layout, dispatcher, mode),
            "num_experts": layout.experts,
            "num_local_experts": len(own),
            "local_expert_indices": own,
            "ep_size": layout.ep,
            "tp_size": layout.tp,
            "tp_rank": parallel_state().get_expert_tensor_parallel_rank(),
            "ep_group": groups.ep,
            "tp_group": groups.expt_tp,
            "tp_ep_group": groups.tp_ep,
            "drop_and_pad": mode == PAD,
            "moe_expert_capacity_factor": FACTOR if mode in (DROP, PAD) else None,
            "permute_idx_device": "cpu",
            "capacity": None,
            **dict.fromkeys(SPLITS[dispatcher]),
            "cuda_dtoh_point": BEFORE_PERMUTATION_1,
            "cuda_sync_point": "no_sync",
            "cuda_sync_point_priority": {point: at for at, point in enumerate((*POINTS, "no_sync"))},
        }
        for name, value in values.items():
            described = inspect.getattr_static(kind, name, None)
            if not (isinstance(described, property) and described.fset is None):  # older releases ask parallel_state
                setattr(made, name, value)
        return made

    def _own_experts(self, layout: Layout) -> list[int]:
        first = parallel_state().get_expert_model_parallel_rank() * layout.local_experts
        return list(range(first, first + layout.local_experts))

    def _config(self, layout: Layout, dispatcher: str, mode: str) -> Any:
        key = layout, dispatcher, mode
        if key not in self._configs:
            self._configs[key] = self._new_config(*key)
        return self._configs[key]

    def _new_config(self, layout: Layout, dispatcher: str, mode: str) -> Any:
        kind = {DROP: "drop", PAD: "pad"}.get(mode, "dropless")
        shape = Shape(layout.experts, layout.ep, layout.tp, 1, layout.topk, kind)
        factor = {"moe_expert_capacity_factor": FACTOR} if mode in (DROP, PAD) else {}
        config = layer_config(shape, moe_token_dispatcher_type=dispatcher, **factor)
        if mode == ROUTER_PADDING:
            # After the configuration's own checks: they ask for fp8, which not every device has. No kernel of it runs.
            setattr(config, str(self.generation.router_padding), True)
            config.fp8 = "hybrid"  # from which some releases take the multiple
        return config


def ep_group() -> Any:
    """Return the group that tokens travel on."""
    return parallel_state().get_expert_model_parallel_group()


def tp_group() -> Any:
    """Return the group of an expert's TP ranks."""
    return parallel_state().get_expert_tensor_parallel_group()


def has_router_padding(generation: Generation) -> bool:
    """Whether the release pads the routing map for quantised experts."""
    return generation.router_padding is not None and hasattr(
        transformer_config().TransformerConfig, generation.router_padding
    )


def has_hook(dispatcher: Any) -> bool:
    """Whether the release waits for host values in a method of its own."""
    return hasattr(dispatcher, HOST_COPY_HOOK.name)


def pass_point(dispatcher: Any, point: str, counts: Any) -> Any:
    """Go through one of Megatron's points as its dispatching does; returns tokens per local expert."""
    hook = getattr(dispatcher, HOST_COPY_HOOK.name, None)
    if hook is not None:
        return hook(point, counts)
    if dispatcher.cuda_sync_point == point:  # older releases have a line in its place
        torch.cuda.current_stream().synchronize()
    return counts


def dispatch(
    dispatcher: Any, hidden: torch.Tensor, probs: torch.Tensor, routing_map: torch.Tensor
) -> Callable[[], tuple[torch.Tensor, Any, torch.Tensor | None]]:
    """Begin to bring tokens to the experts, as far as the release has stages; what is returned does the rest.

    It returns rows, tokens per local expert, and the rows' probabilities, None where experts are not given them.
    """
    if hasattr(dispatcher, STAGE_METHODS.name):
        begun = dispatcher.dispatch_preprocess(hidden, routing_map, probs)
        return lambda: dispatcher.dispatch_postprocess(*dispatcher.token_dispatch(*begun))

    def whole() -> tuple[torch.Tensor, Any, torch.Tensor | None]:
        found = dispatcher.token_permutation(hidden, probs, routing_map)
        return found if len(found) == 3 else (*found, None)

    return whole


def combine(dispatcher: Any, rows: torch.Tensor) -> torch.Tensor:
    """Bring the experts' rows back; returns [S, H]."""
    if hasattr(dispatcher, STAGE_METHODS.name):
        result: torch.Tensor = dispatcher.combine_postprocess(
            dispatcher.token_combine(dispatcher.combine_preprocess(rows))
        )
        return result
    output: torch.Tensor = dispatcher.token_unpermutation(rows)[0]
    return output


def read(dispatcher: Any, counts: Any, table: str, step: Step) -> dict[str, Any]:
    """Return what consumers read once every point has been passed, as handed out: arrays and tensors, not copies.

    table: the attribute that holds the chunk table. That one is left out where nobody reads it; some releases leave
    it with a dimension more, or less.
    """
    local = step.layout.local_experts
    found = {name: getattr(dispatcher, name) for name in SPLITS[step.dispatcher]}
    found["tokens_per_local_expert"] = counts
    found["num_out_tokens"] = dispatcher.num_out_tokens
    if local > 1 or dispatcher.drop_and_pad:
        handed = getattr(dispatcher, table)
        found["chunk_table"] = handed if dispatcher.drop_and_pad else handed.reshape(-1, local)
    return found


def plain(value: Any) -> Any:
    """Return the integers of an array, a tensor or a number, or None."""
    if value is None or isinstance(value, int):
        return value
    return value.tolist()


def _class(dispatcher: str) -> Any:
    if dispatcher == ALLTOALL:
        return token_dispatcher().MoEAlltoAllTokenDispatcher
    return import_whole(LEGACY_MODULE).MoEAlltoAllSEQTokenDispatcher
