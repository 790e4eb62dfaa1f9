"""Results of the cpu as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from mindspeed_moe.bench.measure import Result
from mindspeed_moe.bench.timing import Spread

_RATIO = "times as fast as stock"


def full_table(result: Result) -> Table:
    """Return everything about one shape."""
    table = plain_table(f"{result.shape}; {_world(result)}", "us")
    for column in ("p20", "p50", "p80", _RATIO):
        table.add_column(column, justify="right")
    for name, spread in result.implementations.items():
        table.add_row(name, *cells(spread), f"{result.ratio(name):.2f}")
    for name, spread in result.packed_blocks.items():
        table.add_row(f"  packed: {name}", *cells(spread), "")
    table.add_row("reading the map once", *cells(result.read_map), "")
    return table


def summary_table(results: Sequence[Result]) -> Table:
    """Return one line a shape."""
    table = plain_table(f"{_world(results[0])}; us at the median ({_RATIO})", "shape")
    names = list(results[0].implementations)
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("reading the map once", justify="right")
    for result in results:
        cells = [f"{result.implementations[name].p50:.1f} ({result.ratio(name):.2f})" for name in names]
        table.add_row(str(result.shape), *cells, f"{result.read_map.p50:.1f}")
    return table


def cells(spread: Spread) -> tuple[str, str, str]:
    """Return the three percentiles as text."""
    return f"{spread.p20:.1f}", f"{spread.p50:.1f}", f"{spread.p80:.1f}"


def _world(result: Result) -> str:
    world = "simulated group" if result.processes == 1 else f"{result.processes} gloo processes, seen from rank 0"
    return f"{world}; {result.rounds} rounds"


def plain_table(title: str, *columns: str) -> Table:
    """Return an empty table in the bench's style."""
    return Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
