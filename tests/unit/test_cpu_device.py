"""The stand-ins for torch.cuda on `device: cpu`."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from mindspeed_moe.devices import cpu


def test_an_event_measures_the_milliseconds_between(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.25])
    monkeypatch.setattr(cpu.time, "perf_counter", lambda: next(clock))
    start, end = cpu.HostEvent(enable_timing=True), cpu.HostEvent(enable_timing=True)
    start.record()
    end.record(cpu.current_stream())
    assert start.elapsed_time(end) == 250.0
    assert end.elapsed_time(start) == -250.0


def test_the_clock_of_events_runs_forward() -> None:
    events = [cpu.HostEvent() for _ in range(3)]
    for event in events:
        event.record()
    assert 0 <= events[0].elapsed_time(events[1]) <= events[0].elapsed_time(events[2])


def test_nothing_is_ever_pending() -> None:
    event, stream = cpu.HostEvent(), cpu.HostStream(device=0, priority=-1)
    assert event.query() is True
    assert stream.query() is True
    event.wait()
    event.wait(stream)
    event.synchronize()
    stream.wait_event(event)
    stream.wait_stream(cpu.current_stream())
    stream.synchronize()
    cpu.synchronize()
    cpu.set_device("cuda:3")


def test_a_stream_records_the_event_that_it_is_given_or_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu.time, "perf_counter", lambda: 5.0)
    given, stream = cpu.HostEvent(), cpu.HostStream()
    assert stream.record_event(given) is given
    new = stream.record_event()
    assert isinstance(new, cpu.HostEvent)
    assert new is not given
    assert given.elapsed_time(new) == 0.0


def test_there_is_one_current_stream() -> None:
    assert cpu.current_stream() is cpu.current_stream(0)
    with cpu.stream(cpu.HostStream()):
        assert cpu.current_stream() is cpu.current_stream()
    with cpu.stream(None):
        pass


def test_the_current_device_can_be_used_to_make_tensors() -> None:
    assert torch.empty(1, device=cpu.current_device()).device.type == "cpu"
    assert torch.zeros(2).to(cpu.current_device()).device.type == "cpu"


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((0,), {}), ((), {"device": 0, "non_blocking": True})])
def test_a_tensor_is_on_its_device_already(args: tuple[int, ...], kwargs: dict[str, int]) -> None:
    tensor = torch.ones(2, requires_grad=True)
    assert cpu.to_current_device(tensor, *args, **kwargs) is tensor


# ------------------------------------------------------------------------------------------------ random state


@pytest.fixture(autouse=True)
def _random_state() -> object:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def test_the_random_state_makes_the_round_trip() -> None:
    state = cpu.get_rng_state()
    first = torch.rand(4)
    assert not torch.equal(torch.rand(4), first)
    cpu.set_rng_state(state)
    assert torch.equal(torch.rand(4), first)


def test_the_random_state_is_a_copy() -> None:
    state = cpu.get_rng_state("cuda", clone=True, graph_safe=True)
    before = state.clone()
    torch.rand(4)
    assert torch.equal(state, before)
    assert not torch.equal(cpu.get_rng_state(), before)


def test_a_seed_gives_the_same_numbers() -> None:
    cpu.manual_seed(123)
    first = torch.rand(4)
    cpu.manual_seed(124)
    assert not torch.equal(torch.rand(4), first)
    cpu.manual_seed(123)
    assert torch.equal(torch.rand(4), first)
    torch.manual_seed(123)
    assert torch.equal(torch.rand(4), first)


def test_a_seed_touches_no_other_generator() -> None:
    random_state, numpy_state = random.getstate(), np.random.get_state()[1].copy()
    cpu.manual_seed(5)
    assert random.getstate() == random_state
    assert (np.random.get_state()[1] == numpy_state).all()


def test_a_state_of_another_device_argument_is_the_hosts() -> None:
    state = cpu.get_rng_state()
    first = torch.rand(1)
    cpu.set_rng_state(state, device=3, graph_safe=True)
    assert torch.equal(torch.rand(1), first)


# ------------------------------------------------------------------------------------------------ host copies


def test_a_host_tensor_becomes_numpy_when_it_is_wanted() -> None:
    tensor = torch.tensor([1, 2, 3])
    array = cpu.host_copy(tensor, as_numpy=True)
    assert isinstance(array, np.ndarray)
    assert array.tolist() == [1, 2, 3]
    assert cpu.host_copy(tensor) is tensor
    assert cpu.host_copy(tensor, record_stream=True) is tensor


@pytest.mark.parametrize("value", [None, 3, [1, 2], np.array([1])])
def test_what_is_no_tensor_passes_through(value: object) -> None:
    assert cpu.host_copy(value, as_numpy=True) is value
