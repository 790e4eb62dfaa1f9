"""Results of an accelerator as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table

from mindspeed_moe.bench.accelerated import BUSY, IDLE, AcceleratorResult
from mindspeed_moe.bench.host_tables import cells, plain_table
from mindspeed_moe.bench.timing import Spread

_RATIO = "stock's host time / this"
_PARTS = {"host": "host until free to launch", "wait": "host waiting", "elapsed": "until the splits are there"}


def full_tables(result: AcceleratorResult) -> list[RenderableType]:
    """Return everything about one shape."""
    return [_times(result), _on_device(result)]


def sweep_table(results: Sequence[AcceleratorResult]) -> Table:
    """Return one line a shape: host time with its ratio, and what the device does."""
    table = plain_table(
        f"{_world(results[0])}\nmedians in us: host time on an idle device ({_RATIO}) | until the splits are there "
        "| device time after queued work",
        "shape",
    )
    names = list(results[0].on_device)
    for name in names:
        table.add_column(name, justify="right")
    for result in results:
        table.add_row(str(result.shape), *(_cell(result, name) for name in names))
    return table


def _cell(result: AcceleratorResult, name: str) -> str:
    times = result.times[IDLE][name]
    span = _median(result.on_device[name].span)
    return f"{times.host.p50:.1f} ({result.ratio(name):.2f}) | {times.elapsed.p50:.1f} | {span}"


def _times(result: AcceleratorResult) -> Table:
    table = plain_table(f"{result.shape}; {_world(result)}", "us", "device before")
    for column in ("what", "p20", "p50", "p80", _RATIO):
        table.add_column(column, justify="left" if column == "what" else "right")
    for condition in (IDLE, BUSY):
        for name, times in result.times[condition].items():
            for part, told in _PARTS.items():
                ratio = f"{result.ratio(name, condition):.2f}" if part == "host" else ""
                table.add_row(name, condition, told, *cells(getattr(times, part)), ratio)
    return table


def _on_device(result: AcceleratorResult) -> Table:
    table = plain_table(
        "On the device, a call: time from the end of queued work until what the host waits for (by events); and as a "
        "profiler sees it",
        "",
    )
    for column in ("p20", "p50", "p80", "calls", "kernels", "copies", "their time, us"):
        table.add_column(column, justify="right")
    for name, one in result.on_device.items():
        span = cells(one.span) if one.span else ("-", "-", "-")
        seen = one.launches
        by_profiler = (
            (f"{seen.kernels:g}", f"{seen.copies:g}", f"{seen.device_us:.1f}") if seen else ("not measured",) * 3
        )
        table.add_row(name, *span, f"{one.in_time} of {one.rounds}", *by_profiler)
    return table


def _median(spread: Spread | None) -> str:
    return f"{spread.p50:.1f}" if spread else "-"


def _world(result: AcceleratorResult) -> str:
    return (
        f"{result.device}, simulated group on a real group of one rank, latency {result.latency_us:g} us; "
        f"busy: {result.busy_us:g} us of products; {result.rounds} rounds"
    )
