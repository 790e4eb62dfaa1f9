"""Megatron's dispatchers with the plugin's programs on a device, and routing maps with a known answer."""

from __future__ import annotations

import inspect
import random
import warnings
from typing import Any

import torch

from distributed.layers import ALLTOALL, SEQ, chunk_table, router_padding
from npu.floor import BLOCKING, EVENT, FUSED, INLINE, STREAM, Case
from npu.floor import MODES as EVERY_MODE
from oracle.plan import DROP, DROPLESS, MODES, PAD, ROUTER_PADDING, RankPlan, plan_group

POINTS = ("before_permutation_1", "before_ep_alltoall", "before_permutation_2", "before_finish")
TOPK = 2
FACTOR = 0.75
TOKENS = 12


def groups(ep: int, tp: int) -> None:
    """Make Megatron's process groups anew."""
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(expert_model_parallel_size=ep, expert_tensor_parallel_size=tp)


def make_dispatcher(experts: int, *, mode: str = DROPLESS, dispatcher: str = ALLTOALL) -> Any:
    """Return a dispatcher of the installed release, on the groups of parallel_state."""
    from megatron.core import parallel_state
    from megatron.core.transformer.moe import moe_utils
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
            moe_router_topk=min(TOPK, experts),
            moe_router_pre_softmax=True,  # which top-1 asks for
            moe_token_dispatcher_type=dispatcher,
            moe_expert_capacity_factor=FACTOR if mode in (DROP, PAD) else None,
            moe_pad_expert_input_to_capacity=mode == PAD,
            expert_model_parallel_size=ep,
            expert_tensor_parallel_size=tp,
            add_bias_linear=False,
        )
    # After the configuration's checks, which ask for Transformer Engine and for fp8.
    config.moe_permute_fusion = mode == FUSED
    setattr(config, router_padding() or "no_router_padding", mode == ROUTER_PADDING)
    own = experts // ep
    first = parallel_state.get_expert_model_parallel_rank() * own
    arguments: dict[str, Any] = {"config": config}
    cls = dispatcher_class(dispatcher)
    takes = inspect.signature(cls.__init__).parameters
    for name in ("pg_collection", "model_comm_pgs"):  # the newer name first; before 0.13 there was none
        if name in takes:
            arguments[name] = getattr(moe_utils, f"get_default_{name}")()
    return cls(own, list(range(first, first + own)), **arguments)


def routing_maps(seed: int, ranks: int, experts: int, tokens: tuple[int, int] = (1, 24)) -> list[list[list[bool]]]:
    """Return one routing map [T][E] a rank, with another T on each and TOPK experts a token."""
    draw = random.Random(seed)
    maps = []
    for _ in range(ranks):
        maps.append([_choose(draw, experts) for _ in range(draw.randrange(*tokens))])
    return maps


def _choose(draw: random.Random, experts: int) -> list[bool]:
    chosen = draw.sample(range(experts), min(TOPK, experts))
    return [expert in chosen for expert in range(experts)]


def problem(case: Case) -> tuple[list[list[bool]], RankPlan]:
    """Return this rank's routing map for a case, and what the oracle says of it."""
    from megatron.core import parallel_state

    ep, tp = parallel_state.get_expert_model_parallel_rank(), parallel_state.get_expert_tensor_parallel_rank()
    me, ranks, experts = ep * case.tp + tp, case.ep * case.tp, case.experts
    maps = [one[:TOKENS] for one in routing_maps(7, ranks, experts, tokens=(TOKENS, 24))]
    mode = case.mode if case.mode in MODES else DROPLESS
    return maps[me], plan_group(
        maps, ep=case.ep, tp=case.tp, experts=experts, topk=min(TOPK, experts), mode=mode, factor=FACTOR
    )[me]


def expected(maps: list[list[list[bool]]], ep: int, tp: int, experts: int, rank: int) -> RankPlan:
    """Return what the oracle says for one rank, dropless."""
    return plan_group(maps, ep=ep, tp=tp, experts=experts, topk=TOPK, mode=DROPLESS)[rank]


def start(dispatcher: Any, routing_map: list[list[bool]]) -> Any:
    """Run preprocess on the device; the host has not waited when this returns."""
    dispatcher.tokens_per_expert = dispatcher.preprocess(torch.tensor(routing_map, dtype=torch.bool).npu())
    return dispatcher.tokens_per_expert


def dispatcher_class(dispatcher: str) -> Any:
    """Return Megatron's class behind a name of its configuration."""
    if dispatcher == SEQ:
        from megatron.core.transformer.moe.legacy_a2a_token_dispatcher import MoEAlltoAllSEQTokenDispatcher

        return MoEAlltoAllSEQTokenDispatcher
    from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher

    return MoEAlltoAllTokenDispatcher


def modes(dispatcher: str = ALLTOALL) -> tuple[str, ...]:
    """Return the modes that the installed release's dispatcher has."""
    from megatron.core.transformer.transformer_config import TransformerConfig

    fuses = dispatcher == ALLTOALL and hasattr(TransformerConfig, "moe_permute_fusion")
    missing = {FUSED: not fuses, ROUTER_PADDING: not router_padding()}
    return tuple(mode for mode in EVERY_MODE if not missing.get(mode))


def way_of_waiting() -> str:
    """Return how the installed release's stock waits for its copies."""
    hook = getattr(dispatcher_class(ALLTOALL), "_maybe_dtoh_and_synchronize", None)
    if hook is None:
        blocks = "num_global_tokens_per_local_expert" in dispatcher_class(ALLTOALL).preprocess.__code__.co_names
        return BLOCKING if blocks else INLINE
    return EVENT if "d2h_event" in inspect.unwrap(hook).__code__.co_names else STREAM


def pass_points(dispatcher: Any, counts: Any) -> Any:
    """Pass all of Megatron's points; returns what the experts read then."""
    if not hasattr(dispatcher, "_maybe_dtoh_and_synchronize"):
        return _pass_lines(dispatcher, counts)
    for point in POINTS:
        counts = dispatcher._maybe_dtoh_and_synchronize(point, counts)
    return counts


def _pass_lines(dispatcher: Any, counts: Any) -> Any:
    """What token_permutation of 0.10 and 0.11, and of SEQ, does with host values, in its order."""

    def point(name: str) -> None:
        if dispatcher.cuda_sync_point == name:
            torch.cuda.current_stream().synchronize()

    point("before_permutation_1")
    _ = dispatcher.num_out_tokens
    point("before_ep_alltoall")
    _ = dispatcher.output_splits, dispatcher.input_splits
    if dispatcher.num_local_experts > 1:
        _ = getattr(dispatcher, chunk_table(dispatcher))
    point("before_finish")
    return counts


def finish(dispatcher: Any, counts: Any) -> dict[str, Any]:
    """Pass all of Megatron's points, then read everything that its consumers read."""
    return read(dispatcher, pass_points(dispatcher, counts))


def read(dispatcher: Any, counts: Any) -> dict[str, Any]:
    """Return what consumers read, as plain integers."""
    table = getattr(dispatcher, chunk_table(dispatcher), None)
    has_table = dispatcher.num_local_experts > 1 or dispatcher.drop_and_pad
    if has_table and not dispatcher.drop_and_pad:
        table = table.reshape(-1, dispatcher.num_local_experts)  # 0.11 leaves it with a dimension more, or less
    return {
        "input_splits": plain(dispatcher.input_splits),
        "output_splits": plain(dispatcher.output_splits),
        **{name: plain(getattr(dispatcher, name)) for name in ("output_splits_tp",) if hasattr(dispatcher, name)},
        "tokens_per_local_expert": plain(counts),
        "chunk_table": plain(table) if has_table else None,
        "num_out_tokens": int(dispatcher.num_out_tokens),
    }


def plain(value: Any) -> Any:
    """Return the integers of an array or a tensor, or None."""
    return value if value is None else value.tolist()


def difference(found: dict[str, Any], wanted: RankPlan) -> str:
    """Return what differs, or an empty string."""
    return "; ".join(
        f"{name}: found {value}, expected {getattr(wanted, name)}"
        for name, value in found.items()
        if value != getattr(wanted, name)
    )
