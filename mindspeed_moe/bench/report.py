"""Results as tables for a terminal, or as one JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import RenderableType

from mindspeed_moe.bench.accelerated import AcceleratorResult
from mindspeed_moe.bench.accelerator_tables import full_tables, sweep_table
from mindspeed_moe.bench.host_tables import full_table, summary_table
from mindspeed_moe.bench.layer import LayerResult
from mindspeed_moe.bench.layer_table import layer_table
from mindspeed_moe.bench.ledger import LedgerResult, ledger_table
from mindspeed_moe.bench.measure import Result


class Measured(Protocol):
    """One measured shape."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; durations in microseconds."""


@dataclass(frozen=True)
class Report:
    """Everything that one bench found.

    machine: versions, processor, threads, load. results: all of one kind. left_out: combinations of a sweep that no
    layer can have.
    """

    machine: dict[str, Any]
    results: Sequence[Measured]
    left_out: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; unit: of all durations, None where nothing is timed."""
        return {
            "machine": self.machine,
            "unit": None if any(isinstance(one, LedgerResult) for one in self.results) else "us",
            "results": [result.to_dict() for result in self.results],
            "left_out": list(self.left_out),
        }

    def parts(self) -> list[RenderableType]:
        """Return what to print, top to bottom: one shape in full, several in a line each."""
        return [self.head(), *self._tables(), *(f"left out: {one}" for one in self.left_out)]

    def head(self) -> str:
        """Return what it was measured on, in one line."""
        return ", ".join(f"{name} {_text(value)}" for name, value in self.machine.items())

    def _tables(self) -> list[RenderableType]:
        on_host = [one for one in self.results if isinstance(one, Result)]
        accelerated = [one for one in self.results if isinstance(one, AcceleratorResult)]
        layers = [one for one in self.results if isinstance(one, LayerResult)]
        tables: list[RenderableType] = []
        if on_host:
            tables.append(full_table(on_host[0]) if len(on_host) == 1 else summary_table(on_host))
        if accelerated:
            tables += full_tables(accelerated[0]) if len(accelerated) == 1 else [sweep_table(accelerated)]
        if layers:
            tables.append(layer_table(layers))
        return tables + [ledger_table(one) for one in self.results if isinstance(one, LedgerResult)]


def _text(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
