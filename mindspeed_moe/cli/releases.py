"""`mindspeed-moe doctor --releases`: what runs with which release on which device, and what speaks for it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from mindspeed_moe.config import Config
from mindspeed_moe.contract.generations import GENERATIONS, Generation
from mindspeed_moe.dispatch_table import DEVICES, DISPATCHERS, STOCK, Decision, lookup, rows_of
from mindspeed_moe.evidence import LEDGER_OF, Evidence, Ledger, Suite, read_evidence
from mindspeed_moe.tables import plain_table

_NUMBERS = {
    "kernels": "kernels",
    "collectives": "collectives",
    "copies": "copies",
    "records": "event records",
    "event_waits": "event waits",
    "stream_synchronizations": "stream syncs",
}
SIMULATED = "npu (simulated)"


@dataclass(frozen=True)
class Cell:
    """One device, dispatcher and generation: what `auto` takes, why, and what has been run and counted of it.

    unproved: releases that the evidence names and for which no run without failures is recorded.
    """

    generation: Generation
    decision: Decision
    suites: tuple[tuple[str, Suite], ...] = ()
    ledgers: tuple[tuple[str, Ledger], ...] = ()
    unproved: tuple[str, ...] = ()

    @property
    def releases(self) -> str:
        """The releases, as people write them."""
        return ", ".join(f"{major}.{minor}" for major, minor in self.generation.releases)

    @property
    def implementations(self) -> tuple[str, ...]:
        """What can be had, in order of preference."""
        of_cell = (self.decision.device, self.decision.dispatcher, self.generation.name)
        return (*(row.implementation for row in rows_of(*of_cell)), STOCK)

    @property
    def evidence(self) -> str:
        """How the implementation is known to be right."""
        row = self.decision.row
        missing = f"; no run without failures recorded with {', '.join(self.unproved)}" if self.unproved else ""
        return f"{row.evidence}{missing}" if row else "Megatron's own"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "device": self.decision.device,
            "simulated": self.decision.device == "npu",
            "dispatcher": self.decision.dispatcher,
            "generation": self.generation.name,
            "releases": [f"{major}.{minor}" for major, minor in self.generation.releases],
            "implementation": self.decision.implementation,
            "implementations": list(self.implementations),
            "reason": self.decision.reason,
            "rejected": dict(self.decision.rejected),
            "evidence": self.evidence,
            "unproved": list(self.unproved),
            "suites": [{"release": release, **suite.model_dump()} for release, suite in self.suites],
            "ledgers": [{"release": release, **ledger.model_dump()} for release, ledger in self.ledgers],
        }


@dataclass(frozen=True)
class ReleasesReport:
    """The matrix and the record of what has run."""

    cells: tuple[Cell, ...]
    evidence: Evidence

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        runs = self.evidence.model_dump(mode="json", exclude={"releases": {"__all__": {"suites", "ledgers"}}})
        return {
            "cells": [cell.to_dict() for cell in self.cells],
            "ledger_of": LEDGER_OF,
            "runs": runs["releases"],
        }

    def parts(self) -> list[RenderableType]:
        """Return what a terminal shows: decisions, runs, ledgers."""
        return [*(self._matrix(dispatcher) for dispatcher in DISPATCHERS), self._runs(), self._ledgers()]

    def _matrix(self, dispatcher: str) -> RenderableType:
        title = f"{dispatcher}: what runs where; `auto` takes the first"
        table = plain_table(title, "megatron-core", "device", "implementations", "why the first", "evidence")
        for cell in (one for one in self.cells if one.decision.dispatcher == dispatcher):
            device, why = _device(cell.decision.device), cell.decision.reason
            table.add_row(cell.releases, device, ", ".join(cell.implementations), why, cell.evidence)
        return table

    def _runs(self) -> RenderableType:
        table = plain_table(
            "What the suite has run, by release of megatron-core",
            *("release", "device", "dispatcher", "implementation", "passed", "failed", "skipped"),
            *("date", "stack", "torch, torch-npu"),
        )
        _keep_whole(table, 8)
        for release, run in self.evidence.releases.items():
            for suite in run.suites:
                versions = run.torch + (f", {run.torch_npu}" if suite.device == "npu" else "")
                counts = (str(count) for count in (suite.passed, suite.failed, suite.skipped))
                where = (_device(suite.device), suite.dispatcher, suite.implementation)
                table.add_row(release, *where, *counts, run.date, run.stack, versions)
        return table

    def _ledgers(self) -> RenderableType:
        table = plain_table(
            f"Ledger of {LEDGER_OF}", "dispatcher", "implementation", "counts on", *_NUMBERS.values(), "releases"
        )
        _keep_whole(table, 5)
        # Releases that cost the same share a line.
        same: dict[Ledger, list[str]] = defaultdict(list)
        for release, run in self.evidence.releases.items():
            for ledger in run.ledgers:
                same[ledger].append(release)
        for ledger in sorted(same, key=_order):
            numbers = (str(getattr(ledger, name)) for name in _NUMBERS)
            named = (ledger.dispatcher, ledger.implementation, ledger.tokens_per_expert)
            table.add_row(*named, *numbers, ", ".join(same[ledger]))
        return table


def report_releases() -> ReleasesReport:
    """Look up every cell; needs neither Megatron nor torch_npu. Raises EvidenceError for an unusable record."""
    evidence, config = read_evidence(), Config()
    cells = []
    for dispatcher in DISPATCHERS:
        for generation in GENERATIONS:
            for device in DEVICES:
                decision = lookup(device, dispatcher, generation.name, config)
                row = decision.row
                cells.append(
                    Cell(
                        generation,
                        decision,
                        tuple(evidence.suites_of(row)) if row else (),
                        tuple(evidence.ledgers_of(row)) if row else (),
                        evidence.unproved(row) if row else (),
                    )
                )
    return ReleasesReport(tuple(cells), evidence)


def _keep_whole(table: Table, columns: int) -> None:
    for column in table.columns[:columns]:
        column.no_wrap = True


def _order(ledger: Ledger) -> tuple[int, int]:
    return DISPATCHERS.index(ledger.dispatcher), ("stock", "reference", "packed").index(ledger.implementation)


def _device(device: str) -> str:
    return SIMULATED if device == "npu" else device
