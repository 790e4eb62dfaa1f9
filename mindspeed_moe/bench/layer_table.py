"""Whole layers as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from mindspeed_moe.bench.host_tables import plain_table
from mindspeed_moe.bench.layer import LayerResult


def layer_table(results: Sequence[LayerResult]) -> Table:
    """Return one line a shape, hidden size and pass."""
    first = results[0]
    table = plain_table(
        f"whole MoE layers on {first.device}, {first.dtype}, {first.in_a_row} in a row, simulated group, latency "
        f"{first.latency_us:g} us; {first.rounds} rounds; us a layer at the median (times as fast as stock)",
        "shape",
        "hidden",
        "pass",
    )
    names = list(next(iter(first.times.values())))
    for name in names:
        table.add_column(name, justify="right")
    for result in results:
        for passes, times in result.times.items():
            cells = [f"{times[name].elapsed.p50:.0f} ({result.ratio(name, passes):.3f})" for name in names]
            table.add_row(str(result.shape), str(result.hidden), passes, *cells)
    return table
