"""The timing wrapper: one entry a layer and forward pass, and everything as before when it is left."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from mindspeed_moe.contract.generations import ALLTOALL
from mindspeed_moe.demo import timing
from mindspeed_moe.demo.timing import METHODS, PreprocessTimer


class Clock:
    """Time passes only where a test lets it."""

    elapsed = 0.0
    computing = 0.0

    def pass_(self, elapsed: float, computing: float) -> None:
        self.elapsed += elapsed
        self.computing += computing

    def perf_counter(self) -> float:
        return self.elapsed

    def thread_time(self) -> float:
        return self.computing


CLOCK = Clock()


class Dispatcher:
    def preprocess(self, routing_map: Any) -> Any:
        CLOCK.pass_(2.0, 0.5)
        return routing_map

    def _maybe_dtoh_and_synchronize(self, point: str, tokens_per_expert: Any = None) -> Any:
        CLOCK.pass_(1.0, 0.25)
        if point == "fails":
            raise ValueError(point)
        return tokens_per_expert


@pytest.fixture(autouse=True)
def dispatcher_and_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    module_name, _, class_name = ALLTOALL.rpartition(".")
    module = ModuleType(module_name)
    setattr(module, class_name, Dispatcher)
    parts = module_name.split(".")
    for end in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    monkeypatch.setitem(sys.modules, module_name, module)
    monkeypatch.setattr(timing, "time", CLOCK)


def test_entries_are_per_layer_and_pass() -> None:
    first, second = Dispatcher(), Dispatcher()
    with PreprocessTimer() as timer:
        for _ in range(3):
            for layer, points in ((first, 4), (second, 1)):
                assert layer.preprocess("map") == "map"
                for _ in range(points):
                    assert layer._maybe_dtoh_and_synchronize("here", 5) == 5
        CLOCK.pass_(100.0, 100.0)
    assert timer.elapsed == [6.0, 3.0] * 3
    assert timer.computing == [1.5, 0.75] * 3
    assert timer.summary() == {"calls": 6, "median_us": 4.5e6, "median_computing_us": 1.125e6}


def test_the_host_half_counts_for_its_own_layer() -> None:
    first, second = Dispatcher(), Dispatcher()
    with PreprocessTimer() as timer:
        first.preprocess("map")
        second.preprocess("map")
        first._maybe_dtoh_and_synchronize("here")
        first._maybe_dtoh_and_synchronize("there")
    assert timer.elapsed == [4.0, 2.0]


def test_leaving_puts_the_same_objects_back() -> None:
    before = {name: vars(Dispatcher)[name] for name in METHODS}
    timer = PreprocessTimer()
    with timer:
        assert all(vars(Dispatcher)[name] is not before[name] for name in METHODS)
    assert all(vars(Dispatcher)[name] is before[name] for name in METHODS)


def test_a_failing_call_is_timed_passed_on_and_undone() -> None:
    before = {name: vars(Dispatcher)[name] for name in METHODS}
    timer = PreprocessTimer()
    with pytest.raises(ValueError, match="fails"), timer:
        _fail(Dispatcher())
    assert timer.elapsed == [3.0]
    assert all(vars(Dispatcher)[name] is before[name] for name in METHODS)


def _fail(dispatcher: Dispatcher) -> None:
    dispatcher.preprocess("map")
    dispatcher._maybe_dtoh_and_synchronize("fails")
