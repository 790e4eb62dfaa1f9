"""A telemetry folder's newest run as tables: one for each rank, layer and layout, with every step once."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mindspeed_moe.errors import ReportError
from mindspeed_moe.report.records import (
    Header,
    Layout,
    MalformedLineError,
    parse_header,
    parse_layout,
    parse_line,
    parse_load,
)
from mindspeed_moe.report.runs import Run, runs_of
from mindspeed_moe.report.segments import Damage, Segment, lines_of, segments_of
from mindspeed_moe.telemetry_files import FORMAT

_HEAD = 3  # numbers of a row before the tokens: step, padded, dropped
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """The load records of one rank and layer under one layout, by rising step; n records, no step twice.

    started: when the newest segment of them began. steps [n]; padded [n]; dropped [n], -1 where not known;
    tokens [n, L], rows that the rank's experts received; sent [n, EP], bytes to each EP peer.
    """

    layout: Layout
    world_size: int | None
    started: str
    steps: Ints
    padded: npt.NDArray[np.bool_]
    dropped: Ints
    tokens: npt.NDArray[Any]
    sent: npt.NDArray[Any]


@dataclass(frozen=True)
class Telemetry:
    """Everything that is used of a folder: what its newest run has written. others: older runs, with a record.

    headers: the newest one of each rank. ranks: those that have a file. tables: by layer. records: used ones.
    repeated: records that a later one of the same step, layer and rank replaces. last_written: the step of a rank's
    last record, the highest of all ranks of the newest launch.
    """

    headers: dict[int, Header]
    ranks: tuple[int, ...]
    tables: dict[int, list[Table]]
    records: int
    repeated: int
    last_written: int
    damage: Damage
    others: tuple[Run, ...] = ()


class _Rows:
    """Rows of one layout while a rank is read: `width` numbers each, and the row's place among the rank's lines."""

    def __init__(self, layout: Layout, header: Header | None) -> None:
        self.layout = layout
        self.world_size = header.world_size if header else None
        self.started = header.started if header else ""
        self.numbers = array("q")
        self.places = array("q")

    @property
    def rows(self) -> Ints:
        """All rows [n, width]; there must be one."""
        return np.frombuffer(self.numbers, np.int64).reshape(len(self.places), -1)


def read_folder(folder: Path, watch: Callable[[list[int]], Iterable[int]] = iter) -> Telemetry:
    """Read every segment of a folder; damaged lines are skipped and counted.

    watch: wraps the ranks, to show how far it has come. Raises ReportError when there is no load record.
    """
    ranks = segments_of(folder)
    runs, run_of = runs_of(ranks)
    damage = Damage()
    headers: dict[int, Header] = {}
    tables: dict[int, list[Table]] = {}
    read = records = 0
    last_steps: dict[int, int] = {}
    for rank in watch(list(ranks)):
        for segment in ranks[rank]:
            if run_of[segment] is not runs[-1]:
                _count(segment, run_of[segment], damage)
        rows, header = _read_rank([one for one in ranks[rank] if run_of[one] is runs[-1]], damage)
        if header is not None:
            headers[rank] = header
        written = [one for of_layer in rows.values() for one in of_layer if one.places]
        if written:
            last_steps[rank] = int(max(written, key=lambda one: one.places[-1]).rows[-1, 0])
        for layer, of_layer in rows.items():
            read += sum(len(one.places) for one in of_layer)
            found = _tables(of_layer)
            records += sum(len(table.steps) for table in found)
            tables.setdefault(layer, []).extend(found)
    if not records:
        lines = damage.malformed + damage.truncated
        told = f"; {lines} lines were skipped, the first: {damage.first}" if damage.first else ""
        raise ReportError(f"{folder}: {sum(map(len, ranks.values()))} files without one usable load record{told}")
    newest = max(headers.values(), key=lambda one: one.started, default=None)
    last_written = max(step for rank, step in last_steps.items() if newest is None or rank < newest.world_size)
    shown = tuple(rank for rank in ranks if rank in runs[-1].ranks)
    others = tuple(run for run in runs[:-1] if run.records)
    return Telemetry(headers, shown, tables, records, read - records, last_written, damage, others)


def _count(segment: Segment, run: Run, damage: Damage) -> None:
    """Add to a run what a segment holds of it."""
    rows, _ = _read_rank([segment], damage)
    for block in (part.rows[:, 0] for of_layer in rows.values() for part in of_layer if part.places):
        run.records += len(block)
        run.first, run.last = min(run.first, int(block.min())), max(run.last, int(block.max()))


def _read_rank(segments: list[Segment], damage: Damage) -> tuple[dict[int, list[_Rows]], Header | None]:
    """Return a rank's rows by layer, and its newest header."""
    rows: dict[int, list[_Rows]] = {}
    newest: Header | None = None
    place = 0
    for segment in segments:
        declared: dict[int, _Rows] = {}
        foreign = False  # a segment of another format: nothing in it is believed
        for number, line, ended in lines_of(segment, damage):
            place += 1
            try:
                if foreign:
                    raise MalformedLineError("stands in a segment of another format")
                record = parse_line(line)
                kind = record["kind"]
                if kind == "load":
                    layer = record.get("layer")
                    into = declared.get(layer) if type(layer) is int else None
                    if into is None:
                        raise MalformedLineError("load: no usable line of its layer stands before it in the segment")
                    into.numbers.fromlist(parse_load(record, into.layout))
                    into.places.append(place)
                elif kind == "layer":
                    layout = parse_layout(record, segment.rank)
                    declared[layout.layer] = _Rows(layout, newest)
                    rows.setdefault(layout.layer, []).append(declared[layout.layer])
                else:
                    foreign = "format" in record and record["format"] != FORMAT
                    newest = parse_header(record, segment.rank)
            except MalformedLineError as error:
                if ended:
                    damage.add_malformed(segment, number, str(error))
                else:
                    damage.truncated += 1
    return rows, newest


def _tables(parts: list[_Rows]) -> list[Table]:
    """Return one layer's rows of one rank as tables; of records of one step the one that was written last counts."""
    parts = [part for part in parts if part.places]
    if not parts:
        return []
    blocks = [part.rows for part in parts]
    steps = np.concatenate([block[:, 0] for block in blocks])
    kept = np.zeros(len(steps), bool)
    kept[len(steps) - 1 - np.unique(steps[::-1], return_index=True)[1]] = True
    merged: dict[tuple[Layout, int | None], list[Ints]] = {}
    started: dict[tuple[Layout, int | None], str] = {}
    begin = 0
    for part, block in zip(parts, blocks, strict=True):
        rows = block[kept[begin : begin + len(block)]]
        begin += len(block)
        if len(rows):
            key = part.layout, part.world_size
            merged.setdefault(key, []).append(rows)
            started[key] = max(started.get(key, ""), part.started)
    return [_table(*key, started[key], np.concatenate(rows)) for key, rows in merged.items()]


def _table(layout: Layout, world_size: int | None, started: str, rows: Ints) -> Table:
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    middle = _HEAD + layout.local
    return Table(
        layout,
        world_size,
        started,
        steps=rows[:, 0].copy(),
        padded=rows[:, 1].astype(bool),
        dropped=rows[:, 2].copy(),
        tokens=_small(rows[:, _HEAD:middle]),
        sent=_small(rows[:, middle:]),
    )


def _small(values: Ints) -> npt.NDArray[Any]:
    """Return a copy in the smallest type that holds the values: a million records are kept."""
    most = int(values.max(initial=0))
    small = next((kind for kind in (np.uint16, np.uint32) if most <= np.iinfo(kind).max), np.int64)
    return values.astype(small)
