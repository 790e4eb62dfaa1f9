"""How a routing map [T, E] bool is reduced to tokens per expert [E] int32. All ways give the same integers."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray

# Below this work, in entries of a map, torch's one reduction is faster than two over lanes; for torch the start of
# a row is as much work as this many entries.
_BYTE_LANES_PAY = 65536
_START_OF_ROW = 20

_ROWS = 128  # long rows that are added up in byte lanes; up to 255 fit without a carry into the neighbour

_BYTE, _LANES, _COUNT = np.dtype(np.uint8), np.dtype(np.uint64), np.dtype(np.int32)


def count_by_sum(routing_map: torch.Tensor, out: torch.Tensor) -> None:
    """Write the column sums of `routing_map` [T, E] bool into `out` [E] int32, with one reduction on its device."""
    torch.sum(routing_map, dim=0, dtype=torch.int32, out=out)


def count_by_byte_lanes(routing_map: torch.Tensor, out: torch.Tensor) -> None:
    """Write the column sums of `routing_map` [T, E] bool on the host into `out` [E] int32.

    A bool is a byte that is 0 or 1, so one addition of 64-bit words counts for eight experts, exact for up to
    255 rows. The map is read as fewer long rows of k tokens each; their sum is [k, E] bytes, added up in turn.
    """
    tokens, experts = routing_map.shape
    if tokens * (experts + _START_OF_ROW) <= _BYTE_LANES_PAY:
        count_by_sum(routing_map, out)
    else:
        _add_byte_lanes(routing_map.numpy().view(_BYTE), out.numpy())


def _add_byte_lanes(ones: NDArray[np.uint8], out: NDArray[np.int32]) -> None:
    tokens, experts = ones.shape
    k, rows = _fold(tokens, experts)
    ones = np.ascontiguousarray(ones)
    lanes = ones[: rows * k].reshape(rows, k * experts).view(_LANES)
    partial = np.add.reduce(lanes, axis=0).view(_BYTE)
    np.add.reduce(partial.reshape(k, experts), axis=0, dtype=_COUNT, out=out)
    if rows * k < tokens:
        out += np.add.reduce(ones[rows * k :], axis=0, dtype=_COUNT)


@functools.lru_cache(maxsize=256)
def _fold(tokens: int, experts: int) -> tuple[int, int]:
    """Return k, the tokens in one long row, and how many long rows that makes; the rest of the tokens is left over."""
    per_word = 8 // math.gcd(experts, 8)  # tokens after which rows start at a word again
    k = -(-tokens // _ROWS)
    k = -(-k // per_word) * per_word
    return k, tokens // k


COUNTS = {"sum": count_by_sum, "byte_lanes": count_by_byte_lanes}
