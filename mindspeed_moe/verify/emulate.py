"""This version's own code on counts from a dump: the layout of its buffers and its split plan, without collectives."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mindspeed_moe.preprocess.exchange import EXCHANGES, Exchange, Views
from mindspeed_moe.preprocess.layout import ExpertLayout
from mindspeed_moe.preprocess.splits import split_plan
from mindspeed_moe.verify.dump import Meta
from mindspeed_moe.verify.reads import COUNTS, ROWS, TABLE
from mindspeed_moe.verify.values import Value


def packed_plan(meta: Meta, counts: NDArray[np.int64]) -> dict[str, Value]:
    """Return what `packed` of this version leaves on the dump's rank, {} for a rank without peers.

    counts: [EP * TP, E], every rank's, in group order. The exchange is that of the run's configuration.
    """
    if meta.ep_size * meta.tp_size == 1:
        return {}
    name = meta.implementation.rpartition(", ")[2]
    kind = EXCHANGES.get(name, EXCHANGES["all_to_all"])
    me = meta.ep_rank * meta.tp_size + meta.tp_rank
    exchange, views = _filled(kind, meta, me, counts[me])
    # What the collective does: everything of everybody, or of each an equal part.
    part = views.written.numel() // len(counts)
    gathers = part == views.sent.numel()
    received = views.written.view(len(counts), part)
    for rank in range(len(counts)):
        sent = _filled(kind, meta, rank, counts[rank])[1].sent
        received[rank].copy_(sent if gathers else sent.view(len(counts), part)[me])
    plan = split_plan(exchange.layout, exchange.reader(views.read.numpy())(), None)
    values: dict[str, Value] = {
        ROWS: plan.num_out_tokens,
        "input_splits": plan.input_splits,
        "output_splits": plan.output_splits,
        "output_splits_tp": plan.output_splits_tp,
        COUNTS: plan.tokens_per_local_expert,
    }
    return values if plan.chunk_table is None else {**values, TABLE: plan.chunk_table}


def _filled(kind: type[Exchange], meta: Meta, index: int, counts: NDArray[np.int64]) -> tuple[Exchange, Views]:
    layout = ExpertLayout(meta.num_experts, meta.ep_size, meta.tp_size, *divmod(index, meta.tp_size))
    exchange = kind(layout)
    views = exchange.views(torch.zeros(exchange.length, dtype=torch.int32, device="cpu"))
    views.counts.copy_(torch.from_numpy(counts))
    if views.repeated is not None:
        area, repeated = views.repeated
        area.copy_(repeated)
    return exchange, views
