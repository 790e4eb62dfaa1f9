"""What each rank contributes to one layer on the axis, after records of older runs that contradict newer ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mindspeed_moe.report.reader import Table
from mindspeed_moe.report.records import Layout

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Kind(NamedTuple):
    """How a run cuts a layer: its groups are data-parallel copies of each other."""

    experts: int
    ep: int
    tp: int
    world_size: int | None


class Group(NamedTuple):
    """One TPxEP group: its ranks, EP-major, and what it is a copy of."""

    ranks: tuple[int, ...]
    kind: Kind

    def contradicts(self, other: Group) -> bool:
        """Whether both cannot be of one run: another way to cut the layer, or a rank in two groups."""
        return self.kind != other.kind or (self != other and not set(self.ranks).isdisjoint(other.ranks))


@dataclass(frozen=True)
class Contribution:
    """One rank's records of a layer. at [n]: their places on the axis, rising; the others as in Table."""

    layout: Layout
    group: Group
    started: str
    at: Ints
    padded: Bools
    dropped: Ints
    tokens: npt.NDArray[Any]
    sent: npt.NDArray[Any]

    def only(self, rows: Bools) -> Contribution:
        """Return some of the records [n]."""
        return replace(
            self,
            at=self.at[rows],
            padded=self.padded[rows],
            dropped=self.dropped[rows],
            tokens=self.tokens[rows],
            sent=self.sent[rows],
        )


def contributions_of(tables: list[Table], steps: Ints) -> list[Contribution]:
    """Return what the tables of one layer have on the axis' steps [S]."""
    told = [table for table in tables if table.world_size is not None]
    usual = max(told, key=lambda table: table.started).world_size if told else None
    found = []
    for table in tables:
        layout = table.layout
        at = np.minimum(np.searchsorted(steps, table.steps), len(steps) - 1)
        there = steps[at] == table.steps
        # A damaged header must not make a rank a stranger to its own group.
        kind = Kind(layout.experts, layout.ep, layout.tp, table.world_size or usual)
        group = Group(layout.group, kind)
        every = Contribution(layout, group, table.started, at, table.padded, table.dropped, table.tokens, table.sent)
        if there.any():
            found.append(every if there.all() else every.only(there))
    return found


def newest_of(contributions: list[Contribution]) -> Contribution:
    """Return the one whose run began last; among those of one run, the one that went on for longest."""
    return max(contributions, key=lambda one: (one.started, int(one.at[-1])))


def without_contradicted(contributions: list[Contribution], steps: int) -> list[Contribution]:
    """Return the contributions less the records of a step for which a newer group says otherwise.

    Several runs may have left files in one folder. steps: length of the axis, S.
    """
    began: dict[Group, str] = {}
    for one in contributions:
        began[one.group] = max(began.get(one.group, ""), one.started)
    if not any(a.contradicts(b) for a in began for b in began):
        return contributions
    kept: list[Contribution] = []
    newer: dict[Group, Bools] = {}  # -> whether it has a record, for each step
    for group in sorted(began, key=lambda group: began[group], reverse=True):
        against = np.zeros(steps, bool)
        for other, there in newer.items():
            if group.contradicts(other):
                against |= there
        newer[group] = np.zeros(steps, bool)
        for one in contributions:
            if one.group == group:
                left = one.only(~against[one.at])
                newer[group][left.at] = True
                kept += [left] if len(left.at) else []
    return kept
