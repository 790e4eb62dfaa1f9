"""One shape on an accelerator: what the host does, how long it waits, and what the device does.

Every call is timed as a layer makes it: preprocess, then its hook at all four points. Conditions: `idle`, nothing
runs on the device when the call begins; `busy`, matrix products are queued before it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mindspeed_moe.bench.contestants import ON_HOST, Team, caller, run
from mindspeed_moe.bench.devices import Clockwork
from mindspeed_moe.bench.equality import outcome_of, require_equal
from mindspeed_moe.bench.load import Busy
from mindspeed_moe.bench.network import OneRankNetwork
from mindspeed_moe.bench.profile import Launches, launches
from mindspeed_moe.bench.shapes import Shape
from mindspeed_moe.bench.simulation import (
    CheckingCollectives,
    PreparedCollectives,
    simulated_collectives,
    simulated_group,
)
from mindspeed_moe.bench.timing import Spread, nothing, spread, turns
from mindspeed_moe.bench.traffic import make_counts, make_routing_map
from mindspeed_moe.bench.waits import Waiting
from mindspeed_moe.dispatch_table import STOCK

IDLE, BUSY = "idle", "busy"


@dataclass(frozen=True)
class HostTime:
    """Durations of one call by the host's clock, in microseconds.

    elapsed: from the start of preprocess until the splits are on the host. wait: inside of the calls that wait for
    the device. host: the difference, after which the host is free to launch.
    """

    elapsed: Spread
    host: Spread
    wait: Spread


@dataclass(frozen=True)
class DeviceTime:
    """What one call costs the device.

    span: microseconds between two events, from the end of the products queued before the call until what the host
    waits for, in calls whose launches were all queued in time; None when there was none, or nothing was waited for.
    in_time, rounds: how many calls of how many that were.
    launches: what a profiler saw; None when it saw nothing on the device.
    """

    span: Spread | None
    in_time: int
    rounds: int
    launches: Launches | None


@dataclass(frozen=True)
class AcceleratorResult:
    """One shape. times: condition -> implementation; device: implementation.

    latency_us: the delay on the device after every collective. busy_us: device time of what `busy` queues.
    """

    shape: Shape
    device: str
    rounds: int
    seed: int
    latency_us: float
    busy_us: float
    times: Mapping[str, Mapping[str, HostTime]]
    on_device: Mapping[str, DeviceTime]

    def ratio(self, implementation: str, condition: str = IDLE) -> float:
        """Return stock's host time (without waits) over an implementation's, at the median."""
        times = self.times[condition]
        return times[STOCK].host.p50 / times[implementation].host.p50

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; durations in microseconds."""
        return {
            "shape": asdict(self.shape),
            "device": self.device,
            "processes": 1,
            "rounds": self.rounds,
            "seed": self.seed,
            "latency_us": self.latency_us,
            "busy_us": self.busy_us,
            "times": {
                condition: {
                    name: {**asdict(one), "host_ratio_to_stock": self.ratio(name, condition)}
                    for name, one in times.items()
                }
                for condition, times in self.times.items()
            },
            "on_device": {name: asdict(one) for name, one in self.on_device.items()},
        }


@dataclass(frozen=True)
class Bench:
    """What all shapes are measured with. latency_us, sleep: of the simulated network; sleep is None for none."""

    team: Team
    clockwork: Clockwork
    busy: Busy
    busy_us: float
    latency_us: float
    sleep: Callable[[], object] | None


def measure_accelerated(bench: Bench, shape: Shape, rounds: int, seed: int) -> AcceleratorResult:
    """Measure a shape as its group's last rank sees it; needs `one_process_world` of the device.

    Raises BenchError when the implementations disagree among themselves, or with the cpu's `packed`.
    """
    with agreed_calls(bench.team, shape, seed, bench.sleep) as (calls, routing_map):
        times = {
            IDLE: _host_times(bench, calls, rounds, seed, _routing(bench, routing_map)),
            BUSY: _host_times(bench, calls, rounds, seed, _routing(bench, routing_map, bench.busy)),
        }
        spans = _spans(bench, calls, rounds, seed, _routing(bench, routing_map))
        seen = {name: launches(bench.clockwork, call) for name, call in calls.items()}
    return AcceleratorResult(
        shape=shape,
        device=bench.team.device,
        rounds=rounds,
        seed=seed,
        latency_us=bench.latency_us,
        busy_us=bench.busy_us,
        times=times,
        on_device={name: DeviceTime(*spans[name], rounds, seen[name]) for name in calls},
    )


@contextlib.contextmanager
def agreed_calls(
    team: Team, shape: Shape, seed: int, sleep: Callable[[], object] | None = None
) -> Iterator[tuple[dict[str, Callable[[], object]], torch.Tensor]]:
    """Yield implementation -> call, and the routing map on the device that all calls read, inside a simulated group.

    sleep: the simulated network's delay. Raises BenchError when the implementations disagree.
    """
    generator = np.random.default_rng(seed)
    layout = shape.layout(shape.ranks - 1)
    on_host = make_routing_map(shape, generator)
    counts = make_counts(shape, layout.group_index, on_host, generator)
    routing_map = on_host.to(team.device)
    network = OneRankNetwork(team.device, sleep)
    with simulated_group(layout):
        dispatchers = {name: team.dispatcher(name, shape, layout) for name in team.classes}
        with simulated_collectives(CheckingCollectives(counts, layout, network)):
            outcomes = {name: _outcome(team, one, routing_map) for name, one in dispatchers.items()}
        with simulated_collectives(CheckingCollectives(counts, layout)):
            outcomes[ON_HOST] = _outcome(team, team.dispatcher(ON_HOST, shape, layout), on_host)
        require_equal(outcomes)
        with simulated_collectives(PreparedCollectives(counts, layout, network)):
            yield {name: caller(one, routing_map) for name, one in dispatchers.items()}, routing_map


def _outcome(team: Team, dispatcher: Any, routing_map: torch.Tensor) -> dict[str, object]:
    return outcome_of(dispatcher, run(dispatcher, routing_map), team.generation.chunk_table)


def _routing(bench: Bench, routing_map: torch.Tensor, then: Callable[[], object] = nothing) -> Callable[[], object]:
    """Return what stands before a call: the map is made anew, the device comes to rest, `then` is queued."""
    logits = routing_map.float() - 0.5

    def route() -> None:
        torch.gt(logits, 0, out=routing_map)
        bench.clockwork.synchronize()
        then()

    return route


def _host_times(
    bench: Bench, calls: Mapping[str, Callable[[], object]], rounds: int, seed: int, before_each: Callable[[], object]
) -> dict[str, HostTime]:
    """Run every call once a round, in turns."""
    waiting = Waiting()
    taken: dict[str, list[tuple[int, int, int]]] = {name: [] for name in calls}
    with waiting.watching(bench.clockwork.streams), _in_turns(calls, rounds, seed) as order:
        for name, counts in order:
            call = calls[name]
            before_each()
            waiting.take()
            start = time.perf_counter_ns()
            call()
            elapsed = time.perf_counter_ns() - start
            waited, _ = waiting.take()
            if counts:
                taken[name].append((elapsed, elapsed - waited, waited))
    bench.clockwork.synchronize()
    return {name: HostTime(*(spread(column) for column in zip(*rows, strict=True))) for name, rows in taken.items()}


def _spans(
    bench: Bench, calls: Mapping[str, Callable[[], object]], rounds: int, seed: int, before_each: Callable[[], object]
) -> dict[str, tuple[Spread | None, int]]:
    """Measure by events what lies between the queued products' end and what the host waits for.

    A call whose launches came after the products' end would show the host's time instead: it is left out.
    """
    clockwork, streams = bench.clockwork, bench.clockwork.streams
    start, end = clockwork.timer(), clockwork.timer()
    state = {"waited": False, "in_time": False}

    def on_wait(waited: Any) -> None:
        state["in_time"] = not start.query()
        stream = waited
        if isinstance(waited, streams.Event):
            stream = clockwork.current()
            stream.wait_event(waited)
        end.record(stream)
        state["waited"] = True

    spans: dict[str, list[int]] = {name: [] for name in calls}
    with Waiting().watching(streams, on_wait), _in_turns(calls, rounds, seed) as order:
        for name, counts in order:
            before_each()
            bench.busy()
            start.record()
            state["waited"] = False
            calls[name]()
            clockwork.synchronize()
            if counts and state["waited"] and state["in_time"]:
                spans[name].append(round(start.elapsed_time(end) * 1e6))
    return {name: (spread(taken) if taken else None, len(taken)) for name, taken in spans.items()}


def _in_turns(calls: Mapping[str, object], rounds: int, seed: int) -> AbstractContextManager[Any]:
    return contextlib.closing(turns(list(calls), rounds, seed))
