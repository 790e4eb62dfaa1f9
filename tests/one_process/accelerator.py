"""An accelerator whose copies are late: what a host reads before it has waited is garbage."""

from __future__ import annotations

from contextlib import nullcontext

import torch

POISON = -0x5EAD_BEEF


class LateCopy:
    """A copy that happens when somebody waits for it, from what the source holds by then."""

    def __init__(self, source: torch.Tensor, target: torch.Tensor) -> None:
        self.source, self.target = source, target
        self.waits = 0

    def happen(self) -> None:
        self.waits += 1
        if self.waits == 1:
            self.target.copy_(self.source)


class LateEvent:
    """Recorded behind a copy. Done only when somebody has waited, or `arrive` was called."""

    def __init__(self) -> None:
        self.behind: LateCopy | None = None

    def synchronize(self) -> None:
        assert self.behind is not None, "the event was never recorded: a real one would not wait"
        self.behind.happen()

    def record(self) -> None:
        self.behind = None

    def query(self) -> bool:
        return self.behind is None or self.behind.waits > 0


class LateAccelerator:
    """Offers what mindspeed_moe.devices.accelerator.Accelerator offers; keeps a record of the copies."""

    def __init__(self) -> None:
        self.copies: list[LateCopy] = []
        self.started: list[LateEvent] = []

    def pinned(self, count: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((count,), POISON, dtype=dtype, device="cpu")

    def event(self) -> LateEvent:
        return LateEvent()

    def side(self, started: LateEvent) -> nullcontext[None]:
        self.started.append(started)
        return nullcontext()

    def copy_to_host(self, source: torch.Tensor, target: torch.Tensor, copied: LateEvent) -> None:
        assert source.is_contiguous(), "a strided source would need a kernel before the copy"
        assert source.dtype is target.dtype, "a change of dtype would need a kernel before the copy"
        assert copied.query(), "the slot's last copy is still under way"
        target.fill_(POISON)
        copied.behind = LateCopy(source, target)
        self.copies.append(copied.behind)

    def synchronize_current_stream(self) -> None:
        raise AssertionError("the floor waits for an event, never for a stream")

    def reuse_memory(self) -> None:
        """What becomes of slots whose copies are done: the next call writes to them, on both sides."""
        for copy in self.copies:
            if copy.waits:
                copy.target.fill_(POISON)
                if (
                    copy.source.dtype is torch.int32
                ):  # int64 counts of a rank alone are not a slot's: they were given out
                    copy.source.fill_(POISON)
