"""What preprocess must leave on every rank of a TPxEP group, spelled out in plain Python loops.

Written from the definitions (the table in the package's docstring and Megatron's documentation of the attributes),
without torch or numpy and without a look at the code under test: one loop a quantity, over tokens, experts and
ranks. Slow on purpose; the golden cases beside it were worked out by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RoutingMap = Sequence[Sequence[bool]]  # [T][E]

DROPLESS = "dropless"
DROP = "drop"  # capacity factor without padding: the router has dropped tokens, T * topk says nothing any more
PAD = "pad"  # capacity factor with padding: every expert gets exactly `capacity` rows from every rank
ROUTER_PADDING = "router padding"  # the router has added tokens for quantised experts
MODES = (DROPLESS, DROP, PAD, ROUTER_PADDING)


@dataclass(frozen=True)
class RankPlan:
    """One rank's splits.

    input_splits, output_splits: [EP]. output_splits_tp: [TP]. All None where nothing is exchanged.
    tokens_per_local_expert: [L]. chunk_table: [TP*EP][L] with rows in (tp, ep) order, None when L = 1; with
    padding one flat list [E*TP]. capacity: None without padding.
    """

    input_splits: list[int] | None
    output_splits: list[int] | None
    output_splits_tp: list[int] | None
    tokens_per_local_expert: list[int]
    chunk_table: list[list[int]] | list[int] | None
    num_out_tokens: int
    capacity: int | None = None


def plan_group(
    maps: Sequence[RoutingMap], *, ep: int, tp: int, experts: int, topk: int, mode: str, factor: float | None = None
) -> list[RankPlan]:
    """Return the plan of every rank, in group order: rank (i, k) has index i * tp + k and sent maps[i * tp + k]."""
    sent = [_tokens_per_expert(one, experts) for one in maps]
    plans = []
    for i in range(ep):
        for k in range(tp):
            me = i * tp + k
            if mode == PAD:
                assert factor is not None
                plans.append(_padded(len(maps[me]), ep, tp, experts, topk, factor))
            else:
                plans.append(
                    _exchanged(sent, i, k, ep, tp, experts, len(maps[me]) * topk if mode == DROPLESS else None)
                )
    return plans


def _tokens_per_expert(routing_map: RoutingMap, experts: int) -> list[int]:
    counts = [0] * experts
    for token in routing_map:
        for expert in range(experts):
            if token[expert]:
                counts[expert] += 1
    return counts


def _exchanged(
    sent: Sequence[Sequence[int]], i: int, k: int, ep: int, tp: int, experts: int, known_rows: int | None
) -> RankPlan:
    """The rank (i, k): what it sends to each peer, and what each peer sends to it."""
    local_experts = experts // ep
    mine = sent[i * tp + k]
    own = [i * local_experts + at for at in range(local_experts)]

    def from_rank(peer_i: int, peer_k: int) -> int:
        rows = 0
        for expert in own:
            rows += sent[peer_i * tp + peer_k][expert]
        return rows

    per_expert = []
    for expert in own:
        rows = 0
        for counts in sent:
            rows += counts[expert]
        per_expert.append(rows)

    table: list[list[int]] | None = None
    if local_experts > 1:
        table = []
        for peer_k in range(tp):
            for peer_i in range(ep):
                table.append([sent[peer_i * tp + peer_k][expert] for expert in own])

    rows_out = 0
    for count in mine:
        rows_out += count
    if known_rows is not None:
        rows_out = known_rows
    if ep * tp == 1:
        return RankPlan(None, None, None, per_expert, table, rows_out)

    to_peers = []
    for peer in range(ep):
        rows = 0
        for expert in range(peer * local_experts, (peer + 1) * local_experts):
            rows += mine[expert]
        to_peers.append(rows)
    return RankPlan(
        input_splits=to_peers,
        output_splits=[from_rank(peer, k) for peer in range(ep)],
        output_splits_tp=[sum(from_rank(peer, other) for peer in range(ep)) for other in range(tp)],
        tokens_per_local_expert=per_expert,
        chunk_table=table,
        num_out_tokens=rows_out,
    )


def _padded(tokens: int, ep: int, tp: int, experts: int, topk: int, factor: float) -> RankPlan:
    """Every rank has the same number of tokens here, so each can say alone what it receives."""
    exact = tokens * topk / experts * factor
    capacity = int(exact)
    if capacity < exact:
        capacity += 1
    return RankPlan(
        input_splits=None,
        output_splits=None,
        output_splits_tp=None,
        tokens_per_local_expert=[capacity * ep * tp for _ in range(experts // ep)],
        chunk_table=[capacity for _ in range(experts * tp)],
        num_out_tokens=capacity * experts,
        capacity=capacity,
    )
