"""The numerical core: counts and layout in, a frozen plan of split sizes out. Numpy only.

Formulas: megatron-core 0.12.1 and 0.16.1, `transformer/moe/token_dispatcher.py`,
`MoEAlltoAllTokenDispatcher.preprocess`; notation in the package's docstring.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mindspeed_moe.errors import CountOverflowError
from mindspeed_moe.preprocess.layout import ExpertLayout

Counts = NDArray[np.int32]
Splits = NDArray[np.int64]

MAX_ROWS = 2**31 - 1  # counts travel as int32, and 32-bit indices address the rows


@dataclass(frozen=True)
class SplitPlan:
    """Everything that a consumer reads after preprocess. Arrays are int64, own their memory, and never change.

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


def split_plan(layout: ExpertLayout, local: Counts, received: Counts, num_out_tokens: int | None) -> SplitPlan:
    """Derive the plan from this rank's counts and the counts that it received.

    local: [E] this rank's tokens per expert.
    received: [EP, TP, L] every rank's tokens for this rank's own experts, in group order. May be a view of a
        buffer that is reused later: nothing of it is kept.
    num_out_tokens: T * topk when it is known (dropless); None when it depends on the routing map.
    Raises CountOverflowError when a buffer would hold more than 2**31 - 1 rows.
    """
    experts = layout.num_local_experts
    rows = int(local.sum(dtype=np.int64)) if num_out_tokens is None else num_out_tokens
    if layout.group_size == 1:  # what this rank counts is what it receives
        _refuse_overflow(layout, rows, rows)
        per_expert = local.astype(np.int64)
        own_chunks = per_expert.reshape(1, experts).copy() if experts > 1 else None
        return SplitPlan(None, None, None, per_expert, own_chunks, rows)
    table = received.transpose(1, 0, 2).astype(np.int64, order="C")  # (tp, ep): the order of the second sort
    if experts > 1:
        per_rank = np.add.reduce(table, axis=2)
        per_expert = np.add.reduce(table.reshape(-1, experts), axis=0)
    else:
        per_rank = table[:, :, 0]
        per_expert = np.add.reduce(table, axis=None, keepdims=True).reshape(1)
    output_splits_tp = np.add.reduce(per_rank, axis=1)
    _refuse_overflow(layout, rows, sum(output_splits_tp.tolist()))
    return SplitPlan(
        input_splits=np.add.reduce(local.reshape(-1, experts), axis=1, dtype=np.int64),
        output_splits=per_rank[layout.tp_rank].copy(),
        output_splits_tp=output_splits_tp,
        tokens_per_local_expert=per_expert,
        chunk_table=table.reshape(-1, experts) if experts > 1 else None,
        num_out_tokens=rows,
    )


def padded_plan(layout: ExpertLayout, capacity: int) -> SplitPlan:
    """Return the plan of drop-and-pad: every expert gets `capacity` rows from every rank, so nothing is exchanged.

    chunk_table is one-dimensional here, [E * TP], as Megatron leaves it.
    """
    rows = capacity * layout.num_experts
    per_expert = capacity * layout.group_size
    _refuse_overflow(layout, rows, per_expert * layout.num_local_experts)
    return SplitPlan(
        input_splits=None,
        output_splits=None,
        output_splits_tp=None,
        tokens_per_local_expert=np.full(layout.num_local_experts, per_expert, dtype=np.int64),
        chunk_table=np.full(layout.num_experts * layout.tp_size, capacity, dtype=np.int64),
        num_out_tokens=rows,
    )


def _refuse_overflow(layout: ExpertLayout, sent: int, received: int) -> None:
    if sent <= MAX_ROWS and received <= MAX_ROWS:
        return
    what, rows = ("sends", sent) if sent > MAX_ROWS else ("receives", received)
    raise CountOverflowError(
        f"EP rank {layout.ep_rank}, TP rank {layout.tp_rank} {what} {rows} rows in one all-to-all; "
        f"at most {MAX_ROWS} can be indexed: use a smaller micro-batch"
    )
