"""Results as tables for a terminal, or as one JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from mindspeed_moe.bench.measure import Result
from mindspeed_moe.bench.timing import Spread

_RATIO = "times as fast as stock"


@dataclass(frozen=True)
class Report:
    """Everything that one bench found.

    machine: versions, processor, threads, load. left_out: combinations of a sweep that no layer can have.
    """

    machine: dict[str, Any]
    results: Sequence[Result]
    left_out: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; durations in microseconds."""
        return {
            "machine": self.machine,
            "unit": "us",
            "results": [result.to_dict() for result in self.results],
            "left_out": list(self.left_out),
        }

    def parts(self) -> list[RenderableType]:
        """Return what to print, top to bottom: one shape in full, several in a line each."""
        head = ", ".join(f"{name} {_text(value)}" for name, value in self.machine.items())
        table = _full_table(self.results[0]) if len(self.results) == 1 else _summary_table(self.results)
        return [head, table, *(f"left out: {one}" for one in self.left_out)]


def _full_table(result: Result) -> Table:
    table = _table(f"{result.shape}; {_world(result)}")
    table.add_column("us")
    for column in ("p20", "p50", "p80", _RATIO):
        table.add_column(column, justify="right")
    for name, spread in result.implementations.items():
        table.add_row(name, *_cells(spread), f"{result.ratio(name):.2f}")
    for name, spread in result.packed_blocks.items():
        table.add_row(f"  packed: {name}", *_cells(spread), "")
    table.add_row("reading the map once", *_cells(result.read_map), "")
    return table


def _summary_table(results: Sequence[Result]) -> Table:
    table = _table(f"{_world(results[0])}; us at the median ({_RATIO})")
    table.add_column("shape")
    names = list(results[0].implementations)
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("reading the map once", justify="right")
    for result in results:
        cells = [f"{result.implementations[name].p50:.1f} ({result.ratio(name):.2f})" for name in names]
        table.add_row(str(result.shape), *cells, f"{result.read_map.p50:.1f}")
    return table


def _world(result: Result) -> str:
    world = "simulated group" if result.processes == 1 else f"{result.processes} gloo processes, seen from rank 0"
    return f"{world}; {result.rounds} rounds"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)


def _cells(spread: Spread) -> tuple[str, str, str]:
    return f"{spread.p20:.1f}", f"{spread.p50:.1f}", f"{spread.p80:.1f}"


def _text(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
