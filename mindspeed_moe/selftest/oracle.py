"""What every rank must find: splits, rows at the experts, output and gradients. Plain numpy.

Written from the definitions (the package's docstring, Megatron's documentation of the attributes); knows nothing of
how preprocess computes. Every rank computes everybody's traffic from the seeds, so nothing is communicated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindspeed_moe.selftest.steps import DROPLESS, PAD, ROUTER_PADDING, SEQ, Layout
from mindspeed_moe.selftest.traffic import PADDED_TO, WIDTH, Bools, Floats, Traffic, capacity_of


@dataclass(frozen=True)
class Splits:
    """What preprocess must leave. Lists as in the package's docstring; chunk_table is flat with padding, None if L = 1.

    input_splits, output_splits, output_splits_tp: None where nothing is exchanged; output_splits_tp also where the
    dispatcher has none.
    """

    input_splits: list[int] | None
    output_splits: list[int] | None
    output_splits_tp: list[int] | None
    tokens_per_local_expert: list[int]
    chunk_table: list[list[int]] | list[int] | None
    num_out_tokens: int


@dataclass(frozen=True)
class Expected:
    """One rank's results. tags: whose token, and which, arrives at its experts, in order of rows.

    output, hidden_gradient: [S, H]. probs_gradient: [T, E], where tokens are weighted when they are put back;
    probs_gradient_at_experts: the same where experts weight their rows.
    """

    routing_map: Bools
    splits: Splits
    tags: list[tuple[int, int]]
    output: Floats
    hidden_gradient: Floats
    probs_gradient: Floats
    probs_gradient_at_experts: Floats


def scale_of(expert: int) -> int:
    """Return what an expert multiplies by."""
    return 1 + expert % 7


def share_of(tp_rank: int) -> int:
    """Return a TP rank's part of an expert, as a factor; the parts are summed."""
    return 1 + tp_rank % 3


def expect(layout: Layout, dispatcher: str, mode: str, group: Sequence[Traffic], index: int) -> Expected:
    """Return what the rank with this index in its group must find.

    group: the traffic of every rank in group order, index = EP rank * TP + TP rank.
    """
    # alltoall_seq routes whole sequences: a member is an EP rank, and TP takes no part in the splits.
    tp = 1 if dispatcher == SEQ else layout.tp
    members = list(group[:: layout.tp] if dispatcher == SEQ else group)
    me = index // layout.tp if dispatcher == SEQ else index
    maps = [padded(one.routing_map) if mode == ROUTER_PADDING else one.routing_map for one in members]
    splits = _padded_splits(layout, tp, members[me]) if mode == PAD else _splits(layout, tp, maps, me, mode)
    if dispatcher == SEQ:
        splits = _of_seq(splits, layout, mode)
    own = range((me // tp) * layout.local_experts, (me // tp + 1) * layout.local_experts)
    tags = [
        _sender(layout, dispatcher, group, i * tp + k, int(token))
        for expert in own
        for k in range(tp)
        for i in range(layout.ep)
        for token in np.flatnonzero(maps[i * tp + k][:, expert])
    ]
    return Expected(maps[me], splits, tags, *_results(layout, dispatcher, group, index, maps[me]))


def _sender(layout: Layout, dispatcher: str, group: Sequence[Traffic], member: int, token: int) -> tuple[int, int]:
    """Return the index in the group of the rank that holds a token of a member's map, and its number there."""
    if dispatcher != SEQ:
        return member, token
    held = len(group[member * layout.tp].hidden)
    return member * layout.tp + token // held, token % held


def padded(routing_map: Bools) -> Bools:
    """Return the map with each expert's first free tokens added, until its rows are a multiple of PADDED_TO."""
    result: Bools = routing_map.copy()
    for expert in range(routing_map.shape[1]):
        free = np.flatnonzero(~routing_map[:, expert])
        result[free[: -int(routing_map[:, expert].sum()) % PADDED_TO], expert] = True
    return result


def _splits(layout: Layout, tp: int, maps: Sequence[Bools], me: int, mode: str) -> Splits:
    local, ep = layout.local_experts, layout.ep
    counts = [[int(one[:, expert].sum()) for expert in range(layout.experts)] for one in maps]
    own = range(me // tp * local, (me // tp + 1) * local)

    def rows_from(member: int) -> int:
        return sum(counts[member][expert] for expert in own)

    rows = len(maps[me]) * layout.topk if mode == DROPLESS else sum(counts[me])
    table: list[list[int]] | None = None
    if local > 1:
        table = [[counts[i * tp + k][expert] for expert in own] for k in range(tp) for i in range(ep)]
    received = [sum(one[expert] for one in counts) for expert in own]
    if ep * tp == 1:
        return Splits(None, None, None, received, table, rows)
    return Splits(
        input_splits=[sum(counts[me][peer * local : (peer + 1) * local]) for peer in range(ep)],
        output_splits=[rows_from(peer * tp + me % tp) for peer in range(ep)],
        output_splits_tp=[sum(rows_from(i * tp + k) for i in range(ep)) for k in range(tp)],
        tokens_per_local_expert=received,
        chunk_table=table,
        num_out_tokens=rows,
    )


def _padded_splits(layout: Layout, tp: int, mine: Traffic) -> Splits:
    capacity = capacity_of(len(mine.routing_map), layout)
    return Splits(
        input_splits=None,
        output_splits=None,
        output_splits_tp=None,
        tokens_per_local_expert=[capacity * layout.ep * tp] * layout.local_experts,
        chunk_table=[capacity] * (layout.experts * tp),
        num_out_tokens=capacity * layout.experts,
    )


def _of_seq(splits: Splits, layout: Layout, mode: str) -> Splits:
    """alltoall_seq has no splits over TP, and its padded table repeats the capacity for every TP rank."""
    table = splits.chunk_table * layout.tp if mode == PAD and splits.chunk_table else splits.chunk_table
    return Splits(
        splits.input_splits, splits.output_splits, None, splits.tokens_per_local_expert, table, splits.num_out_tokens
    )


def _results(
    layout: Layout, dispatcher: str, group: Sequence[Traffic], index: int, routing_map: Bools
) -> tuple[Floats, Floats, Floats, Floats]:
    """Output and gradients: expert e multiplies by its scale, on every TP rank by that rank's share, and the shares
    are summed."""
    mine, rank = group[index], index % layout.tp
    scales = np.array([scale_of(expert) for expert in range(layout.experts)], dtype=np.float32)
    factors = scales * sum(share_of(k) for k in range(layout.tp))
    weighted = mine.probs @ factors  # [T]
    if dispatcher != SEQ:
        dots = (mine.hidden * mine.weights).sum(axis=1)
        output, gradient = weighted[:, None] * mine.hidden, weighted[:, None] * mine.weights
        of_probs = _where(routing_map, dots[:, None] * factors)
        return output, gradient, of_probs, of_probs
    tokens = len(mine.hidden)
    own = weighted[rank * tokens : (rank + 1) * tokens, None]
    # Every TP rank sees the whole sequence. Where tokens are put back, it has only its own columns of it; at the
    # experts it has all columns, and its own share of the result.
    columns = slice(rank * WIDTH, (rank + 1) * WIDTH)
    peers = group[index - rank : index - rank + layout.tp]
    products = np.concatenate([one.hidden * one.weights for one in peers])
    of_columns = _where(routing_map, products[:, columns].sum(axis=1)[:, None] * factors)
    of_share = _where(routing_map, products.sum(axis=1)[:, None] * (scales * share_of(rank)))
    return own * mine.hidden, own * mine.weights, of_columns, of_share


def _where(routing_map: Bools, values: Floats) -> Floats:
    return np.where(routing_map, values, np.float32(0)).astype(np.float32)
