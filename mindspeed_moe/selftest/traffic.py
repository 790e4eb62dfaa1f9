"""What a group's ranks send through a layer, drawn from a seed: every rank can draw every other rank's too. Numpy.

All numbers are small integers, and probabilities eighths, so that every sum is exact in float32 in whatever order it
is taken, and results can be compared to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mindspeed_moe.selftest.steps import DROP, DROPLESS, PAD, ROUTER_PADDING, SEQ, Layout

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]

FACTOR = 0.75  # of an expert's capacity
WIDTH = 8  # columns of hidden states on each TP rank of alltoall_seq, which splits them
PADDED_TO = 16  # rows of an expert, in Megatron's default recipe of fp8
# Tokens of a group's members, in turn: unequal, and one has none. Padding wants equal numbers.
_TOKENS = {DROPLESS: (7, 0, 12, 3, 9), DROP: (9, 5, 0, 12, 7), PAD: (8,), ROUTER_PADDING: (16, 24, 0, 32)}
_LARGEST = 255


@dataclass(frozen=True)
class Traffic:
    """One rank's part.

    routing_map: [T, E] as the router leaves it. probs: [T, E], 0 where nothing is routed.
    hidden: [S, H]. weights: [S, H], the gradient of the output. With alltoall_seq T is the whole sequence's TP x S,
    the same on all TP ranks; else T = S.
    """

    routing_map: Bools
    probs: Floats
    hidden: Floats
    weights: Floats


def draw_group(layout: Layout, dispatcher: str, mode: str, seed: Sequence[int]) -> list[Traffic]:
    """Return the traffic of every rank of an EP x TP group, in group order (EP-major)."""
    generator = np.random.default_rng(tuple(seed))
    counts = _TOKENS[mode]
    turn = int(generator.integers(len(counts)))
    tokens = [counts[(turn + member) % len(counts)] for member in range(layout.ranks)]
    if dispatcher != SEQ:
        return [
            Traffic(*_routing(generator, layout, mode, tokens[member]), *_rows(generator, member, tokens[member], 1))
            for member in range(layout.ranks)
        ]
    found = []
    for i in range(layout.ep):
        routing = _routing(generator, layout, mode, tokens[i] * layout.tp)
        for k in range(layout.tp):
            found.append(Traffic(*routing, *_rows(generator, i * layout.tp + k, tokens[i], layout.tp)))
    return found


def capacity_of(tokens: int, layout: Layout) -> int:
    """Return the most rows of one rank for one expert, as Megatron's documentation of the capacity factor says."""
    return math.ceil(tokens * layout.topk / layout.experts * FACTOR)


def _routing(generator: Any, layout: Layout, mode: str, tokens: int) -> tuple[Bools, Floats]:
    experts = layout.experts
    order = generator.permuted(np.tile(np.arange(experts), (tokens, 1)), axis=1)
    chosen = np.zeros((tokens, experts), dtype=np.bool_)
    np.put_along_axis(chosen, order[:, : layout.topk], True, axis=1)
    eighths = generator.integers(1, 8, (tokens, experts)).astype(np.float32) / 8
    routing_map: NDArray[np.bool_] = chosen
    if mode in (DROP, PAD):
        capacity = capacity_of(tokens, layout)
        routing_map = chosen & (np.cumsum(chosen, axis=0) <= capacity)
        if mode == PAD:  # the router fills up with tokens that have not chosen the expert
            lacking = capacity - routing_map.sum(axis=0)
            free = ~routing_map
            routing_map = routing_map | (free & (np.cumsum(free, axis=0) <= lacking))
    return routing_map, np.where(chosen & routing_map, eighths, np.float32(0))


def _rows(generator: Any, member: int, tokens: int, tp: int) -> tuple[Floats, Floats]:
    hidden = generator.integers(1, _LARGEST + 1, (tokens, WIDTH * tp)).astype(np.float32)
    hidden[:, 0] = member % _LARGEST + 1  # who sent it, and which token it is
    hidden[:, 1] = np.arange(tokens) % _LARGEST + 1
    weights = generator.integers(1, 4, (tokens, WIDTH * tp)).astype(np.float32)
    return hidden, weights
