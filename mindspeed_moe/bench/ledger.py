"""What one call asks of a simulated device, counted by the simulation. No times: a simulation says nothing about them.

The simulation is a test tool, which the package does not import: its recorder comes in by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from rich.table import Table

from mindspeed_moe.bench.accelerated import agreed_calls
from mindspeed_moe.bench.contestants import Team
from mindspeed_moe.bench.devices import Clockwork
from mindspeed_moe.bench.host_tables import plain_table
from mindspeed_moe.bench.shapes import Shape
from mindspeed_moe.errors import BenchError

Row = tuple[str, int, int | None]  # what, how often, and bytes where that has any

_WARM_UP = 2  # the first calls make communicators, slots, and fill the allocators' caches
_KERNEL = "kernel "
KERNELS = "kernels"


class Counts(Protocol):
    """What a recorder yields; complete when its context has ended."""

    def rows(self) -> Sequence[Row]:
        """Return everything that is not zero."""


Record = Callable[[], AbstractContextManager[Counts]]


@dataclass(frozen=True)
class LedgerResult:
    """One shape. ledger: implementation -> rows of one call, after the first ones."""

    shape: Shape
    seed: int
    ledger: Mapping[str, Sequence[Row]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "shape": asdict(self.shape),
            "device": "simulated npu",
            "simulated": True,
            "seed": self.seed,
            "ledger": {
                name: [{"what": what, "count": count, "bytes": size} for what, count, size in rows]
                for name, rows in self.ledger.items()
            },
        }


def recorder(name: str) -> Record:
    """Return the recorder named `module:function`; BenchError when there is none."""
    module, _, function = name.partition(":")
    try:
        found: Record = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise BenchError(f"--ledger {name}: {error}") from error
    return found


def count_calls(team: Team, clockwork: Clockwork, record: Record, shape: Shape, seed: int) -> LedgerResult:
    """Record one call of every implementation; BenchError when they disagree."""
    ledger = {}
    with agreed_calls(team, shape, seed) as (calls, _):
        for name, call in calls.items():
            for _ in range(_WARM_UP):
                call()
            clockwork.synchronize()
            with record() as counts:
                call()
            clockwork.synchronize()
            ledger[name] = with_kernels_added_up(counts.rows())
    return LedgerResult(shape, seed, ledger)


def with_kernels_added_up(rows: Sequence[Row]) -> list[Row]:
    """Return the rows, with the number of all kernels in front of the single kernels' rows."""
    total = sum(count for what, count, _ in rows if what.startswith(_KERNEL))
    return [*([(KERNELS, total, None)] if total else []), *rows]


def ledger_table(result: LedgerResult) -> Table:
    """Return one line a thing that is counted, one column an implementation: how often, and bytes in brackets."""
    table = plain_table(f"{result.shape}\nsimulated npu: what one call asks for; no times", "number (bytes)")
    by_name = {name: {what: (count, size) for what, count, size in rows} for name, rows in result.ledger.items()}
    for name in by_name:
        table.add_column(name, justify="right")
    for what in dict.fromkeys(what for rows in result.ledger.values() for what, _, _ in rows):
        table.add_row(
            f"  {what}" if what.startswith(_KERNEL) else what, *(_cell(by_name[one], what) for one in by_name)
        )
    return table


def _cell(rows: Mapping[str, tuple[int, int | None]], what: str) -> str:
    count, size = rows.get(what, (0, None))
    return str(count) if size is None else f"{count} ({size})"
