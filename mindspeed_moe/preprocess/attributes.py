"""The adapter: what Megatron's dispatchers call their attributes, and where they read host values.

Reads what preprocess needs from a dispatcher, and writes what the consumers read. One class a contract: this one for
dispatchers that wait in a hook (megatron-core 0.12 on), those beside it for the older ones, as what differs from it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from mindspeed_moe.contract.generations import TOKEN_DISPATCHER, Generation
from mindspeed_moe.errors import PreprocessError
from mindspeed_moe.patching.target import locate
from mindspeed_moe.preprocess.layout import ExpertLayout
from mindspeed_moe.preprocess.site import Site, expert_layout
from mindspeed_moe.preprocess.splits import SplitPlan, padded_plan, refuse_overflow

BEFORE_PERMUTATION_1 = "before_permutation_1"
BEFORE_EP_ALLTOALL = "before_ep_alltoall"
BEFORE_PERMUTATION_2 = "before_permutation_2"
BEFORE_FINISH = "before_finish"

_MOE_UTILS = "megatron.core.transformer.moe.moe_utils"


# Looks on: dispatcher, site, rows that each own expert receives ([L], an array or a tensor on the host), rows sent to
# each EP peer ([EP], or None), rows after the first permutation, and whether padding made them.
Watch = Callable[[Any, Site, Any, Any, int, bool], None]


class Attributes:
    """A dispatcher that asks a hook for host values at its four points.

    returns_at_once: whether Megatron keeps what preprocess returns to itself, so that counts for the host must be
        filled in where they stand; the hook returns them instead.
    table: the attribute that holds the chunk table. splits_over_tp: whether consumers read output_splits_tp.
    sorts_on_host: somebody else sorts chunks and reads the table on the host, whatever permutes.
    watch: called with what is published, every time.
    """

    returns_at_once = False
    splits_over_tp = True
    sorts_on_host = False

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.table = generation.chunk_table
        self.watch: Watch | None = None

    # -------------------------------------------------------------------------------------------- reading

    def layout(self, dispatcher: Any) -> ExpertLayout:
        """Return the expert layout; GroupError when the dispatcher's experts are not a run of neighbours."""
        return expert_layout(dispatcher, tp_size=dispatcher.tp_size, tp_rank=dispatcher.tp_rank)

    def full_group(self, dispatcher: Any) -> Any:
        """Return the process group of all ranks whose counts this rank needs, EP-major."""
        return dispatcher.tp_ep_group

    def fuses(self, dispatcher: Any) -> bool:
        """Return whether fused kernels permute: they read the number of rows."""
        return bool(dispatcher.config.moe_permute_fusion)

    def table_on_device(self, dispatcher: Any) -> bool:
        """Return whether the chunk table is read on the device: where fused kernels sort the chunks.

        MindSpeed without triton permutes with fused kernels and sorts without: it takes the device from its
        dispatchers (master, `core/fusions/fused_moe_permute.py`), and its hook copies the table.
        """
        if self.sorts_on_host or not self.fuses(dispatcher):
            return False
        return dispatcher.permute_idx_device not in (None, "cpu")

    def known_out_tokens(self, dispatcher: Any, routing_map: torch.Tensor) -> int | None:
        """Return the rows after the first permutation, T * topk, or None when they depend on the routing map."""
        config, padding = dispatcher.config, self.generation.router_padding
        if config.moe_expert_capacity_factor is not None or (padding and getattr(config, padding)):
            return None
        return int(routing_map.shape[0] * config.moe_router_topk)

    def due(self, dispatcher: Any, site: Site, num_out_tokens: int | None) -> frozenset[str]:
        """Return where a host value is first read: a point of the hook's; Megatron's own, or a later one.

        A data-dependent number of rows moves Megatron's point before permutation 1, but until 0.17 only the fused
        permutation reads it there (`moe_utils.permute`). Somebody else's permute is taken to read it.
        """
        reads_rows = self.generation.permute_reads_rows or self.fuses(dispatcher) or not _permute_is_megatrons()
        if num_out_tokens is not None or reads_rows:
            return frozenset((dispatcher.cuda_sync_point,))
        if site.exchange is not None:
            return frozenset((BEFORE_EP_ALLTOALL,))
        return frozenset((BEFORE_PERMUTATION_2 if site.layout.num_local_experts > 1 else BEFORE_FINISH,))

    def speaks_for_tp(self, dispatcher: Any) -> bool:
        """Return whether this rank's counts are not those of another TP rank as well."""
        return True

    # -------------------------------------------------------------------------------------------- writing

    def set_sync_point(self, dispatcher: Any, site: Site, num_out_tokens: int | None) -> None:
        """Tell Megatron at which of its points host values are first read (0.12.1 `preprocess`)."""
        dispatcher._maybe_update_cuda_sync_point(self._sync_point(dispatcher, site, num_out_tokens))

    def take_over_waiting(self, dispatcher: Any, site: Site, num_out_tokens: int | None) -> None:
        """Do what keeps Megatron from waiting beside us; the hook is ours, so that its points stay as they are."""
        self.set_sync_point(dispatcher, site, num_out_tokens)

    def publish(self, dispatcher: Any, site: Site, plan: SplitPlan, *, chunk_table: bool = True) -> torch.Tensor:
        """Give the consumers what they read; returns tokens per local expert, [L] int64 on the host.

        chunk_table=False leaves the table alone, for a program that keeps it on the device.
        """
        dispatcher.input_splits = plan.input_splits
        dispatcher.output_splits = plan.output_splits
        dispatcher.output_splits_tp = plan.output_splits_tp
        self._set_rows(dispatcher, plan.num_out_tokens)
        if chunk_table and plan.chunk_table is not None:
            setattr(dispatcher, self.table, self.host_table(site, torch.from_numpy(plan.chunk_table)))
        if self.watch is not None:
            self.watch(dispatcher, site, plan.tokens_per_local_expert, plan.input_splits, plan.num_out_tokens, False)
        return torch.from_numpy(plan.tokens_per_local_expert)

    def publish_alone(
        self,
        dispatcher: Any,
        site: Site,
        counts: torch.Tensor,
        num_out_tokens: int | None,
        *,
        chunk_table: bool = True,
    ) -> torch.Tensor:
        """Without peers, what a rank counts, [E] int64 on the host, is what it receives: there is nothing to derive.

        The splits are None, whatever an earlier call left. Returns the counts.
        """
        rows = sum(counts.tolist()) if num_out_tokens is None else num_out_tokens
        refuse_overflow(site.layout, rows, rows)
        dispatcher.input_splits = dispatcher.output_splits = dispatcher.output_splits_tp = None
        self._set_rows(dispatcher, rows)
        if chunk_table and site.layout.num_experts > 1:
            setattr(dispatcher, self.table, self.host_table(site, counts.view(1, -1)))
        if self.watch is not None:
            self.watch(dispatcher, site, counts, None, rows, False)
        return counts

    def publish_padded(self, dispatcher: Any, site: Site, routing_map: torch.Tensor) -> torch.Tensor:
        """Drop and pad: everything follows from the capacity, known on the host; returns [L] int64 on the host."""
        # Looked up at call time: a name imported at module level would outlive somebody's patch of it.
        dispatcher.capacity = capacity = sys.modules[_MOE_UTILS].get_capacity(
            num_tokens=routing_map.shape[0] * dispatcher.config.moe_router_topk,
            num_experts=dispatcher.num_experts,
            capacity_factor=self._capacity_factor(dispatcher),
        )
        if site.padded is None or site.padded[0] != capacity:
            site.padded = capacity, padded_plan(site.layout, capacity)
        plan = site.padded[1]  # kept for the next call: its arrays are handed out as copies
        self.forget_splits(dispatcher)
        dispatcher.num_out_tokens = plan.num_out_tokens
        setattr(dispatcher, self.table, self._padded_table(dispatcher, plan, capacity))
        if self.watch is not None:
            self.watch(dispatcher, site, plan.tokens_per_local_expert, None, plan.num_out_tokens, True)
        return torch.from_numpy(plan.tokens_per_local_expert.copy())

    def host_table(self, site: Site, table: torch.Tensor) -> torch.Tensor:
        """Return a chunk table [TP*EP, L] on the host in the form that the release leaves it."""
        return table

    def forget_splits(self, dispatcher: Any) -> None:
        """Consumers that read too early must not find the last call's values."""
        dispatcher.input_splits = dispatcher.output_splits = dispatcher.output_splits_tp = None

    # -------------------------------------------------------------------------------------------- differences

    def _set_rows(self, dispatcher: Any, rows: int) -> None:
        # Known before the copy, it stands there already; router replay's wrapper may have corrected it since.
        if vars(dispatcher).get("num_out_tokens") is None:
            dispatcher.num_out_tokens = rows

    def require_untouched(self, dispatcher: Any) -> None:
        """Raise PreprocessError where somebody has set splits while ours were on their way: one would be lost."""
        held = vars(dispatcher)
        if held.get("input_splits") is not None or held.get("output_splits") is not None:
            raise PreprocessError(
                f"somebody has set input_splits or output_splits of a {type(dispatcher).__name__} before `packed` has, "
                f"whose values are on their way from the device until the first reader waits for them; at preprocess "
                f"stands {locate(type(dispatcher).preprocess)}; `reference` and `stock` set them at once"
            )

    def _sync_point(self, dispatcher: Any, site: Site, num_out_tokens: int | None) -> str:
        if num_out_tokens is None:
            return BEFORE_PERMUTATION_1
        if site.exchange is not None:
            return BEFORE_EP_ALLTOALL
        if site.layout.num_local_experts > 1 and not self.table_on_device(dispatcher):
            return BEFORE_PERMUTATION_2
        return BEFORE_FINISH

    def _capacity_factor(self, dispatcher: Any) -> Any:
        return dispatcher.moe_expert_capacity_factor

    def _padded_table(self, dispatcher: Any, plan: SplitPlan, capacity: int) -> torch.Tensor:
        assert plan.chunk_table is not None
        device = dispatcher.permute_idx_device
        if device in (None, "cpu"):
            return torch.from_numpy(plan.chunk_table.copy())
        # Filled there: a copy from pageable memory would make the host wait.
        return torch.full(plan.chunk_table.shape, capacity, dtype=torch.int64, device=device)


def _permute_is_megatrons() -> bool:
    # By the namespace that its code runs in, which functools.wraps does not copy.
    permute = getattr(sys.modules.get(TOKEN_DISPATCHER), "permute", None)
    return getattr(permute, "__globals__", {}).get("__name__") == _MOE_UTILS
