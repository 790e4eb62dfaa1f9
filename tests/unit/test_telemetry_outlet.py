"""The queue and the thread behind it: nothing that fails or hangs there reaches training, and little is lost."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mindspeed_moe import lifetime, telemetry
from mindspeed_moe.telemetry import outlet as outlet_module
from mindspeed_moe.telemetry.load import Call, Taken
from mindspeed_moe.telemetry.outlet import Outlet
from mindspeed_moe.telemetry.subscription import Subscribers
from mindspeed_moe.telemetry.tensorboard import TensorBoard
from unit.test_telemetry_files import load as one_load


class Calls(list[Call]):
    """Are added up in the thread."""

    def __len__(self) -> int:
        assert threading.current_thread() is not threading.main_thread()
        return super().__len__()


def load(step: int, layer: int = 1) -> Taken:
    """What the outlet is given of one layer."""
    return Taken(one_load(step, layer).facts, step, None, Calls([Call(np.arange(4), None, 6, 3, False)]))


class Kept:
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.closed = False

    def write(self, loads: Sequence[Any]) -> None:
        self.steps += [one.step for one in loads]

    def close(self) -> None:
        self.closed = True


class Broken(Kept):
    def write(self, loads: Sequence[Any]) -> None:
        raise RuntimeError("this writer is broken")


@pytest.fixture(autouse=True)
def _nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindspeed_moe.log._said", set())


def test_everything_in_the_queue_is_written_at_the_end():
    kept = Kept()
    outlet = Outlet(lambda: [kept])
    for step in range(100):
        outlet.put([load(step)])
    lifetime.end()
    assert kept.steps == list(range(100))
    assert kept.closed
    assert not [one for one in threading.enumerate() if one.name == "mindspeed_moe telemetry"]


def test_it_goes_on_after_an_end():
    """disable(), then enable() again, with a program that somebody kept."""
    kept = Kept()
    outlet = Outlet(lambda: [kept])
    for step in range(2):
        outlet.put([load(step)])
        lifetime.end()
    assert kept.steps == [0, 1]


def test_a_broken_writer_keeps_no_other_from_writing(caplog: pytest.LogCaptureFixture):
    kept = Kept()
    outlet = Outlet(lambda: [Broken(), kept])
    for step in range(3):
        outlet.put([load(step)])
    lifetime.end()
    assert kept.steps == [0, 1, 2]
    assert [one.getMessage() for one in caplog.records] == [
        "telemetry: Broken: RuntimeError('this writer is broken'); training goes on"
    ]


def test_what_cannot_be_added_up_is_missing_and_the_rest_comes(caplog: pytest.LogCaptureFixture):
    kept = Kept()
    outlet = Outlet(lambda: [kept])
    facts, ragged = one_load(0).facts, [Call(np.arange(size), None, 6, 3, False) for size in (4, 3)]
    outlet.put([load(0), Taken(facts, 0, None, ragged), load(0)])
    outlet.put([load(1)])
    lifetime.end()
    assert kept.steps == [0, 0, 1]
    (record,) = caplog.records
    assert "telemetry: records are missing" in record.getMessage()
    assert "training goes on" in record.getMessage()


def test_writers_that_cannot_be_made_are_told(caplog: pytest.LogCaptureFixture):
    def fail() -> list[Any]:
        raise OSError("no such thing")

    outlet = Outlet(fail)
    outlet.put([load(0)])
    outlet.put([load(1)])
    lifetime.end()
    assert "no such thing" in caplog.text


def test_a_disk_that_hangs_does_not_hold_training_up(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(outlet_module, "_FAREWELL_S", 0.05)
    hangs, free = threading.Event(), threading.Event()

    class Hanging(Kept):
        def write(self, loads: Sequence[Any]) -> None:
            hangs.set()
            assert free.wait(600)
            super().write(loads)

    kept = Hanging()
    outlet = Outlet(lambda: [kept])
    outlet.put([load(0)])
    assert hangs.wait(600)  # the first is in the writer's hands, so the queue is empty
    began = time.monotonic()
    for step in range(1, 1000):
        outlet.put([load(step)])
    lifetime.end()
    assert time.monotonic() - began < 300, "it waited for the writer"
    assert "records are dropped from here on" in caplog.text
    assert "the records of 743 steps were dropped" in caplog.text
    free.set()
    until = time.monotonic() + 600
    while len(kept.steps) < 257 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.05)  # the dropped ones must not come either
    assert kept.steps == list(range(257))


def test_the_thread_is_started_before_there_is_anything_to_write():
    outlet, before = Outlet(list), set(threading.enumerate())
    outlet.open()
    outlet.open()
    (thread,) = set(threading.enumerate()) - before
    assert thread.name == "mindspeed_moe telemetry"
    lifetime.end()
    assert not thread.is_alive()


def test_a_forked_child_writes_nothing():
    kept = Kept()
    outlet = Outlet(lambda: [kept])
    outlet.put([load(0)])
    child = os.fork()
    if child == 0:
        try:
            outlet.put([load(1)])
            outlet.close()
        finally:
            os._exit(7 if outlet._queue.qsize() > 1 else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    lifetime.end()
    assert kept.steps == [0]


def test_subscribers_get_every_record_until_they_leave():
    found: list[Any] = []
    leave = telemetry.subscribe(found.append)
    outlet = Outlet(lambda: [Subscribers()])
    outlet.put([load(0), load(0, layer=2)])
    lifetime.end()
    leave()
    leave()
    outlet.put([load(1)])
    lifetime.end()
    assert [(one["step"], one["layer"], one["tokens"], one["experts"]) for one in found] == [
        (0, 1, [0, 1, 2, 3], 4),
        (0, 2, [0, 1, 2, 3], 4),
    ]


def test_a_subscriber_that_raises_is_called_no_more(caplog: pytest.LogCaptureFixture):
    calls, good = [], []

    def bad(record: Any) -> None:
        calls.append(record)
        raise ValueError("mine")

    leaves = [telemetry.subscribe(bad), telemetry.subscribe(good.append)]
    outlet = Outlet(lambda: [Subscribers()])
    for step in range(3):
        outlet.put([load(step)])
    lifetime.end()
    for leave in leaves:
        leave()
    assert len(calls) == 1
    assert [one["step"] for one in good] == [0, 1, 2]
    assert "is called no more" in caplog.text


def test_tensorboard_gets_scalars_from_megatrons_writer(monkeypatch: pytest.MonkeyPatch):
    scalars: list[Any] = []
    module: Any = ModuleType("megatron.training.global_vars")
    module.get_tensorboard_writer = lambda: SimpleNamespace(add_scalar=lambda *one: scalars.append(one))
    monkeypatch.setitem(__import__("sys").modules, "megatron.training.global_vars", module)
    TensorBoard().write([one_load(5)])
    assert scalars == [
        ("moe_load/layer_1/imbalance", 2.0, 5),
        ("moe_load/layer_1/most_tokens", 3, 5),
        ("moe_load/layer_1/sent_bytes", 192, 5),
        ("moe_load/layer_1/dropped", 0, 5),
    ]
    module.get_tensorboard_writer = lambda: None  # all ranks but one
    TensorBoard().write([one_load(6)])
    assert len(scalars) == 4


def test_tensorboard_without_megatrons_training_is_told_once(caplog: pytest.LogCaptureFixture):
    for step in range(3):
        TensorBoard().write([one_load(step)])
    assert len(caplog.records) == 1
    assert "megatron.training.global_vars is not loaded" in caplog.text
