"""The adapter: the only module that knows what Megatron's dispatcher calls its attributes.

Reads what preprocess needs from a dispatcher, and writes what the consumers read. The attribute names hold for
the generations that copy in a hook (megatron-core 0.12 on); what differs between them comes from Generation.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from mindspeed_moe.contract.generations import TOKEN_DISPATCHER, Generation
from mindspeed_moe.preprocess.site import Site
from mindspeed_moe.preprocess.splits import SplitPlan, padded_plan, refuse_overflow

BEFORE_PERMUTATION_1 = "before_permutation_1"
BEFORE_EP_ALLTOALL = "before_ep_alltoall"
BEFORE_PERMUTATION_2 = "before_permutation_2"
BEFORE_FINISH = "before_finish"

_MOE_UTILS = "megatron.core.transformer.moe.moe_utils"

# ------------------------------------------------------------------------------------------------ reading


def known_out_tokens(dispatcher: Any, routing_map: torch.Tensor, generation: Generation) -> int | None:
    """Return the rows after the first permutation, T * topk, or None when they depend on the routing map."""
    config = dispatcher.config
    padding = generation.router_padding
    if config.moe_expert_capacity_factor is not None or (padding and getattr(config, padding)):
        return None
    return int(routing_map.shape[0] * config.moe_router_topk)


def sync_point(dispatcher: Any, site: Site, num_out_tokens: int | None) -> str:
    """Return the point at which Megatron waits for host values (0.12.1 `preprocess`)."""
    if num_out_tokens is None:
        return BEFORE_PERMUTATION_1
    if site.exchange is not None:
        return BEFORE_EP_ALLTOALL
    if site.layout.num_local_experts > 1 and not dispatcher.config.moe_permute_fusion:
        return BEFORE_PERMUTATION_2
    return BEFORE_FINISH


def first_read(dispatcher: Any, site: Site, num_out_tokens: int | None) -> str:
    """Return the point before which a host value is first read: Megatron's own point, or a later one.

    A data-dependent number of rows moves Megatron's point before permutation 1, but only the fused permutation
    reads it there (0.12.1 and 0.16.1, `moe_utils.permute`). Somebody else's permute is taken to read it.
    """
    if num_out_tokens is not None or dispatcher.config.moe_permute_fusion or not _permute_is_megatrons():
        return str(dispatcher.cuda_sync_point)
    if site.exchange is not None:
        return BEFORE_EP_ALLTOALL
    return BEFORE_PERMUTATION_2 if site.layout.num_local_experts > 1 else BEFORE_FINISH


def _permute_is_megatrons() -> bool:
    # By the namespace that its code runs in, which functools.wraps does not copy.
    permute = getattr(sys.modules.get(TOKEN_DISPATCHER), "permute", None)
    return getattr(permute, "__globals__", {}).get("__name__") == _MOE_UTILS


# ------------------------------------------------------------------------------------------------ writing


def publish(dispatcher: Any, plan: SplitPlan, generation: Generation, *, chunk_table: bool = True) -> torch.Tensor:
    """Give the consumers what they read; returns tokens per local expert, [L] int64 on the host.

    chunk_table=False leaves the table alone, for a program that keeps it on the device.
    """
    dispatcher.input_splits = plan.input_splits
    dispatcher.output_splits = plan.output_splits
    dispatcher.output_splits_tp = plan.output_splits_tp
    dispatcher.num_out_tokens = plan.num_out_tokens
    if chunk_table and plan.chunk_table is not None:
        setattr(dispatcher, generation.chunk_table, torch.from_numpy(plan.chunk_table))
    return torch.from_numpy(plan.tokens_per_local_expert)


def publish_alone(
    dispatcher: Any,
    site: Site,
    counts: torch.Tensor,
    num_out_tokens: int | None,
    generation: Generation,
    *,
    chunk_table: bool = True,
) -> torch.Tensor:
    """Without peers, what a rank counts, [E] int64 on the host, is what it receives: there is nothing to derive.

    The splits are None, whatever an earlier call left. Returns the counts.
    """
    rows = sum(counts.tolist()) if num_out_tokens is None else num_out_tokens
    refuse_overflow(site.layout, rows, rows)
    dispatcher.input_splits = dispatcher.output_splits = dispatcher.output_splits_tp = None
    dispatcher.num_out_tokens = rows
    if chunk_table and site.layout.num_experts > 1:
        setattr(dispatcher, generation.chunk_table, counts.view(1, -1))
    return counts


def publish_padded(dispatcher: Any, site: Site, routing_map: torch.Tensor, generation: Generation) -> torch.Tensor:
    """Drop and pad: everything follows from the capacity, known on the host; returns [L] int64 on the host."""
    # Looked up at call time: a name imported at module level would outlive somebody's patch of it.
    dispatcher.capacity = capacity = sys.modules[_MOE_UTILS].get_capacity(
        num_tokens=routing_map.shape[0] * dispatcher.config.moe_router_topk,
        num_experts=dispatcher.num_experts,
        capacity_factor=dispatcher.moe_expert_capacity_factor,
    )
    if site.padded is None or site.padded[0] != capacity:
        site.padded = capacity, padded_plan(site.layout, capacity)
    plan = site.padded[1]  # kept for the next call: its arrays are handed out as copies
    dispatcher.input_splits = dispatcher.output_splits = dispatcher.output_splits_tp = None
    dispatcher.num_out_tokens = plan.num_out_tokens
    assert plan.chunk_table is not None
    device = dispatcher.permute_idx_device
    if device in (None, "cpu"):
        table = torch.from_numpy(plan.chunk_table.copy())
    else:  # filled there: a copy from pageable memory would make the host wait
        table = torch.full(plan.chunk_table.shape, capacity, dtype=torch.int64, device=device)
    setattr(dispatcher, generation.chunk_table, table)
    return torch.from_numpy(plan.tokens_per_local_expert.copy())
