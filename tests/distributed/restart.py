"""The job in which a launch makes its process groups anew in the same processes, which get other ranks."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distributed.launcher import leave
from distributed.layers import HIDDEN, PLUGIN, Layer, build_layer, enabled

STEPS, TIMEOUT = 2, timedelta(seconds=60)


class ToTheLast(torch.nn.Module):
    """In the place of a router: every token goes to the last `topk` experts."""

    def __init__(self, experts: int, topk: int) -> None:
        super().__init__()
        self.topk, self.weight = topk, torch.nn.Parameter(torch.ones(HIDDEN, experts))

    def forward(self, hidden: torch.Tensor, *unused: Any, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
        probs = (hidden.reshape(-1, HIDDEN) @ self.weight).softmax(-1)
        routing_map = torch.zeros_like(probs, dtype=torch.bool)
        routing_map[:, -self.topk :] = True
        return probs * routing_map, routing_map


def tokens_of(rank: int) -> int:
    """Of one step."""
    return 4 + rank


def reversed_ranks(folder: str) -> list[int]:
    """Train a layer; make all groups anew, ranks in reverse order; train a new one. Returns this process' ranks."""
    from megatron.core import parallel_state

    first, size = dist.get_rank(), dist.get_world_size()
    ranks = [first, size - 1 - first]
    config = {**PLUGIN["packed, all_to_all, byte_lanes"], "telemetry": {"enabled": True, "folder": folder}}
    with enabled(config):
        for attempt, rank in enumerate(ranks):
            leave()
            meet = f"file://{folder}.{attempt}"
            dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=size, timeout=TIMEOUT)
            parallel_state.initialize_model_parallel(expert_model_parallel_size=size)
            layer = build_layer(Layer(size, 1, size, 2))
            layer.set_layer_number(1)
            layer.router = ToTheLast(size, 2)
            optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
            for _ in range(STEPS):
                layer(torch.ones(tokens_of(rank), 1, HIDDEN))[0].sum().backward()
                optimizer.step()
            while not list(Path(folder).glob(f"rank{rank:05d}.*")):  # the folder is claimed in a thread
                time.sleep(0.05)
            dist.barrier()
    return ranks
