"""How the ranks of a group learn each other's counts: one buffer of int32 words, one collective.

    all_to_all: [EP, TP, L] what is sent (TP > 1 only), [E] n, [EP, TP, L] each rank's counts for this rank's experts
    all_gather: [E] n, [EP, TP, E] each rank's counts for all experts
What the host reads is one contiguous run of words at the end, so that one copy brings it there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from mindspeed_moe.preprocess.layout import ExpertLayout

Words = NDArray[np.int32]
Rows = NDArray[np.int64]
_ROW = np.dtype(np.int64)


@dataclass(frozen=True)
class Views:
    """Views of one buffer, made once: making a view costs the host as much as a small kernel.

    counts: [E] where this rank's counts are written.
    repeated: [EP, TP, L] the send area and [EP, 1, L] what is repeated there; None when counts are sent as they are.
    sent, written: what the collective reads and fills.
    received: [EP, TP, L] every rank's counts for this rank's own experts, in group order.
    read: the words that the host reads.
    """

    counts: torch.Tensor
    repeated: tuple[torch.Tensor, torch.Tensor] | None
    sent: torch.Tensor
    written: torch.Tensor
    received: torch.Tensor
    read: torch.Tensor


class Exchange:
    """The layout of the buffer and the collective that fills it; made once for a layout, used in every call.

    length: int32 words of the buffer.
    """

    length: int

    def __init__(self, layout: ExpertLayout) -> None:
        self.layout = layout

    def views(self, buffer: torch.Tensor) -> Views:
        """Return the views of a buffer of `length` int32 words."""
        raise NotImplementedError

    def run(self, views: Views, group: dist.ProcessGroup) -> None:
        """Exchange the counts that stand in the buffer, in the order of the current stream."""
        raise NotImplementedError

    def reader(self, words: Words) -> Callable[[], Rows]:
        """Return what makes rows of the words that the host reads (`Views.read`, on the host).

        Rows: [EP + EP * TP, L] int64 of their own; first what is sent to each EP peer's experts, then what every
        rank, in group order, sends to this rank's experts.
        """
        raise NotImplementedError


class AllToAll(Exchange):
    """Every rank sends each other rank the L counts that concern it: TP * E words a rank, whatever EP is."""

    def __init__(self, layout: ExpertLayout) -> None:
        super().__init__(layout)
        self._shape = (layout.ep_size, layout.tp_size, layout.num_local_experts)
        self._words = layout.group_size * layout.num_local_experts
        self._apart = self._words if layout.tp_size > 1 else 0  # else the counts themselves are in sending order
        self.length = self._apart + layout.num_experts + self._words

    def views(self, buffer: torch.Tensor) -> Views:
        """Return the views of a buffer."""
        ep, tp, local = self._shape
        counts, written = buffer[self._apart : self._apart + ep * local], buffer[-self._words :]
        repeated = (buffer[: self._words].view(ep, tp, local), counts.view(ep, 1, local)) if self._apart else None
        return Views(
            counts=counts,
            repeated=repeated,
            sent=buffer[: self._words] if self._apart else counts,
            written=written,
            received=written.view(self._shape),
            read=buffer[self._apart :],
        )

    def run(self, views: Views, group: dist.ProcessGroup) -> None:
        """One equal-split all-to-all; TP > 1 first repeats the counts for every TP peer."""
        if views.repeated is not None:
            area, counts = views.repeated
            area.copy_(counts)
        dist.all_to_all_single(views.written, views.sent, group=group)

    def reader(self, words: Words) -> Callable[[], Rows]:
        """Sent and received counts stand behind each other, as rows of L: one conversion."""
        rows = words.reshape(-1, self._shape[2])
        return lambda: rows.astype(_ROW)


class AllGather(Exchange):
    """Every rank gathers all counts of all ranks: TP * EP * E words a rank."""

    def __init__(self, layout: ExpertLayout) -> None:
        super().__init__(layout)
        self.length = layout.num_experts * (1 + layout.group_size)

    def views(self, buffer: torch.Tensor) -> Views:
        """Return the views of a buffer."""
        layout = self.layout
        counts, written = buffer[: layout.num_experts], buffer[layout.num_experts :]
        every = written.view(layout.ep_size, layout.tp_size, layout.num_experts)
        return Views(counts, None, counts, written, every[:, :, self._own()], written)

    def run(self, views: Views, group: dist.ProcessGroup) -> None:
        """One all-gather of the [E] counts."""
        dist.all_gather_into_tensor(views.written, views.sent, group=group)

    def reader(self, words: Words) -> Callable[[], Rows]:
        """This rank's counts are among the gathered; of the others' only the own experts' columns are read."""
        layout = self.layout
        every = words.reshape(layout.group_size, layout.num_experts)
        sent = every[layout.group_index].reshape(layout.ep_size, layout.num_local_experts)
        received = every[:, self._own()]
        return lambda: np.concatenate((sent, received), dtype=_ROW)

    def _own(self) -> slice:
        return slice(self.layout.first_expert, self.layout.first_expert + self.layout.num_local_experts)


EXCHANGES: dict[str, type[Exchange]] = {"all_to_all": AllToAll, "all_gather": AllGather}
