"""Jobs for ranks that own whole experts: plans of a real group, and tokens that really travel by them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from distributed.bad_input import Outcome, together
from mindspeed_moe.preprocess.extended import ExtendedLayout, ExtendedPlan
from mindspeed_moe.preprocess.extended_async import ExtendedCall, ExtendedPreprocess
from oracle.extended import Owned
from oracle.plan import RoutingMap

Row = tuple[int, int, int]  # sending rank, token, expert


def plan_and_send(
    owned: Owned, batches: list[list[RoutingMap]], topk: int | None, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Start a call for every micro-batch, then wait for each and send its tokens; returns what this rank found."""
    rank = dist.get_rank()
    layout = ExtendedLayout(owned, rank)
    preprocess = ExtendedPreprocess(layout, dist.group.WORLD, **options)
    tensors = [torch.tensor(maps[rank], dtype=torch.bool).view(-1, layout.num_experts) for maps in batches]
    calls: list[ExtendedCall] = [preprocess.start(one, topk) for one in tensors]
    found = []
    for call, routing_map in zip(calls, tensors, strict=True):
        plan = call.wait()
        found.append({**as_lists(plan), "rows": send(layout, plan, routing_map, rank)})
    return found


def pad_and_send(owned: Owned, capacity: int) -> dict[str, Any]:
    """Drop and pad: the first `capacity` tokens of every rank go to every expert."""
    rank = dist.get_rank()
    layout = ExtendedLayout(owned, rank)
    plan = ExtendedPreprocess(layout, dist.group.WORLD).padded(capacity)
    routing_map = torch.ones(capacity, layout.num_experts, dtype=torch.bool)
    return {**as_lists(plan), "rows": send(layout, plan, routing_map, rank)}


def as_lists(plan: ExtendedPlan) -> dict[str, Any]:
    return {
        "input_splits": None if plan.input_splits is None else plan.input_splits.tolist(),
        "output_splits": None if plan.output_splits is None else plan.output_splits.tolist(),
        "tokens_per_local_expert": plan.tokens_per_local_expert.tolist(),
        "chunk_table": plan.chunk_table.tolist(),
        "num_out_tokens": plan.num_out_tokens,
    }


def send(layout: ExtendedLayout, plan: ExtendedPlan, routing_map: torch.Tensor, rank: int) -> list[list[Row]]:
    """Permute, exchange and sort rows that say where they come from; returns the rows of every own expert.

    As a dispatcher does it: rows in the order of owners, one all-to-all, then the chunks of the table, of which
    there is one a sending rank and own expert, expert by expert.
    """
    order = torch.tensor(layout.order)
    at, token = routing_map.t()[order].nonzero(as_tuple=True)
    rows = torch.stack((torch.full_like(token, rank), token, order[at]), dim=1)
    assert len(rows) == plan.num_out_tokens
    counts = plan.tokens_per_local_expert.tolist()
    received = torch.full((sum(counts), 3), -1, dtype=rows.dtype)
    splits = [None if one is None else one.tolist() for one in (plan.output_splits, plan.input_splits)]
    dist.all_to_all_single(received, rows.contiguous(), *splits)
    chunks = received.split(plan.chunk_table.ravel().tolist())
    local = layout.num_local_experts
    by_expert = [chunk for expert in range(local) for chunk in chunks[expert::local]]
    return [[tuple(row) for row in part.tolist()] for part in torch.cat(by_expert).split(counts)]


def disagree(owned: list[Owned], exchanges: list[str]) -> Outcome:
    """Every rank with owners and an exchange of its own."""
    rank = dist.get_rank()
    preprocess = ExtendedPreprocess(
        ExtendedLayout(owned[rank], rank), dist.group.WORLD, exchange=exchanges[rank], facts={"mindspeed_moe": "0"}
    )
    routing_map = torch.zeros(3, preprocess.layout.num_experts, dtype=torch.bool)
    return together(lambda: preprocess.start(routing_map, 0))
