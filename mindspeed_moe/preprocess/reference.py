"""`reference`: the behaviour of the seed. Plain, one step a line, separate copies; the baseline to compare with.

Source of the behaviour: the NPU `preprocess` that MindSpeed wrote for megatron-core 0.10 (seed document): Megatron's
own steps, with the experts' counts left on the device. Every split is copied to the host by itself, without
blocking, on the current stream; the whole stream is synchronised at the first point that reads one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from mindspeed_moe.devices.accelerator import Accelerator
from mindspeed_moe.preprocess.site import Site, check_routing_map
from mindspeed_moe.preprocess.sites import Sites


class Reference:
    """The seed's preprocess. `accelerator` is None where device memory is host memory: nothing to wait for."""

    def __init__(self, sites: Sites, accelerator: Accelerator | None) -> None:
        self.sites = sites
        self._accelerator = accelerator
        # Where there is no hook, Megatron itself waits for the stream, as it did for the seed.
        self.waits_later = accelerator is not None and not sites.attributes.returns_at_once

    def preprocess(self, dispatcher: Any, routing_map: torch.Tensor) -> torch.Tensor:
        """Set the dispatcher's splits from a routing map [T, E] bool; returns tokens per local expert [L] int64."""
        sites = self.sites
        site, attributes = sites.of(dispatcher), sites.attributes
        check_routing_map(routing_map, site)
        if dispatcher.drop_and_pad:
            return attributes.publish_padded(dispatcher, site, routing_map)
        layout = site.layout
        local = routing_map.sum(dim=0).long()
        rows = attributes.known_out_tokens(dispatcher, routing_map)
        dispatcher.num_out_tokens = self.to_host(local.sum()) if rows is None else rows
        attributes.set_sync_point(dispatcher, site, rows)
        if layout.group_size > 1:
            dispatcher.input_splits = self.to_host(local.view(layout.ep_size, -1).sum(dim=1)).numpy()
            received = self._gather(dispatcher, site, local)  # [TP, EP, L]
            per_rank = received.sum(dim=2)
            dispatcher.output_splits = self.to_host(per_rank[layout.tp_rank]).numpy()
            if attributes.splits_over_tp:
                dispatcher.output_splits_tp = self.to_host(per_rank.sum(dim=1)).numpy()
            counts = received.sum(dim=(0, 1))
        else:
            attributes.forget_splits(dispatcher)
            received, counts = local, local
        if layout.num_local_experts > 1:
            table = received.view(-1, layout.num_local_experts)
            on_device = attributes.table_on_device(dispatcher)
            setattr(
                dispatcher, attributes.table, table if on_device else attributes.host_table(site, self.to_host(table))
            )
        return self.to_host(counts) if site.counts_on_host else counts

    def host_copies(self, dispatcher: Any, point: str, tokens_per_expert: torch.Tensor) -> torch.Tensor:
        """At the dispatcher's sync point, synchronise the whole current stream, as the seed's dispatcher does."""
        if self._accelerator is not None and point == dispatcher.cuda_sync_point and not dispatcher.drop_and_pad:
            self._accelerator.synchronize_current_stream()
        return tokens_per_expert

    def under_way(self, dispatcher: Any) -> bool:
        """The copies belong to nobody but their readers."""
        return False

    def _gather(self, dispatcher: Any, site: Site, local: torch.Tensor) -> torch.Tensor:
        """Return every rank's counts for this rank's own experts, [TP, EP, L] int64, contiguous."""
        layout = site.layout
        if site.group is None:
            self.sites.join(site, dispatcher)
        every = torch.empty(layout.group_size * layout.num_experts, dtype=local.dtype, device=local.device)
        dist.all_gather_into_tensor(every, local, group=site.group)
        self.gathered(dispatcher, every)
        own = slice(layout.first_expert, layout.first_expert + layout.num_local_experts)
        return every.view(layout.ep_size, layout.tp_size, -1).transpose(0, 1)[:, :, own].contiguous()

    def gathered(self, dispatcher: Any, every: torch.Tensor) -> None:
        """Every rank's counts, [EP * TP * E] int64 in group order, have been asked for; nothing more is done here."""

    def to_host(self, values: torch.Tensor) -> torch.Tensor:
        """Start to copy to the host."""
        return values.to("cpu", non_blocking=True)
