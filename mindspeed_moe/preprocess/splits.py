"""The numerical core: counts and layout in, a plan of split sizes out. Numpy only.

Formulas: megatron-core 0.12.1 and 0.16.1, `transformer/moe/token_dispatcher.py`,
`MoEAlltoAllTokenDispatcher.preprocess`; notation in the package's docstring.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mindspeed_moe.errors import CountOverflowError
from mindspeed_moe.preprocess.layout import ExpertLayout

Splits = NDArray[np.int64]

_sum = np.add.reduce

MAX_ROWS = 2**31 - 1  # counts travel as int32, and 32-bit indices address the rows


class SplitPlan(NamedTuple):
    """Everything that a consumer reads after preprocess. Arrays are int64, and share no memory with a buffer.

    input_splits: [EP] tokens sent to each EP peer; None when no peer exists.
    output_splits: [EP] tokens received from the EP peers that share this rank's TP coordinate; None likewise.
    output_splits_tp: [TP] tokens that this EP rank receives per TP coordinate; None likewise.
    tokens_per_local_expert: [L] tokens that each own expert receives from all ranks.
    chunk_table: [TP*EP, L] tokens per sending rank, in (tp, ep) order, and own expert: the chunk sizes of the
        second sort. None when L = 1.
    num_out_tokens: rows after the first permutation.
    """

    input_splits: Splits | None
    output_splits: Splits | None
    output_splits_tp: Splits | None
    tokens_per_local_expert: Splits
    chunk_table: Splits | None
    num_out_tokens: int


def split_plan(layout: ExpertLayout, rows: Splits, num_out_tokens: int | None) -> SplitPlan:
    """Derive the plan of a rank with peers from the counts that it has and the counts that it received.

    rows: [EP + EP * TP, L] int64, handed over: the plan keeps views of it. First this rank's tokens for each EP
        peer's experts, then every rank's tokens, in group order, for this rank's own experts.
    num_out_tokens: T * topk when it is known (dropless); None when it depends on the routing map.
    Raises CountOverflowError when a buffer would hold more than 2**31 - 1 rows.
    """
    ep, tp, experts = layout.ep_size, layout.tp_size, layout.num_local_experts
    # One sum for what is sent and what is received: at these sizes numpy's calls cost, not its additions.
    per_rank = _sum(rows, 1)
    input_splits, output_splits, table = per_rank[:ep], per_rank[ep:], rows[ep:]
    if tp > 1:
        # (ep, tp) in the group, (tp, ep) in the second sort.
        table = table.reshape(ep, tp, experts).transpose(1, 0, 2).reshape(-1, experts)
        received = output_splits.reshape(ep, tp)
        output_splits, output_splits_tp = received[:, layout.tp_rank].copy(), _sum(received, 0)
    else:
        output_splits_tp = _sum(output_splits, keepdims=True)
    sent = int(_sum(input_splits)) if num_out_tokens is None else num_out_tokens
    refuse_overflow(layout, sent, sum(output_splits_tp.tolist()))
    chunk_table = table if experts > 1 else None
    return SplitPlan(input_splits, output_splits, output_splits_tp, _sum(table, 0), chunk_table, sent)


def padded_plan(layout: ExpertLayout, capacity: int) -> SplitPlan:
    """Return the plan of drop-and-pad: every expert gets `capacity` rows from every rank, so nothing is exchanged.

    chunk_table is one-dimensional here, [E * TP], as Megatron leaves it.
    """
    rows = capacity * layout.num_experts
    per_expert = capacity * layout.group_size
    refuse_overflow(layout, rows, per_expert * layout.num_local_experts)
    return SplitPlan(
        input_splits=None,
        output_splits=None,
        output_splits_tp=None,
        tokens_per_local_expert=np.full(layout.num_local_experts, per_expert, dtype=np.int64),
        chunk_table=np.full(layout.num_experts * layout.tp_size, capacity, dtype=np.int64),
        num_out_tokens=rows,
    )


def refuse_overflow(layout: ExpertLayout, sent: int, received: int) -> None:
    """Raise CountOverflowError when a rank sends or receives more rows than can be indexed."""
    if sent <= MAX_ROWS and received <= MAX_ROWS:
        return
    what, rows = ("sends", sent) if sent > MAX_ROWS else ("receives", received)
    raise CountOverflowError(
        f"EP rank {layout.ep_rank}, TP rank {layout.tp_rank} {what} {rows} rows in one all-to-all; "
        f"at most {MAX_ROWS} can be indexed: use a smaller micro-batch"
    )
