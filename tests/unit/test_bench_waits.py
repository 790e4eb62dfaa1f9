"""What the host does and what it waits for, told apart on a device whose clock the test turns."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch

from mindspeed_moe.bench import accelerated
from mindspeed_moe.bench.accelerated import Bench
from mindspeed_moe.bench.devices import Clockwork
from mindspeed_moe.bench.load import Busy, device_sleep
from mindspeed_moe.bench.timing import nothing
from mindspeed_moe.bench.waits import Waiting
from mindspeed_moe.errors import BenchError

BUSY_US = 1000


class Machine:
    """A host and a device in microseconds of one clock; the device works through what it was given, in order."""

    def __init__(self) -> None:
        self.now = 0
        self.free_at = 0
        machine = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                self.at = 0

            def record(self, stream: object = None) -> None:
                self.at = max(machine.now, machine.free_at)

            def query(self) -> bool:
                return machine.now >= self.at

            def elapsed_time(self, end: Event) -> float:
                return (end.at - self.at) / 1e3

            def synchronize(self) -> None:
                machine.now = max(machine.now, self.at)

        class Stream:
            def wait_event(self, event: Event) -> None:
                machine.free_at = max(machine.free_at, event.at)

            def synchronize(self) -> None:
                machine.finish()

        stream = Stream()
        self.streams = SimpleNamespace(
            Event=Event, Stream=Stream, current_stream=lambda: stream, synchronize=self.finish, _sleep=self.sleep
        )

    def finish(self) -> None:
        self.now = max(self.now, self.free_at)

    def launch(self, host_us: int, device_us: int) -> None:
        self.now += host_us
        self.free_at = max(self.now, self.free_at) + device_us

    def sleep(self, cycles: int) -> None:
        self.launch(0, cycles // 1000)


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(time, "perf_counter_ns", lambda: machine.now * 1000)
    return machine


def make_bench(machine):
    busy = lambda: machine.launch(1, BUSY_US)  # noqa: E731
    return Bench(SimpleNamespace(device="cpu"), Clockwork(machine.streams), busy, BUSY_US, 0.0, None)


def by_event(machine, host_us, device_us):
    copied = machine.streams.Event()

    def call():
        machine.launch(host_us, device_us)
        copied.record()
        copied.synchronize()
        machine.now += 7  # unpacking

    return call


def by_stream(machine, host_us, device_us):
    def call():
        machine.launch(host_us, device_us)
        machine.streams.current_stream().synchronize()

    return call


def test_waits_are_timed_and_the_methods_come_back(machine):
    owners = (machine.streams.Event, machine.streams.Stream)
    before = [owner.synchronize for owner in owners]
    waiting = Waiting()
    with waiting.watching(machine.streams):
        by_event(machine, 20, 30)()
        assert waiting.take() == (30_000, 1)
        by_stream(machine, 5, 11)()
        by_stream(machine, 5, 12)()
        assert waiting.take() == (23_000, 2)
    assert waiting.take() == (0, 0)
    assert [owner.synchronize for owner in owners] == before


def test_a_wait_that_fails_is_timed_too(machine, monkeypatch):
    def fail(self):
        machine.now += 3
        raise RuntimeError

    monkeypatch.setattr(machine.streams.Event, "synchronize", fail)
    waiting = Waiting()
    with waiting.watching(machine.streams), pytest.raises(RuntimeError):
        machine.streams.Event().synchronize()
    assert waiting.take() == (3_000, 1)


@pytest.mark.parametrize("kind", [by_event, by_stream])
def test_host_and_wait_make_up_what_passes(machine, kind):
    bench = make_bench(machine)
    calls = {"stock": kind(machine, 90, 40), "packed": kind(machine, 20, 30)}
    after = 7 if kind is by_event else 0
    times = accelerated._host_times(bench, calls, 5, 0, bench.clockwork.synchronize)
    for name, host, wait in (("stock", 90, 40), ("packed", 20, 30)):
        assert times[name].host.p50 == host + after
        assert times[name].wait.p50 == wait
        assert times[name].elapsed.p50 == host + after + wait


def test_before_a_busy_device_the_host_is_as_fast_and_waits_longer(machine):
    bench = make_bench(machine)

    def before():
        bench.clockwork.synchronize()
        bench.busy()

    times = accelerated._host_times(bench, {"packed": by_event(machine, 20, 30)}, 5, 0, before)["packed"]
    assert times.host.p50 == 27
    assert times.wait.p50 == BUSY_US - 20 + 30


@pytest.mark.parametrize("kind", [by_event, by_stream])
def test_device_time_hides_the_launches(machine, kind):
    bench = make_bench(machine)
    calls = {"packed": kind(machine, 200, 30), "late": kind(machine, BUSY_US + 50, 30), "none": nothing}
    spans = accelerated._spans(bench, calls, 4, 0, bench.clockwork.synchronize)
    span, in_time = spans["packed"]
    assert (span.p50, in_time) == (30, 4)
    assert spans["late"] == (None, 0), "the queue was empty before all was launched: that is the host's time"
    assert spans["none"] == (None, 0), "nobody waited"


def test_the_clock_of_the_device(machine):
    assert Clockwork(machine.streams).duration_us(lambda: machine.launch(2, 25)) == pytest.approx(27)


def test_a_delay_on_the_device_is_calibrated(machine):
    clockwork = Clockwork(machine.streams)
    sleep = device_sleep(clockwork, 40)
    assert clockwork.duration_us(sleep) == pytest.approx(40)
    assert device_sleep(clockwork, 0) is None
    del machine.streams._sleep
    with pytest.raises(BenchError, match="--latency-us"):
        device_sleep(clockwork, 1)


def test_products_fill_the_time_that_is_asked_for(machine, monkeypatch):
    monkeypatch.setattr(torch, "mm", lambda a, b, out: machine.launch(0, 3))
    busy = Busy(Clockwork(machine.streams), "cpu", 100)
    assert busy.products == 34
    before = machine.free_at
    busy()
    assert machine.free_at - before == 102
