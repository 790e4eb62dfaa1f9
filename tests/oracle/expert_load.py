"""What a telemetry folder says, spelled out in plain Python loops over its lines.

Written from the definition of the format, without numpy and without a look at the code under test. For whole folders
of one run: nothing damaged, nothing missing, groups that do not change.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ExpertLoad:
    """One layer; keys of the dictionaries are steps. sent: [EP][EP] bytes over all steps."""

    tokens: dict[int, list[int]]
    imbalance: dict[int, float]
    dropped: dict[int, int | None]
    sent: list[list[int]]


def loads_of(folder: Path) -> dict[int, ExpertLoad]:
    """Return every layer's load."""
    records: dict[tuple[int, int, int], tuple[dict[str, Any], dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        layouts: dict[int, dict[str, Any]] = {}
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if record["kind"] == "layer":
                layouts[record["layer"]] = record
            elif record["kind"] == "load":
                rank = int(path.name[4:9])
                records[record["layer"], record["step"], rank] = layouts[record["layer"]], record
    return {layer: _load_of(layer, records) for layer in sorted({layer for layer, _, _ in records})}


def _load_of(layer: int, records: dict[tuple[int, int, int], tuple[dict[str, Any], dict[str, Any]]]) -> ExpertLoad:
    mine = {(step, rank): both for (one, step, rank), both in sorted(records.items()) if one == layer}
    experts, ep = (next(iter(mine.values()))[0][name] for name in ("experts", "ep"))
    tokens: dict[int, list[int]] = {}
    dropped: dict[int, int | None] = {}
    sent = [[0] * ep for _ in range(ep)]
    seen = set()
    for (step, _), (layout, record) in mine.items():
        row = tokens.setdefault(step, [0] * experts)
        reporter = step, tuple(layout["group"]), layout["ep_rank"]
        if reporter not in seen:  # ranks that differ in tp_rank alone tell the same
            seen.add(reporter)
            for at, count in enumerate(record["tokens"]):
                row[layout["ep_rank"] * (experts // ep) + at] += count
        before = dropped.setdefault(step, 0)
        unknown = before is None or record["dropped"] is None or record["padded"]
        dropped[step] = None if unknown else before + record["dropped"]
        for peer, count in enumerate(record["sent_bytes"]):
            sent[layout["ep_rank"]][peer] += count
    imbalance = {step: max(row) / (sum(row) / experts) for step, row in tokens.items()}
    return ExpertLoad(tokens, imbalance, dropped, sent)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
