"""The adapter of dispatchers that wait by a line inside of their own dispatching (megatron-core 0.10 and 0.11; SEQ).

There is no hook to wait in, and the line waits for the whole stream. So Megatron is told that there is nothing to wait
for, and the attributes wait for themselves: `patches/waiting.py` puts properties in their place, which are asked
wherever Megatron reads a host value.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import numpy as np
import torch

from mindspeed_moe import log
from mindspeed_moe.preprocess.attributes import (
    BEFORE_EP_ALLTOALL,
    BEFORE_FINISH,
    BEFORE_PERMUTATION_1,
    Attributes,
)
from mindspeed_moe.preprocess.layout import ExpertLayout
from mindspeed_moe.preprocess.site import Site, expert_layout
from mindspeed_moe.preprocess.splits import SplitPlan

NO_SYNC = "no_sync"
_PARALLEL_STATE = "megatron.core.parallel_state"
_WRONG_CHUNKS = (
    "this release of megatron-core (0.11) puts tokens back at wrong positions where TP and EP of the experts are above "
    "1 and a rank has several experts; mindspeed_moe leaves that as it is: use 0.12 or later"
)


class InlineAttributes(Attributes):
    """MoEAlltoAllTokenDispatcher of 0.10 and 0.11; source: their `preprocess` and `token_permutation`.

    splits: the attributes that all-to-all and the collectives over TP are given, in every call.
    """

    returns_at_once = True
    splits: tuple[str, ...] = ("input_splits", "output_splits", "output_splits_tp")

    @property
    def waiting(self) -> tuple[str, ...]:
        """The attributes that wait for themselves."""
        return (*self.splits, "num_out_tokens", self.table)

    def fuses(self, dispatcher: Any) -> bool:
        """Return whether fused kernels permute; 0.10 has none."""
        return bool(getattr(dispatcher.config, "moe_permute_fusion", False))

    def due(self, dispatcher: Any, site: Site, num_out_tokens: int | None) -> frozenset[str]:
        """Return the attributes whose first reader must wait. One of them is read before the experts run."""
        due = set()
        if num_out_tokens is None:
            due.add("num_out_tokens")
        if site.layout.num_local_experts > 1 and not self.table_on_device(dispatcher):
            due.add(self.table)
        if site.exchange is not None or not due:
            due.update(self.splits)
        return frozenset(due)

    def set_sync_point(self, dispatcher: Any, site: Site, num_out_tokens: int | None) -> None:
        """Tell Megatron where to wait for the stream; assigned outright, as these releases do."""
        dispatcher.cuda_sync_point = self._sync_point(dispatcher, site, num_out_tokens)

    def take_over_waiting(self, dispatcher: Any, site: Site, num_out_tokens: int | None) -> None:
        """Megatron is not to wait for the whole stream: the attributes wait for the copy."""
        dispatcher.cuda_sync_point = NO_SYNC

    def host_table(self, site: Site, table: torch.Tensor) -> torch.Tensor:
        """0.11 leaves [TP, EP, L], or [E] without peers."""
        if not self.generation.unfolded_table:
            return table
        layout = site.layout
        if layout.group_size == 1:
            return table.view(-1)
        if layout.tp_size > 1 and layout.ep_size > 1:
            log.once(logging.WARNING, _WRONG_CHUNKS)
        return table.view(layout.tp_size, layout.ep_size, -1)

    def _sync_point(self, dispatcher: Any, site: Site, num_out_tokens: int | None) -> str:
        if num_out_tokens is None:
            return BEFORE_PERMUTATION_1
        layout = site.layout
        return BEFORE_EP_ALLTOALL if layout.ep_size > 1 or layout.num_local_experts > 1 else BEFORE_FINISH

    def _capacity_factor(self, dispatcher: Any) -> Any:
        return dispatcher.config.moe_expert_capacity_factor

    def _padded_table(self, dispatcher: Any, plan: SplitPlan, capacity: int) -> torch.Tensor:
        if hasattr(dispatcher, "permute_idx_device"):  # from 0.11 on
            return super()._padded_table(dispatcher, plan, capacity)
        assert plan.chunk_table is not None
        return torch.from_numpy(plan.chunk_table.copy())


class SequenceAttributes(InlineAttributes):
    """MoEAlltoAllSEQTokenDispatcher (0.10 to 0.12, `legacy_a2a_token_dispatcher`).

    Counts are exchanged over the EP group alone: all TP ranks hold the map of the whole sequence, and the hidden
    dimension is what TP splits. Nobody reads splits over TP. Stock also leaves the chunk table on the device, as
    `num_global_tokens_per_local_expert`, which nothing in Megatron reads: it is not made.
    """

    splits = ("input_splits", "output_splits")
    splits_over_tp = False
    _ON_DEVICE = "num_global_tokens_per_local_expert"

    def __init__(self, generation: Any) -> None:
        super().__init__(generation)
        self.table = "num_global_tokens_per_local_expert_cpu"  # whatever the other dispatcher calls it

    def layout(self, dispatcher: Any) -> ExpertLayout:
        """Return the expert layout, in which TP takes no part."""
        return expert_layout(dispatcher, tp_size=1, tp_rank=0)

    def full_group(self, dispatcher: Any) -> Any:
        """Return the EP group."""
        return dispatcher.ep_group

    def speaks_for_tp(self, dispatcher: Any) -> bool:
        """All TP ranks hold the map of the whole sequence: one of them is enough."""
        return bool(dispatcher.tp_size == 1 or not sys.modules[_PARALLEL_STATE].get_tensor_model_parallel_rank())

    def fuses(self, dispatcher: Any) -> bool:
        """The legacy dispatcher never calls fused kernels."""
        return False

    def host_table(self, site: Site, table: torch.Tensor) -> torch.Tensor:
        """[EP, L] in every release."""
        return table

    def forget_splits(self, dispatcher: Any) -> None:
        """No reader finds the last call's values, and none the table of a stock call."""
        super().forget_splits(dispatcher)
        setattr(dispatcher, self._ON_DEVICE, None)

    def _padded_table(self, dispatcher: Any, plan: SplitPlan, capacity: int) -> torch.Tensor:
        # E * TP entries, as stock leaves them, though TP takes no part in the chunks.
        return torch.from_numpy(np.full(dispatcher.num_experts * dispatcher.tp_size, capacity, dtype=np.int64))
