"""The columns of every chart over time: recorded steps in order, binned when there are many, with gaps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
GAP = -1


@dataclass(frozen=True)
class Axis:
    """Steps [S], rising, and the columns [C] that they fall into.

    of_step [S]: each step's column. first, last [C]: the steps of a column, GAP where nothing was recorded between
    two runs of steps. per_column: steps that a full column holds.
    """

    steps: Ints
    of_step: Ints
    first: Ints
    last: Ints
    per_column: int

    @property
    def columns(self) -> int:
        """Number of columns, C."""
        return len(self.first)

    @property
    def gaps(self) -> list[tuple[int, int]]:
        """The last step before each gap, and the first one behind it."""
        return [(int(self.last[at - 1]), int(self.first[at + 1])) for at in np.flatnonzero(self.first == GAP)]


def make_axis(steps: Iterable[npt.NDArray[Any]], most_columns: int, last: int | None = None) -> Axis:
    """Return the axis of all recorded steps, or of the `last` newest ones.

    A gap is a distance of more than one and a half of the usual one; it is given one empty column, and no bin lies
    across it. With so many gaps that no columns would be left, they are not shown.
    """
    every = np.unique(np.concatenate(list(steps)))
    if last is not None:
        every = every[-last:]
    distances = np.diff(every)
    usual = np.median(distances) if len(distances) else 1.0
    breaks = np.flatnonzero(distances > 1.5 * usual) + 1
    if 4 * len(breaks) > most_columns:
        breaks = breaks[:0]
    runs = np.split(every, breaks)
    room = most_columns - len(breaks)
    per_column = 1
    while sum(-(-len(run) // per_column) for run in runs) > room:
        per_column += 1
    of_step, first, final = [], [], []
    for number, run in enumerate(runs):
        if number:
            first.append(GAP)
            final.append(GAP)
        of_step.append(len(first) + np.arange(len(run)) // per_column)
        begins = range(0, len(run), per_column)
        first += [int(run[at]) for at in begins]
        final += [int(run[min(at + per_column, len(run)) - 1]) for at in begins]
    return Axis(every, np.concatenate(of_step), np.array(first, np.int64), np.array(final, np.int64), per_column)
