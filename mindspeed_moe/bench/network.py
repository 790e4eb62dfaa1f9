"""How the prepared result of a collective gets to where it belongs: a copy, or a real collective of one rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from mindspeed_moe.bench.timing import nothing


class Network:
    """On the host: one copy."""

    device = "cpu"

    def gather(self, output: torch.Tensor, result: torch.Tensor) -> None:
        """Write the result of an all-gather into `output`, of the same size."""
        output.copy_(result)

    def exchange(self, output: torch.Tensor, result: torch.Tensor) -> None:
        """Write the result of an all-to-all into `output`, of the same size."""
        output.copy_(result)

    def exchange_rows(self, output: torch.Tensor, rows: torch.Tensor) -> None:
        """Stand for an all-to-all of tokens: `output` gets this rank's own `rows`, as often as it has room for them."""
        if not len(rows):
            output.zero_()
            return
        first = min(len(output), len(rows))
        self.exchange(output[:first], rows[:first])
        for start in range(first, len(output), len(rows)):
            more = output[start : start + len(rows)]
            more.copy_(rows[: len(more)])


HOST = Network()


class OneRankNetwork(Network):
    """On an accelerator: the backend's own collective in the world of one rank, whose only part is the whole result.

    What the caller sends is not read; the collective is ordered behind it all the same. Made before torch's names
    are replaced. sleep: keeps the current stream asleep after each collective.
    """

    def __init__(self, device: str, sleep: Callable[[], object] | None = None) -> None:
        self.device = device
        self._sleep = sleep or nothing
        self._gather: Callable[..., Any] = dist.all_gather_into_tensor
        self._exchange: Callable[..., Any] = dist.all_to_all_single
        self._world: Any = dist.group.WORLD

    def gather(self, output: torch.Tensor, result: torch.Tensor) -> None:
        """Write the result with one all-gather."""
        self._gather(output, result, group=self._world)
        self._sleep()

    def exchange(self, output: torch.Tensor, result: torch.Tensor) -> None:
        """Write the result with one all-to-all."""
        self._exchange(output, result, group=self._world)
        self._sleep()
