"""The estimate held against a measurement on this machine: same prices, same counts, and what the bench says.

A group of one process: the collectives are the bench's stand-ins (on the cpu a copy, on an accelerator a real one
over a group of one rank), for the price as for the measurement.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist

from mindspeed_moe.bench.accelerated import IDLE, Bench, measure_accelerated
from mindspeed_moe.bench.contestants import PACKED, Team, assemble
from mindspeed_moe.bench.devices import DEVICES, Clockwork
from mindspeed_moe.bench.load import Busy
from mindspeed_moe.bench.machine import is_simulated
from mindspeed_moe.bench.measure import measure_simulated
from mindspeed_moe.bench.shapes import Shape
from mindspeed_moe.bench.world import one_process_world
from mindspeed_moe.config.tuned import OperationCosts
from mindspeed_moe.dispatch_table import STOCK
from mindspeed_moe.environment import Environment
from mindspeed_moe.errors import BenchError
from mindspeed_moe.estimate import Estimate, Model, estimate, layout_of
from mindspeed_moe.tune.operations import measure_operations

# Counts stay on the host, as in the estimate's table.
_CHOICES = {"exchange": "all_to_all", "tokens_per_expert": "host", "stream": "current"}


@dataclass(frozen=True)
class Check:
    """One shape: the estimate for one call, and the measured medians of host time (waits left out), microseconds."""

    shape: Shape
    estimated: Estimate
    stock_us: float
    packed_us: float

    @property
    def ratio(self) -> float:
        """Measured: stock's host time over packed's."""
        return self.stock_us / self.packed_us


def check_estimate(
    environment: Environment, device: str, shapes: Sequence[Shape], rounds: int, seed: int
) -> tuple[OperationCosts, list[Check]]:
    """Measure the prices and the shapes, in one process. Raises one of the package's errors where bench would."""
    if device == "npu" and is_simulated(environment):
        raise BenchError("--check: times of a simulated device say nothing; counts are what it tells")
    place = DEVICES[device]
    place.enter()
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", FutureWarning)  # names of collectives that newer releases of torch rename
        team = stack.enter_context(assemble(environment, device, _CHOICES))
        stack.enter_context(one_process_world(place))
        costs = measure_operations(device, None if place.is_host else dist.group.WORLD)
        measured = [_host_times(team, shape, rounds, seed) for shape in shapes]
    return costs, [
        Check(shape, estimate(Model(1, 1, shape.mode, layout_of(shape.ep, shape.tp)), costs), *times)
        for shape, times in zip(shapes, measured, strict=True)
    ]


def _host_times(team: Team, shape: Shape, rounds: int, seed: int) -> tuple[float, float]:
    """Return the medians of stock and packed."""
    place = DEVICES[team.device]
    if place.streams is None:
        on_host = measure_simulated(team, shape, rounds, seed).implementations
        return on_host[STOCK].p50, on_host[PACKED].p50
    clockwork = Clockwork(place.streams())
    bench = Bench(team, clockwork, Busy(clockwork, team.device, 0), 0, 0, None)
    times = measure_accelerated(bench, shape, rounds, seed).times[IDLE]
    return times[STOCK].host.p50, times[PACKED].host.p50
