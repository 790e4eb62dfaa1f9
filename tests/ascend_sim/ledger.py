"""Exact counts of what the simulated device was asked to do, for tests; the code under test is not changed.

    with ledger.record() as counts:
        step()
    assert counts.kernels["aclnnMatmul"] == 2

Counts are those of this process. An asynchronous task counts when torch_npu hands it to the runtime.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from tests.ascend_sim import library


@dataclass(frozen=True)
class Copies:
    """Copies of one sort. `pinned` is the host's side: with pageable memory an asynchronous call waits."""

    direction: str
    asynchronous: bool
    pinned: bool
    count: int
    bytes: int


@dataclass(frozen=True)
class Memsets:
    """Fills of device memory."""

    asynchronous: bool
    count: int
    bytes: int


@dataclass(frozen=True)
class Collectives:
    """Calls of one HCCL operation on one communicator; `bytes` as the calling rank gave them."""

    communicator: str
    operation: str
    count: int
    bytes: int


@dataclass(frozen=True)
class Allocations:
    """Allocations by the runtime (not those that torch's caching allocator serves from what it has)."""

    owner: str
    count: int
    bytes: int


@dataclass
class Counts:
    """What was counted since the mark; every number is a count unless its name says bytes."""

    kernels: dict[str, int] = field(default_factory=dict)
    copies: list[Copies] = field(default_factory=list)
    memsets: list[Memsets] = field(default_factory=list)
    collectives: list[Collectives] = field(default_factory=list)
    device_allocations: list[Allocations] = field(default_factory=list)
    host_allocations: int = 0
    host_allocation_bytes: int = 0
    device_frees: int = 0
    host_frees: int = 0
    event_records: int = 0
    event_waits: int = 0
    event_synchronizations: int = 0
    event_queries: int = 0
    stream_synchronizations: int = 0
    stream_queries: int = 0
    device_synchronizations: int = 0
    streams_created: int = 0
    events_created: int = 0
    callbacks: int = 0
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def kernel_count(self) -> int:
        """Kernels of all operators."""
        return sum(self.kernels.values())

    @property
    def collective_count(self) -> int:
        """Collectives on all communicators."""
        return sum(entry.count for entry in self.collectives)

    @property
    def communicators(self) -> dict[str, int]:
        """Communicators that took their buffers since the mark, with their bytes of device memory."""
        prefix = "communicator "
        return {
            entry.owner.removeprefix(prefix): entry.bytes
            for entry in self.device_allocations
            if entry.owner.startswith(prefix)
        }

    def copy_count(
        self, direction: str | None = None, *, asynchronous: bool | None = None, pinned: bool | None = None
    ) -> int:
        """Copies that fit: "host_to_device", "device_to_host" or "device_to_device"; None fits all."""
        return sum(entry.count for entry in self._copies(direction, asynchronous, pinned))

    def copy_bytes(
        self, direction: str | None = None, *, asynchronous: bool | None = None, pinned: bool | None = None
    ) -> int:
        """Bytes of the copies that fit, chosen as for `copy_count`."""
        return sum(entry.bytes for entry in self._copies(direction, asynchronous, pinned))

    def _copies(self, direction: str | None, asynchronous: bool | None, pinned: bool | None) -> list[Copies]:
        return [
            entry
            for entry in self.copies
            if direction in (None, entry.direction)
            and asynchronous in (None, entry.asynchronous)
            and pinned in (None, entry.pinned)
        ]

    def rows(self) -> list[tuple[str, int, int | None]]:
        """(what, count, bytes or None) for everything that is not zero."""
        rows: list[tuple[str, int, int | None]] = [(f"kernel {name}", n, None) for name, n in self.kernels.items()]
        for copy in self.copies:
            call = "asynchronous" if copy.asynchronous else "synchronous"
            memory = "" if copy.direction == "device_to_device" else ", pinned" if copy.pinned else ", pageable"
            rows.append((f"copy {copy.direction.replace('_', ' ')}, {call}{memory}", copy.count, copy.bytes))
        for fill in self.memsets:
            rows.append((f"memset, {'asynchronous' if fill.asynchronous else 'synchronous'}", fill.count, fill.bytes))
        for entry in self.collectives:
            rows.append((f"{entry.operation} on {entry.communicator}", entry.count, entry.bytes))
        for taken in self.device_allocations:
            rows.append((f"device allocation, {taken.owner}", taken.count, taken.bytes))
        if self.host_allocations:
            rows.append(("pinned host allocation", self.host_allocations, self.host_allocation_bytes))
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int) and value and not item.name.startswith("host_allocation"):
                rows.append((item.name.replace("_", " "), value, None))
        return rows + [(f"note {name}", n, None) for name, n in self.notes.items()]

    def table(self) -> str:
        """A table for people, headed by the word "simulated"."""
        lines = [f"{'simulated Ascend device, this process':<64}{'count':>10}{'bytes':>16}"]
        for what, count, size in self.rows():
            lines.append(f"{what:<64}{count:>10}{'' if size is None else size:>16}")
        return "\n".join(lines)


def _parse(document: str) -> Counts:
    raw: dict[str, Any] = json.loads(document)
    del raw["simulated"]
    host = raw.pop("host_allocations")
    raw["copies"] = [Copies(**entry) for entry in raw["copies"]]
    raw["memsets"] = [Memsets(**entry) for entry in raw["memsets"]]
    raw["collectives"] = [Collectives(**entry) for entry in raw["collectives"]]
    raw["device_allocations"] = [Allocations(**entry) for entry in raw["device_allocations"]]
    return Counts(host_allocations=host["count"], host_allocation_bytes=host["bytes"], **raw)


def _hand_over() -> None:
    """Waits until torch_npu has handed to the runtime what Python asked for.

    torch_npu launches from a thread of its own, so a call that has returned may not have been counted yet.
    Asking a stream for its handle empties that thread's queue, for the current device, and calls nothing in
    the runtime.
    """
    torch: Any = importlib.import_module("torch")
    if torch.npu.is_initialized():
        _ = torch.npu.current_stream().npu_stream


def mark() -> None:
    """Begins counting anew; what Python has asked for so far belongs to before."""
    _hand_over()
    library.running().ascend_sim_mark()


def read() -> Counts:
    """The counts since the last mark (or since the process began)."""
    _hand_over()
    return _parse(library.text(library.running(), "ascend_sim_ledger"))


@contextmanager
def record(timeline: str | os.PathLike[str] | None = None) -> Iterator[Counts]:
    """Counts what happens within the block; the counts are filled in when it ends.

    `timeline`: a file for the Chrome trace of the block. Blocks do not nest: each begins with a mark.
    """
    counts = Counts()
    mark()
    yield counts
    counts.__dict__.update(read().__dict__)
    if timeline is not None:
        write_timeline(timeline, since_mark=True)


def write_timeline(path: str | os.PathLike[str], *, since_mark: bool = False) -> None:
    """Writes what ran, by stream, as a Chrome trace (for chrome://tracing or Perfetto).

    A task is in it once it has run: synchronise first for all that was asked for.
    """
    if error := library.text(
        library.running(), "ascend_sim_write_timeline", os.fsencode(os.path.abspath(path)), int(since_mark)
    ):
        raise OSError(error)
