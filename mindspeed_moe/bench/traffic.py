"""What the layer is fed with: a random routing map, and the counts that the other ranks would send."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mindspeed_moe.bench.shapes import Shape


def make_routing_map(shape: Shape, generator: np.random.Generator) -> torch.Tensor:
    """Return a routing map [T, E] bool: every token goes to topk experts drawn at random, less what is dropped."""
    drawn = generator.random((shape.tokens, shape.experts), dtype=np.float32)
    chosen = np.argpartition(drawn, shape.topk - 1, axis=1)[:, : shape.topk]
    routing_map = np.zeros((shape.tokens, shape.experts), dtype=np.bool_)
    np.put_along_axis(routing_map, chosen, True, axis=1)
    if shape.capacity is not None:
        routing_map &= np.cumsum(routing_map, axis=0) <= shape.capacity
    return torch.from_numpy(routing_map)


def make_counts(shape: Shape, own: int, routing_map: torch.Tensor, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return every rank's tokens per expert, [EP, TP, E] in group order.

    own: index of the rank whose routing map [T, E] this is; the other ranks' counts are drawn.
    """
    even = np.full(shape.experts, 1 / shape.experts)
    most = shape.tokens if shape.capacity is None else shape.capacity
    counts = np.minimum(generator.multinomial(shape.tokens * shape.topk, even, size=shape.ranks), most)
    counts[own] = routing_map.numpy().sum(axis=0)
    return counts.astype(np.int64).reshape(shape.ep, shape.tp, shape.experts)
