"""What preprocess must leave on every rank when ranks own whole experts, spelled out in plain Python loops.

Written from the definition of the layout, without torch or numpy and without a look at the code under test. Owners
are given as a list of experts for each rank; nothing is taken to be contiguous or ascending.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oracle.plan import RoutingMap

Owned = Sequence[Sequence[int]]  # [R][L]


@dataclass(frozen=True)
class Extended:
    """One rank's plan. input_splits, output_splits: [R], None where parts are equal. chunk_table: [R][L]."""

    input_splits: list[int] | None
    output_splits: list[int] | None
    tokens_per_local_expert: list[int]
    chunk_table: list[list[int]]
    num_out_tokens: int


def plans(owned: Owned, maps: Sequence[RoutingMap], topk: int | None) -> list[Extended]:
    """Return every rank's plan; rank r owns owned[r] and has routed maps[r]. topk: None when tokens were dropped."""
    found = []
    for me, own in enumerate(owned):
        table = []
        for routing_map in maps:
            table.append([_tokens(routing_map, expert) for expert in own])
        received = [sum(row) for row in table]
        sent = []
        for experts in owned:
            sent.append(sum(_tokens(maps[me], expert) for expert in experts))
        per_expert = []
        for at in range(len(own)):
            per_expert.append(sum(row[at] for row in table))
        alone = len(owned) == 1
        found.append(
            Extended(
                input_splits=None if alone else sent,
                output_splits=None if alone else received,
                tokens_per_local_expert=per_expert,
                chunk_table=table,
                num_out_tokens=sum(sent) if topk is None else len(maps[me]) * topk,
            )
        )
    return found


def padded(owned: Owned, capacity: int) -> list[Extended]:
    """Return every rank's plan when each rank sends exactly `capacity` rows to every expert."""
    ranks = len(owned)
    experts = sum(len(own) for own in owned)
    return [
        Extended(
            input_splits=None,
            output_splits=None,
            tokens_per_local_expert=[capacity * ranks for _ in own],
            chunk_table=[[capacity for _ in own] for _ in range(ranks)],
            num_out_tokens=capacity * experts,
        )
        for own in owned
    ]


def rows_of_experts(owned: Owned, maps: Sequence[RoutingMap]) -> list[list[list[tuple[int, int]]]]:
    """Return [R][L][rows]: for every rank, by own expert, the (sending rank, token) of each row, in their order.

    The order in which an expert gets them: by sending rank, and within a rank by token.
    """
    found = []
    for own in owned:
        of_rank = []
        for expert in own:
            rows = []
            for sender, routing_map in enumerate(maps):
                for token, chosen in enumerate(routing_map):
                    if chosen[expert]:
                        rows.append((sender, token))
            of_rank.append(rows)
        found.append(of_rank)
    return found


def _tokens(routing_map: RoutingMap, expert: int) -> int:
    tokens = 0
    for chosen in routing_map:
        if chosen[expert]:
            tokens += 1
    return tokens
