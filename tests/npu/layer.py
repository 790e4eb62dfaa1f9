"""Megatron's dispatchers with the plugin's programs on a device, and routing maps with a known answer."""

from __future__ import annotations

import inspect
import random
import warnings
from typing import Any

import torch

from oracle.plan import DROP, DROPLESS, RankPlan, plan_group

POINTS = ("before_permutation_1", "before_ep_alltoall", "before_permutation_2", "before_finish")
TOPK = 2


def make_dispatcher(experts: int, *, factor: float | None = None, fused: bool = False) -> Any:
    """Return a MoEAlltoAllTokenDispatcher of the installed release, on the groups of parallel_state."""
    from megatron.core import parallel_state
    from megatron.core.transformer.moe import token_dispatcher
    from megatron.core.transformer.transformer_config import TransformerConfig

    ep = parallel_state.get_expert_model_parallel_world_size()
    tp = parallel_state.get_expert_tensor_parallel_world_size()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = TransformerConfig(
            num_layers=1,
            hidden_size=8,
            num_attention_heads=1,
            num_moe_experts=experts,
            moe_router_topk=TOPK,
            moe_token_dispatcher_type="alltoall",
            moe_expert_capacity_factor=factor,
            expert_model_parallel_size=ep,
            expert_tensor_parallel_size=tp,
            moe_permute_fusion=False,
            add_bias_linear=False,
        )
    config.moe_permute_fusion = fused  # after its checks, which ask for Transformer Engine
    own = experts // ep
    first = parallel_state.get_expert_model_parallel_rank() * own
    arguments: dict[str, Any] = {"config": config}
    cls = token_dispatcher.MoEAlltoAllTokenDispatcher
    if "pg_collection" in inspect.signature(cls.__init__).parameters:
        from megatron.core.transformer.moe.moe_utils import get_default_pg_collection

        arguments["pg_collection"] = get_default_pg_collection()
    return cls(own, list(range(first, first + own)), **arguments)


def routing_maps(seed: int, ranks: int, experts: int) -> list[list[list[bool]]]:
    """Return one routing map [T][E] a rank, with another T on each and TOPK experts a token."""
    draw = random.Random(seed)
    maps = []
    for _ in range(ranks):
        tokens = draw.randrange(1, 24)
        maps.append([_choose(draw, experts) for _ in range(tokens)])
    return maps


def _choose(draw: random.Random, experts: int) -> list[bool]:
    chosen = draw.sample(range(experts), TOPK)
    return [expert in chosen for expert in range(experts)]


def expected(
    maps: list[list[list[bool]]], ep: int, tp: int, experts: int, rank: int, *, drop: bool = False
) -> RankPlan:
    """Return what the oracle says for one rank."""
    return plan_group(maps, ep=ep, tp=tp, experts=experts, topk=TOPK, mode=DROP if drop else DROPLESS)[rank]


def start(dispatcher: Any, routing_map: list[list[bool]]) -> Any:
    """Run preprocess on the device; the host has not waited when this returns."""
    dispatcher.tokens_per_expert = dispatcher.preprocess(torch.tensor(routing_map, dtype=torch.bool).npu())
    return dispatcher.tokens_per_expert


def finish(dispatcher: Any, counts: Any) -> dict[str, Any]:
    """Pass all of Megatron's points, then read everything that its consumers read."""
    for point in POINTS:
        counts = dispatcher._maybe_dtoh_and_synchronize(point, counts)
    table = getattr(dispatcher, "num_global_tokens_per_local_expert", None)
    return {
        "input_splits": _plain(dispatcher.input_splits),
        "output_splits": _plain(dispatcher.output_splits),
        "output_splits_tp": _plain(dispatcher.output_splits_tp),
        "tokens_per_local_expert": _plain(counts),
        "chunk_table": _plain(table) if dispatcher.num_local_experts > 1 else None,
        "num_out_tokens": int(dispatcher.num_out_tokens),
    }


def _plain(value: Any) -> Any:
    return value if value is None else value.tolist()


def difference(found: dict[str, Any], wanted: RankPlan) -> str:
    """Return what differs, or an empty string."""
    return "; ".join(
        f"{name}: found {value}, expected {getattr(wanted, name)}"
        for name, value in found.items()
        if value != getattr(wanted, name)
    )
