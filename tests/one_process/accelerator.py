"""An accelerator whose copies are late: what a host reads before it has waited is garbage."""

from __future__ import annotations

import torch

POISON = -0x5EAD_BEEF


class LateEvent:
    """Stands for the event behind a copy. The copy happens here, from what the source holds by then."""

    def __init__(self, source: torch.Tensor, target: torch.Tensor) -> None:
        self.source, self.target = source, target
        self.waits = 0

    def synchronize(self) -> None:
        self.waits += 1
        if self.waits == 1:
            self.target.copy_(self.source)


class LateAccelerator:
    """Offers what mindspeed_moe.devices.accelerator.Accelerator offers; keeps a record of the copies."""

    def __init__(self) -> None:
        self.copies: list[LateEvent] = []

    def copy_to_host(self, source: torch.Tensor) -> tuple[torch.Tensor, LateEvent]:
        assert source.is_contiguous(), "a strided source would need a kernel before the copy"
        assert source.dtype is torch.int32, "a change of dtype would need a kernel before the copy"
        target = torch.full_like(source, POISON)
        self.copies.append(LateEvent(source, target))
        return target, self.copies[-1]

    def synchronize_current_stream(self) -> None:
        raise AssertionError("the floor waits for an event, never for a stream")

    def reuse_memory(self) -> None:
        """What an allocator does with memory whose copies are done: others write to it, on both sides."""
        for event in self.copies:
            if event.waits:
                event.source.fill_(POISON)
                event.target.fill_(POISON)
