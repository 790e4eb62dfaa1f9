"""How a routing map [T, E] bool is reduced to tokens per expert [E] int32. All ways give the same integers."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

_BYTE_LANES_PAY = 4096  # bytes; below, one reduction over bytes is faster than two over lanes
_LANE_LIMIT = 255  # rows that can be added in byte lanes without a carry into the neighbour


def count_by_sum(routing_map: torch.Tensor, out: torch.Tensor) -> None:
    """Write the column sums of `routing_map` [T, E] bool into `out` [E] int32, with one reduction on its device."""
    torch.sum(routing_map, dim=0, dtype=torch.int32, out=out)


def count_by_byte_lanes(routing_map: torch.Tensor, out: torch.Tensor) -> None:
    """Write the column sums of `routing_map` [T, E] bool on the host into `out` [E] int32.

    A bool is a byte that is 0 or 1, so eight experts are added at once in a 64-bit lane, exact for up to 255
    rows. The map is read as R long rows of k tokens each; their sum is [k, E] bytes, which are then added up.
    About sqrt(T) for both keeps the two loops short.
    """
    _add_byte_lanes(routing_map.numpy().view(np.uint8), out.numpy())


def _add_byte_lanes(ones: NDArray[np.uint8], out: NDArray[np.int32]) -> None:
    tokens, experts = ones.shape
    if ones.size <= _BYTE_LANES_PAY:
        np.add.reduce(ones, axis=0, dtype=np.int32, out=out)
        return
    per_word = 8 // math.gcd(experts, 8)  # tokens after which rows start at a word again
    k = max(-(-tokens // _LANE_LIMIT), math.isqrt(tokens))
    k = -(-k // per_word) * per_word
    rows = tokens // k
    ones = np.ascontiguousarray(ones)
    lanes = ones[: rows * k].reshape(rows, k * experts).view(np.uint64)
    partial = np.add.reduce(lanes, axis=0).view(np.uint8).reshape(k, experts)
    np.add.reduce(partial, axis=0, dtype=np.int32, out=out)
    if rows * k < tokens:
        out += np.add.reduce(ones[rows * k :], axis=0, dtype=np.int32)


COUNTS = {"sum": count_by_sum, "byte_lanes": count_by_byte_lanes}
