"""One tuning run on every rank: the candidates in turns until the verdict stands."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mindspeed_moe.bench.contestants import assemble, packed_class, run
from mindspeed_moe.bench.devices import DEVICES
from mindspeed_moe.bench.equality import outcome_of, require_equal
from mindspeed_moe.bench.megatron import parallel_state
from mindspeed_moe.bench.shapes import Shape
from mindspeed_moe.bench.timing import turns
from mindspeed_moe.bench.traffic import make_routing_map
from mindspeed_moe.config.tuned import OperationCosts
from mindspeed_moe.dispatch_table import STOCK
from mindspeed_moe.environment import Environment
from mindspeed_moe.tune.candidates import DEFAULTS, Candidate
from mindspeed_moe.tune.judge import Verdict, judge
from mindspeed_moe.tune.operations import measure_operations
from mindspeed_moe.world.watch import Watch

BLOCK = 40  # rounds between two verdicts
STANDING = 3  # verdicts in a row that must be the same
Durations = dict[str, list[float]]
Progress = Callable[[int, int, str], object]


@dataclass(frozen=True)
class Task:
    """What every rank is asked to do; the same on all of them.

    most_rounds: a multiple of BLOCK. seed: of the routing.
    """

    device: str
    shape: Shape
    tried: tuple[Candidate, ...]
    most_rounds: int
    seed: int


@dataclass(frozen=True)
class Measured:
    """durations: candidate -> microseconds, the slowest rank's, one a round. settled: whether the verdict stood."""

    durations: Durations
    settled: bool
    verdict: Verdict
    costs: OperationCosts


def measure(environment: Environment, task: Task, watch: Watch, progress: Progress) -> Measured:
    """Measure every candidate on the ranks of torch.distributed's world, a whole number of EP x TP groups.

    Raises BenchError when two candidates leave different values: then nothing is chosen at all.
    """
    with contextlib.ExitStack() as stack:
        watch.step("building the candidates")
        _start_megatron(stack, task.shape)
        dispatchers, routing_map, table = _dispatchers(stack, environment, task)
        watch.step("comparing the candidates' results")
        require_equal({name: outcome_of(one, run(one, routing_map), table) for name, one in dispatchers.items()})
        del dispatchers[STOCK]
        watch.step("measuring single operations")
        costs = measure_operations(task.device, parallel_state().get_expert_tensor_and_model_parallel_group())
        durations, settled, verdict = _rounds(task, dispatchers, routing_map, watch, progress)
    return Measured(durations, settled, verdict, costs)


def _start_megatron(stack: contextlib.ExitStack, shape: Shape) -> None:
    state = parallel_state()
    state.initialize_model_parallel(
        tensor_model_parallel_size=shape.tp,
        expert_model_parallel_size=shape.ep,
        expert_tensor_parallel_size=shape.tp,
    )
    stack.callback(state.destroy_model_parallel)


def _dispatchers(
    stack: contextlib.ExitStack, environment: Environment, task: Task
) -> tuple[dict[str, Any], torch.Tensor, str]:
    """Return a dispatcher a candidate, this rank's routing map, and the name of the chunk table's attribute."""
    index = parallel_state().get_expert_tensor_and_model_parallel_rank()
    layout = task.shape.layout(index)
    routing_map = make_routing_map(task.shape, np.random.default_rng((task.seed, index))).to(task.device)
    team = stack.enter_context(assemble(environment, task.device))
    dispatchers: dict[str, Any] = {STOCK: team.dispatcher(STOCK, task.shape, layout)}
    for candidate in task.tried:
        kind = packed_class(environment, task.device, dict(candidate.choices))
        dispatchers[str(candidate)] = team.dispatcher(kind, task.shape, layout)
    return dispatchers, routing_map, team.generation.chunk_table


def _rounds(
    task: Task, dispatchers: Mapping[str, Any], routing_map: torch.Tensor, watch: Watch, progress: Progress
) -> tuple[Durations, bool, Verdict]:
    """Run every candidate once a round; all ranks look at the same numbers, and so stop after the same round."""
    names = list(dispatchers)
    deviations = {str(candidate): len(candidate.choices) for candidate in task.tried}
    before_each = _routing(task.device, routing_map)
    durations: Durations = {name: [] for name in names}
    blocks: list[tuple[Verdict, Durations]] = []
    block: Durations = {name: [] for name in names}
    taken = 0
    with contextlib.closing(turns(names, task.most_rounds, task.seed)) as order:
        for name, counts in order:
            before_each()
            start = time.perf_counter_ns()
            run(dispatchers[name], routing_map)
            elapsed = (time.perf_counter_ns() - start) / 1e3
            if not counts:
                continue
            block[name].append(elapsed)
            taken += 1
            if taken % (BLOCK * len(names)):
                continue
            block = _slowest_rank(block, task.device)
            for one in names:
                durations[one] += block[one]
            verdict = judge(durations, deviations)
            blocks.append((verdict, block))
            block = {one: [] for one in names}
            done = BLOCK * len(blocks)
            watch.step(f"rounds {done + 1} to {done + BLOCK}")
            progress(done, task.most_rounds, verdict.winner)
            if stands(blocks):
                return durations, True, verdict
    return durations, False, blocks[-1][0]


def stands(blocks: Sequence[tuple[Verdict, Mapping[str, Sequence[float]]]]) -> bool:
    """Return whether the last verdicts are certain and the same, each also in its own block's rounds taken alone.

    blocks: each verdict on all rounds so far, and the durations of the rounds since the verdict before it.
    """
    last = blocks[-STANDING:]
    winner = last[-1][0].winner
    return (
        len(last) == STANDING
        and all(verdict.certain and verdict.winner == winner for verdict, _ in last)
        and (
            winner == str(DEFAULTS) or all(_median_of(block, winner) < _median_of(block, DEFAULTS) for _, block in last)
        )
    )


def _median_of(block: Mapping[str, Sequence[float]], candidate: object) -> float:
    return statistics.median(block[str(candidate)])


def _routing(device: str, routing_map: torch.Tensor) -> Callable[[], object]:
    """Return what stands before a call: the map is made anew, the ranks meet, and the device comes to rest."""
    place = DEVICES[device]
    rest = place.streams().synchronize if place.streams is not None else None
    logits = routing_map.float() - 0.5

    def route() -> None:
        torch.gt(logits, 0, out=routing_map)
        dist.barrier()
        if rest is not None:
            rest()

    return route


def _slowest_rank(block: Durations, device: str) -> Durations:
    """Return the maximum over ranks of each duration; every rank gets the same numbers, so all decide alike."""
    slowest = torch.tensor(list(block.values()), dtype=torch.float32, device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return dict(zip(block, slowest.tolist(), strict=True))
