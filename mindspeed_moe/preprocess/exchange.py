"""How the ranks of a TPxEP group learn each other's counts: one buffer, one collective.

The buffer holds int32 counts, this rank's own first, then what the collective writes:
    all_to_all: [E] n, [EP, TP, L] each rank's counts for this rank's own experts  (TP > 1: a send area before it)
    all_gather: [E] n, [EP, TP, E] each rank's counts for all experts
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from mindspeed_moe.preprocess.layout import ExpertLayout


class Exchange:
    """The layout of the buffer and the collective that fills it; made once for a layout, used in every call.

    length: int32 words of the buffer. Subclasses say where the received counts lie.
    """

    def __init__(self, layout: ExpertLayout) -> None:
        self.layout = layout
        self.length = layout.num_experts

    def run(self, buffer: torch.Tensor, group: dist.ProcessGroup) -> None:
        """Fill the buffer behind its first [E] counts, in the order of the current stream."""

    def received(self, buffer: torch.Tensor) -> torch.Tensor:
        """Return the view [EP, TP, L] of every rank's counts for this rank's own experts."""
        return buffer.view(1, 1, -1)


class NoExchange(Exchange):
    """EP = TP = 1: what this rank counts is what it receives."""


class AllToAll(Exchange):
    """Every rank sends each other rank the L counts that concern it: TP * E words a rank, whatever EP is."""

    def __init__(self, layout: ExpertLayout) -> None:
        super().__init__(layout)
        self._words = layout.group_size * layout.num_local_experts
        self._shape = (layout.ep_size, layout.tp_size, layout.num_local_experts)
        self._sends_apart = layout.tp_size > 1  # else the counts themselves are in sending order
        self.length = layout.num_experts + self._words * (2 if self._sends_apart else 1)

    def run(self, buffer: torch.Tensor, group: dist.ProcessGroup) -> None:
        """One equal-split all-to-all; TP > 1 first repeats the counts for every TP peer."""
        experts, words = self.layout.num_experts, self._words
        sent = buffer[:experts]
        if self._sends_apart:
            apart = buffer[experts : experts + words]
            apart.view(self._shape).copy_(sent.view(self._shape[0], 1, self._shape[2]).expand(self._shape))
            sent = apart
        dist.all_to_all_single(buffer[-words:], sent, group=group)

    def received(self, buffer: torch.Tensor) -> torch.Tensor:
        """Return the view [EP, TP, L]; contiguous."""
        return buffer[-self._words :].view(self._shape)


class AllGather(Exchange):
    """Every rank gathers all counts of all ranks: TP * EP * E words a rank."""

    def __init__(self, layout: ExpertLayout) -> None:
        super().__init__(layout)
        self.length = layout.num_experts * (1 + layout.group_size)

    def run(self, buffer: torch.Tensor, group: dist.ProcessGroup) -> None:
        """One all-gather of the [E] counts."""
        experts = self.layout.num_experts
        dist.all_gather_into_tensor(buffer[experts:], buffer[:experts], group=group)

    def received(self, buffer: torch.Tensor) -> torch.Tensor:
        """Return the strided view [EP, TP, L] of the own experts' columns."""
        layout = self.layout
        every = buffer[layout.num_experts :].view(layout.ep_size, layout.tp_size, layout.num_experts)
        return every[:, :, layout.first_expert : layout.first_expert + layout.num_local_experts]


EXCHANGES: dict[str, type[Exchange]] = {"all_to_all": AllToAll, "all_gather": AllGather}


def make_exchange(name: str, layout: ExpertLayout) -> Exchange:
    """Return the exchange called `name` for a layout; without peers there is nothing to exchange."""
    return NoExchange(layout) if layout.group_size == 1 else EXCHANGES[name](layout)
