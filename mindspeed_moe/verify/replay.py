"""From dumps, on any machine, to who was right: everything is computed anew from the routing maps.

With the dumps of all ranks of a group nothing but their routing maps is relied on. With some of them, the counts of the
others are those that the reference has gathered, and the answer says so. Formulas: design of preprocess, in plain
numpy; nothing of the implementations is used for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mindspeed_moe.errors import CountOverflowError, DumpError
from mindspeed_moe.verify.dump import Dump, Meta
from mindspeed_moe.verify.emulate import packed_plan
from mindspeed_moe.verify.reads import CAPACITY, COUNTS, NAMES, ROWS, SPLITS, TABLE
from mindspeed_moe.verify.values import Difference, Value, first_difference

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Finding:
    """What one rank's dump shows.

    recorded: the first difference between what was read and what the reference said. against_maps: between what was
    read and what follows from the routing maps; the two are the same unless the reference was wrong.
    reference: between what the reference said and what follows from the routing maps.
    code: between what this version's code makes of the same counts, on this machine, and what follows from the maps.
    """

    meta: Meta
    recorded: Difference | None
    against_maps: Difference | None
    reference: Difference | None
    code: Difference | None


@dataclass(frozen=True)
class Replay:
    """findings: by rank. counts_from: where the counts of the group's ranks came from, in group order."""

    findings: tuple[Finding, ...]
    counts_from: tuple[str, ...]

    @property
    def reproduced(self) -> bool:
        """Whether any dump holds a difference, as recorded or against the maps."""
        return any(one.recorded or one.against_maps for one in self.findings)


def replay(dumps: Sequence[Dump]) -> Replay:
    """Compute everything anew. Raises DumpError when the dumps are not of one call of one group."""
    _require_one_call(dumps)
    counts, origins = _counts(dumps)
    ordered = sorted(dumps, key=lambda one: one.meta.rank)
    return Replay(tuple(_finding(one, counts) for one in ordered), origins)


def _require_one_call(dumps: Sequence[Dump]) -> None:
    if not dumps:
        raise DumpError("no dumps")
    first = dumps[0].meta
    for one in dumps[1:]:
        for key in ("run", "group", "num_experts", "ep_size", "tp_size", "order", "call"):
            theirs, ours = getattr(one.meta, key), getattr(first, key)
            if theirs != ours:
                ranks = f"ranks {first.rank} and {one.meta.rank}"
                raise DumpError(f"the dumps of {ranks} are not of one call: {key} {ours!r} and {theirs!r}")
    members = sorted(one.meta.rank for one in dumps)
    if len(set(members)) < len(members):
        raise DumpError(f"two dumps of one rank: {members}")


def _counts(dumps: Sequence[Dump]) -> tuple[Counts, tuple[str, ...]]:
    """Return every rank's counts [EP * TP, E], and where each rank's came from."""
    meta = dumps[0].meta
    own = {one.meta.group.index(one.meta.rank): one for one in dumps}
    gathered = next((one.every for one in dumps if one.every is not None), None)
    rows, origins = [], []
    for index, rank in enumerate(meta.group):
        if index in own:
            rows.append(own[index].routing_map.sum(axis=0, dtype=np.int64))
            origins.append(f"the routing map of rank {rank}")
        elif gathered is not None:
            rows.append(gathered[index])
            origins.append(f"what the reference gathered of rank {rank}")
        else:
            raise DumpError(f"nothing tells the counts of rank {rank}: give its dump too")
    return np.stack(rows), tuple(origins)


def _finding(dump: Dump, counts: Counts) -> Finding:
    expected = _expected(dump, counts)
    try:
        code = packed_plan(dump.meta, counts) if CAPACITY not in dump.wanted else {}
    except CountOverflowError as error:  # which the run would have met before its verification
        raise DumpError(f"the dumps of ranks {dump.meta.group[:16]} hold counts of no run: {error}") from error
    return Finding(
        meta=dump.meta,
        recorded=_first(dump.found, dump.wanted),
        against_maps=_first(dump.found, {**expected, **_labelled(dump.wanted)}),
        reference=_first({name: one for name, one in dump.wanted.items() if name in expected}, expected),
        code=_first({name: one for name, one in code.items() if name in expected}, expected),
    )


def _labelled(values: Mapping[str, Value]) -> dict[str, Value]:
    """What concerns an earlier call: only the record itself can be compared."""
    return {name: one for name, one in values.items() if name not in NAMES}


def _first(found: Mapping[str, Value], wanted: Mapping[str, Value]) -> Difference | None:
    for name, value in found.items():
        if name in wanted:
            difference = first_difference(name, value, _like(wanted[name], value))
            if difference is not None:
                return difference
    return None


def _like(wanted: Value, found: Value) -> Value:
    """Releases leave the chunk table in different shapes; its numbers count here, in their order."""
    if isinstance(wanted, np.ndarray) and isinstance(found, np.ndarray) and wanted.size == found.size:
        return wanted.reshape(found.shape)
    return wanted


def _expected(dump: Dump, counts: Counts) -> dict[str, Value]:
    """Return what follows from the counts [EP * TP, E], for the names that the reference has set."""
    meta, local = dump.meta, dump.meta.num_experts // dump.meta.ep_size
    if CAPACITY in dump.wanted:
        return {}  # everything follows from the capacity, nothing from the map
    every = counts.reshape(meta.ep_size, meta.tp_size, meta.num_experts)
    own = every[:, :, meta.ep_rank * local : (meta.ep_rank + 1) * local]  # [EP, TP, L]
    mine = every[meta.ep_rank, meta.tp_rank]
    alone = meta.ep_size * meta.tp_size == 1
    splits: dict[str, Value] = dict.fromkeys(SPLITS)
    if not alone:
        splits = {
            "input_splits": mine.reshape(meta.ep_size, local).sum(axis=1),
            "output_splits": own[:, meta.tp_rank].sum(axis=1),
            "output_splits_tp": own.sum(axis=(0, 2)),
        }
    every_value: dict[str, Value] = {
        ROWS: int(mine.sum()),
        **splits,
        TABLE: own.transpose(1, 0, 2).reshape(-1, local),
        COUNTS: own.sum(axis=(0, 1)),
    }
    return {name: every_value[name] for name in NAMES if name in dump.wanted and name in every_value}
