"""From a launch to a tuned file: the world of processes, the measurement, the verdict, the file on rank 0."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mindspeed_moe.bench.machine import is_simulated
from mindspeed_moe.bench.shapes import Shape
from mindspeed_moe.bench.timing import Spread, spread
from mindspeed_moe.config import load_config
from mindspeed_moe.config.tuned import FORMAT, Tuned, TunedShape, require_writable, write_tuned
from mindspeed_moe.dispatch_table import rows_of
from mindspeed_moe.environment import Environment
from mindspeed_moe.errors import BenchError
from mindspeed_moe.planning import decide, machine_here, versions_here
from mindspeed_moe.preprocess.agreement import compare
from mindspeed_moe.tune.candidates import candidates
from mindspeed_moe.tune.session import BLOCK, Measured, Progress, Task, measure
from mindspeed_moe.world.joined import joined_world
from mindspeed_moe.world.signals import ended_like_interrupted

_DISPATCHER = "alltoall"
_RESULT = "mindspeed_moe/tune/result"
_SIMULATED = (
    "simulated device: its times say nothing, so nothing is chosen and no file is written; all {} candidates ran and "
    "leave the same as stock"
)


@dataclass(frozen=True)
class Found:
    """tuned: what was written, the same on every rank; None on a simulated device. spreads: of every candidate."""

    tuned: Tuned | None
    spreads: Mapping[str, Spread]
    notes: tuple[str, ...]


def tune_here(
    environment: Environment,
    device: str,
    wanted: TunedShape,
    out: Path,
    *,
    most_rounds: int,
    seed: int,
    step_limit: timedelta,
    progress: Progress,
) -> Found:
    """Tune on the ranks of this launch; rank 0 decides and writes the file.

    Raises one of the package's errors for an impossible shape, a world that does not fit it, ranks that disagree, a
    file that cannot be written, or an installation without `packed`; a rank that fails ends all others.
    """
    shape = Shape(wanted.experts, wanted.ep, wanted.tp, wanted.tokens, wanted.topk, "dropless")
    ranks = environment.world_size
    if ranks % shape.ranks:
        raise BenchError(
            f"EP {shape.ep} x TP {shape.tp} = {shape.ranks} ranks, but the processes that were started are {ranks}: "
            f"start a multiple of {shape.ranks} with torchrun, as many as train, or give another --ep and --tp"
        )
    asked = load_config({"device": device, "dispatchers": {_DISPATCHER: "packed"}})
    _, generation, _ = decide(asked, environment)
    row = next(one for one in rows_of(device, _DISPATCHER, generation.name) if one.implementation == "packed")
    simulated = device == "npu" and is_simulated(environment)
    rounds = BLOCK if simulated else most_rounds // BLOCK * BLOCK
    task = Task(device, shape, candidates(row, shape.ep, shape.tp), rounds, seed)
    # From here on an end from outside passes through the cleaning up, and reaches the other ranks.
    with ended_like_interrupted(), joined_world(environment, device, step_limit) as (store, watch):
        watch.step("comparing what the ranks were asked for")
        compare(store, tuple(range(ranks)), environment.rank, _facts(environment, task, out), step_limit)
        if environment.rank == 0 and not simulated:
            require_writable(out)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # names of collectives that newer releases of torch rename
            measured = measure(environment, task, watch, progress)
        if simulated:
            return Found(None, {}, (_SIMULATED.format(len(task.tried)),))
        watch.step("agreeing on the result")
        tuned = _agreed(store, environment, task, wanted, measured, step_limit)
        watch.step("writing the file")
        if environment.rank == 0:
            write_tuned(tuned, out)
        dist.barrier()
    return Found(tuned, _spreads(measured), tuple(_notes(task, ranks, measured)))


def _facts(environment: Environment, task: Task, out: Path) -> dict[str, str | int]:
    """Return what all ranks must have in common: the order, the machine, the versions."""
    machine = machine_here(environment, task.device).model_dump()
    versions = versions_here(environment).model_dump()
    return {
        **{f"machine.{key}": value for key, value in machine.items()},
        **{f"versions.{key}": value for key, value in versions.items()},
        "shape": str(task.shape),
        "rounds": task.most_rounds,
        "seed": task.seed,
        "out": str(out),
    }


def _agreed(
    store: Any, environment: Environment, task: Task, shape: TunedShape, measured: Measured, limit: timedelta
) -> Tuned:
    """Return the result that rank 0 has come to, on every rank."""
    if environment.rank == 0:
        tuned = _decided(environment, task, shape, measured)
        store.set(_RESULT, tuned.model_dump_json(by_alias=True))
        return tuned
    store.wait([_RESULT], limit)
    return Tuned.model_validate(json.loads(store.get(_RESULT)))


def _decided(environment: Environment, task: Task, shape: TunedShape, measured: Measured) -> Tuned:
    winner = next(one for one in task.tried if str(one) == measured.verdict.winner)
    return Tuned.model_validate(
        {
            "mindspeed_moe_tuned": FORMAT,
            "machine": machine_here(environment, task.device).model_dump(),
            "versions": versions_here(environment).model_dump(),
            "shape": shape.model_dump(),
            "choices": dict(winner.choices),
            "reason": measured.verdict.reason,
            "settled": measured.settled,
            "rounds": len(next(iter(measured.durations.values()))),
            "timings_us": {
                name: {"p20": round(one.p20, 2), "p50": round(one.p50, 2), "p80": round(one.p80, 2)}
                for name, one in _spreads(measured).items()
            },
            "costs_us": measured.costs.model_dump(by_alias=True),
        }
    )


def _spreads(measured: Measured) -> dict[str, Spread]:
    return {name: spread([round(one * 1e3) for one in values]) for name, values in measured.durations.items()}


def _notes(task: Task, ranks: int, measured: Measured) -> Iterator[str]:
    if not measured.settled:
        yield "no clear verdict within these rounds: more --rounds, or a quieter machine, may tell more"
    if task.shape.ranks == 1 and ranks == 1:
        yield (
            "one process, EP = TP = 1: nothing is exchanged, so this says how a routing map is counted best and "
            "nothing about exchange, exchange_group and stream; for EP > 1 start EP x TP processes with torchrun"
        )
