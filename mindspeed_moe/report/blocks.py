"""A block of steps of one layer as a dense table: rows of every expert, summed over groups, and what is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mindspeed_moe.report.contributions import Contribution, Group

_CELLS = 1 << 21  # of one block: bounds the memory, whatever the number of steps
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Block:
    """n steps in which anything was recorded, out of a range of the axis.

    at [n]: places on the axis. tokens, known [n, E]: rows of an expert, and whether every group has told them.
    dropped, drops_known [n]: over all ranks. padded [n].
    """

    at: Ints
    tokens: Ints
    known: Bools
    dropped: Ints
    drops_known: Bools
    padded: Bools


def blocks_of(contributions: list[Contribution], steps: int, experts: int) -> Iterator[Block]:
    """Yield the blocks of an axis of `steps`; contributions must not contradict each other."""
    # Ranks that differ in tp_rank alone report the same tokens: the first one counts.
    ordered = sorted(contributions, key=lambda one: one.layout.tp_rank)
    groups = list(dict.fromkeys(one.group for one in ordered))
    size = max(1, _CELLS // experts)
    for begin in range(0, steps, size):
        block = _block(ordered, groups, begin, min(begin + size, steps), experts)
        if len(block.at):
            yield block


def _block(contributions: list[Contribution], groups: list[Group], begin: int, end: int, experts: int) -> Block:
    length = end - begin
    tokens = np.zeros((length, experts), np.int64)
    dropped, silent_on_drops, padded = np.zeros(length, np.int64), np.zeros(length, bool), np.zeros(length, bool)
    heard = {group: np.zeros((length, group.kind.ep), bool) for group in groups}
    reports = {group: np.zeros(length, np.int64) for group in groups}
    for one in contributions:
        low, high = np.searchsorted(one.at, [begin, end])
        rows, place = one.at[low:high] - begin, one.layout.ep_rank
        fresh = ~heard[one.group][rows, place]
        mine = slice(one.layout.first, one.layout.first + one.layout.local)
        tokens[rows[fresh], mine] += one.tokens[low:high][fresh]
        heard[one.group][rows, place] = True
        reports[one.group][rows] += 1
        drops = one.dropped[low:high]
        dropped[rows] += np.maximum(drops, 0)
        silent_on_drops[rows] |= (drops < 0) | one.padded[low:high]
        padded[rows] |= one.padded[low:high]
    live = {group: reports[group] > 0 for group in groups}
    known, all_told = np.ones((length, experts), bool), ~silent_on_drops
    any_live = np.zeros(length, bool)
    for group in groups:
        any_live |= live[group]
        expected = _expected(group, live)
        told = heard[group] | ~expected[:, None]
        known &= np.repeat(told, experts // group.kind.ep, axis=1)
        all_told &= (reports[group] == len(group.ranks)) | ~expected
    at = np.flatnonzero(any_live)
    return Block(at + begin, tokens[at], known[at], dropped[at], all_told[at], padded[at])


def _expected(group: Group, live: dict[Group, Bools]) -> Bools:
    """Return in which steps a group should have reported: those in which it, or a copy of it, has."""
    expected: Bools = live[group].copy()
    for other, there in live.items():
        if other.kind == group.kind and not group.contradicts(other):
            expected |= there
    for other, there in live.items():
        if group.contradicts(other):
            expected &= ~there
    return expected
