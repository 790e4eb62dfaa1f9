"""How a routing map [T, E] bool is reduced to tokens per expert [E]. All ways give the same integers.

Each way takes the map, where to write (`out` [E] int32, or None for a new tensor [E] int64), and how many `entries`
the map should have, None where it depends on the map: what they are used for is said there; counts are of the map.
"""

from __future__ import annotations

import functools
import math
import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# Below this work, in entries of a map, torch's one reduction is faster than two over lanes; for torch the start of
# a row is as much work as this many entries.
_BYTE_LANES_PAY = 65536
_START_OF_ROW = 20
_FEW = 3  # below so many experts too
_NUMPY_PAYS = 2**20  # entries; numpy's sum of words is faster than torch's only on maps larger than the caches

_ROWS = 128  # long rows that are added up in byte lanes; up to 255 fit without a carry into the neighbour

_FLOAT32_EXACT = 2**24  # integers up to here are float32 numbers, and so are all partial sums

_BYTE, _LANES, _COUNT = np.dtype(np.uint8), np.dtype(np.uint64), np.dtype(np.int64)
_add = np.add.reduce

Integers = NDArray[np.int32] | NDArray[np.int64]


def count_by_sum(
    routing_map: torch.Tensor, out: torch.Tensor | None = None, entries: int | None = None
) -> torch.Tensor:
    """Return the column sums of `routing_map` [T, E] bool (or bytes), made by one reduction on its device."""
    if out is None:
        return routing_map.sum(dim=0)
    return torch.sum(routing_map, dim=0, dtype=torch.int32, out=out)


def count_by_matmul(
    routing_map: torch.Tensor, out: torch.Tensor | None = None, entries: int | None = None
) -> torch.Tensor:
    """Return the same as a product of ones [1, T] and the map as float32: for matrix units that beat the reduction.

    Exact: factors are 0 and 1, and float32 sums of integers are exact up to 2**24; longer maps are summed.
    Costs two kernels more than the sum, for the conversions.
    """
    tokens, experts = routing_map.shape
    if tokens > _FLOAT32_EXACT:
        return count_by_sum(routing_map, out)
    if out is None:
        out = torch.empty(experts, dtype=torch.int64, device=routing_map.device)
    device = routing_map.device
    stream = None if routing_map.is_cpu else getattr(torch, device.type).current_stream()
    return out.copy_(torch.mm(_ones(tokens, device, stream), routing_map.float()).view(experts))


@functools.lru_cache(maxsize=16)
def _ones(tokens: int, device: torch.device, stream: Any) -> torch.Tensor:
    """Made on a stream for that stream alone: on another nothing tells when they are there."""
    with torch.inference_mode(False):  # kept: it must serve later calls in any mode
        return torch.ones(1, tokens, dtype=torch.float32, device=device)


def count_by_byte_lanes(
    routing_map: torch.Tensor, out: torch.Tensor | None = None, entries: int | None = None
) -> torch.Tensor:
    """Return the same for a routing map on the host, read word by word.

    A bool is a byte that is 0 or 1, so one addition of 64-bit words counts for eight experts, exact for up to
    255 rows. The map is read as fewer long rows of k tokens each; their sum is [k, E] bytes, added up in turn.

    Torch takes every byte but 0 for True; bytes above 1 (somebody's view of a byte mask) would be counted for more.
    Counts that add up to `entries` are taken for right; else all bytes are looked at, which costs as much as counting,
    and a map with other bytes is left to torch's sum.
    """
    tokens, experts = routing_map.shape
    if experts < _FEW or tokens * (experts + _START_OF_ROW) <= _BYTE_LANES_PAY:
        return count_by_sum(routing_map, out)
    sums = np.empty(experts, dtype=_COUNT) if out is None else out.numpy()
    k, rows = _fold(tokens, experts)
    # Torch adds words faster where they are whole and nothing is left over.
    whole = k * rows == tokens and not experts % 8 and not routing_map.storage_offset() % 8
    if whole and tokens * experts <= _NUMPY_PAYS and routing_map.is_contiguous():
        words, lanes = _scratch.of(k, experts)
        torch.sum(routing_map.view(torch.int64).view(rows, -1), 0, out=words)
        _add(lanes, 0, sums.dtype, out=sums)
    else:
        _add_byte_lanes(routing_map.numpy().view(_BYTE), sums)
    if _add(sums) != entries and _has_other_bytes(routing_map):
        return count_by_sum(routing_map, out)
    return torch.from_numpy(sums) if out is None else out


def _has_other_bytes(routing_map: torch.Tensor) -> bool:
    ones = routing_map.numpy().view(_BYTE)
    return bool(ones.item(ones.argmax()) > 1)  # numpy's fastest look at all bytes


def _add_byte_lanes(ones: NDArray[np.uint8], out: Integers) -> None:
    tokens, experts = ones.shape
    k, rows = _fold(tokens, experts)
    ones = np.ascontiguousarray(ones)
    whole = ones if rows * k == tokens else ones[: rows * k]
    partial = _add(whole.reshape(rows, k * experts).view(_LANES), 0).view(_BYTE)
    _add(partial.reshape(k, experts), 0, out.dtype, out=out)
    if rows * k < tokens:
        out += _add(ones[rows * k :], 0, out.dtype)


class _Scratch(threading.local):
    """Partial sums of maps of one shape, twice: as words [k * E / 8] int64 and as byte lanes [k, E] of numpy's.

    Kept, because making tensors and views takes longer than the sums; for each thread, because torch sums without
    Python's lock. A few kilobytes a shape.
    """

    _MOST = 64  # shapes; more only where nearly every call has another number of tokens

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], tuple[torch.Tensor, NDArray[np.uint8]]] = {}

    def of(self, k: int, experts: int) -> tuple[torch.Tensor, NDArray[np.uint8]]:
        """Return words and lanes, two views of one memory."""
        found = self._kept.get((k, experts))
        if found is None:
            if len(self._kept) == self._MOST:
                self._kept.clear()
            with torch.inference_mode(False):  # kept: it must serve later calls in any mode
                words = torch.empty(k * experts // 8, dtype=torch.int64, device="cpu")
                found = self._kept[k, experts] = words, words.numpy().view(_BYTE).reshape(k, experts)
        return found


_scratch = _Scratch()


@functools.lru_cache(maxsize=256)
def _fold(tokens: int, experts: int) -> tuple[int, int]:
    """Return k, the tokens in one long row, and how many long rows that makes; the rest of the tokens is left over."""
    per_word = 8 // math.gcd(experts, 8)  # tokens after which rows start at a word again
    k = -(-tokens // _ROWS)
    k = -(-k // per_word) * per_word
    return k, tokens // k


COUNTS = {"sum": count_by_sum, "byte_lanes": count_by_byte_lanes, "matmul": count_by_matmul}
