"""One shape, measured: check that all implementations agree, then time them against each other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mindspeed_moe.bench.blocks import BLOCKS, packed_blocks, read_once
from mindspeed_moe.bench.contestants import PACKED, Team, caller, run
from mindspeed_moe.bench.equality import outcome_of, require_equal
from mindspeed_moe.bench.shapes import Shape
from mindspeed_moe.bench.simulation import (
    CheckingCollectives,
    PreparedCollectives,
    simulated_collectives,
    simulated_group,
)
from mindspeed_moe.bench.timing import Spread, interleave, nothing, spread
from mindspeed_moe.bench.traffic import make_counts, make_routing_map
from mindspeed_moe.dispatch_table import STOCK
from mindspeed_moe.preprocess.layout import ExpertLayout

READ_MAP = "read_map_once"


@dataclass(frozen=True)
class Result:
    """Durations of one shape, in microseconds.

    implementations: name -> spread of one preprocess with its host half.
    packed_blocks: name, of BLOCKS -> spread; empty where a mode has none of them.
    read_map: reading the routing map once, for comparison.
    processes: 1 for a simulated group, else the number of real ranks.
    """

    shape: Shape
    processes: int
    rounds: int
    seed: int
    implementations: dict[str, Spread]
    packed_blocks: dict[str, Spread]
    read_map: Spread

    def ratio(self, implementation: str) -> float:
        """Return how many times as fast as stock an implementation is, at the median."""
        return self.implementations[STOCK].p50 / self.implementations[implementation].p50

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; durations in microseconds."""
        return {
            "shape": asdict(self.shape),
            "processes": self.processes,
            "rounds": self.rounds,
            "seed": self.seed,
            "implementations": {
                name: {**asdict(one), "ratio_to_stock": self.ratio(name)} for name, one in self.implementations.items()
            },
            "packed_blocks": {name: asdict(one) for name, one in self.packed_blocks.items()},
            READ_MAP: asdict(self.read_map),
        }


def measure_simulated(team: Team, shape: Shape, rounds: int, seed: int) -> Result:
    """Measure a shape as its group's last rank sees it, with prepared results for the collectives.

    Needs `one_process_world`. Raises BenchError when the implementations disagree.
    """
    generator = np.random.default_rng(seed)
    layout = shape.layout(shape.ranks - 1)
    routing_map = make_routing_map(shape, generator)
    counts = make_counts(shape, layout.group_index, routing_map, generator)
    with simulated_group(layout):
        return _measure(
            team,
            shape,
            layout,
            routing_map,
            checking=simulated_collectives(CheckingCollectives(counts, layout)),
            timing=simulated_collectives(PreparedCollectives(counts, layout)),
            before_each=nothing,
            processes=1,
            rounds=rounds,
            seed=seed,
        )


def measure_real(team: Team, shape: Shape, rounds: int, seed: int) -> Result:
    """Measure a shape in a world of real ranks, in lock-step: a barrier that is not timed stands before every call.

    Every rank of the world calls it; each returns what it measured itself.
    """
    rank = dist.get_rank()
    routing_map = make_routing_map(shape, np.random.default_rng([seed, rank]))
    return _measure(
        team,
        shape,
        shape.layout(rank),
        routing_map,
        checking=contextlib.nullcontext(),
        timing=contextlib.nullcontext(),
        before_each=dist.barrier,
        processes=dist.get_world_size(),
        rounds=rounds,
        seed=seed,
    )


def _measure(
    team: Team,
    shape: Shape,
    layout: ExpertLayout,
    routing_map: torch.Tensor,
    *,
    checking: AbstractContextManager[None],
    timing: AbstractContextManager[None],
    before_each: Callable[[], object],
    processes: int,
    rounds: int,
    seed: int,
) -> Result:
    dispatchers = {name: team.dispatcher(name, shape, layout) for name in team.classes}
    chunk_table = team.generation.chunk_table
    with checking:
        require_equal({name: outcome_of(one, run(one, routing_map), chunk_table) for name, one in dispatchers.items()})
    spare = team.dispatcher(PACKED, shape, layout)
    calls: dict[str, Callable[[], object]] = {name: caller(one, routing_map) for name, one in dispatchers.items()}
    calls |= packed_blocks(team, spare, layout, routing_map)
    calls[READ_MAP] = read_once(routing_map)
    logits = routing_map.float() - 0.5

    def route() -> None:
        """Make the map out of as much data as a router does, so that every call finds similar caches."""
        torch.gt(logits, 0, out=routing_map)
        before_each()

    with timing:
        durations = {name: spread(taken) for name, taken in interleave(calls, rounds, seed, route).items()}
    return Result(
        shape=shape,
        processes=processes,
        rounds=rounds,
        seed=seed,
        implementations={name: durations[name] for name in dispatchers},
        packed_blocks={name: durations[name] for name in BLOCKS if name in durations},
        read_map=durations[READ_MAP],
    )
