"""The bench of accelerators, run on host tensors: every step but the device itself."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mindspeed_moe.bench import accelerated
from mindspeed_moe.bench.accelerated import (
    BUSY,
    IDLE,
    AcceleratorResult,
    Bench,
    DeviceTime,
    HostTime,
    measure_accelerated,
)
from mindspeed_moe.bench.contestants import assemble
from mindspeed_moe.bench.devices import DEVICES, Clockwork
from mindspeed_moe.bench.ledger import KERNELS, count_calls, recorder
from mindspeed_moe.bench.network import HOST
from mindspeed_moe.bench.profile import read_trace
from mindspeed_moe.bench.report import Report
from mindspeed_moe.bench.shapes import Shape
from mindspeed_moe.bench.timing import Spread, nothing
from mindspeed_moe.bench.world import one_process_world
from mindspeed_moe.devices import cpu
from mindspeed_moe.environment import probe_environment
from mindspeed_moe.errors import BenchError
from mindspeed_moe.preprocess import packed
from mindspeed_moe.tables import render

STREAMS = SimpleNamespace(
    Event=cpu.HostEvent, Stream=cpu.HostStream, synchronize=cpu.synchronize, current_stream=cpu.current_stream
)


@contextlib.contextmanager
def host_as_accelerator():
    """A bench whose device is the host, so that a copy on the device and a collective of one rank are gloo's."""
    with assemble(probe_environment()) as team, one_process_world(DEVICES["cpu"]):
        yield Bench(replace(team, on_host=team.classes["packed"]), Clockwork(STREAMS), nothing, 10.0, 0.0, None)


@pytest.mark.megatron
@pytest.mark.once
@pytest.mark.parametrize("mode", ["dropless", "drop", "pad"])
@pytest.mark.parametrize(("ep", "tp"), [(1, 1), (4, 1), (2, 2)])
def test_every_mode_and_layout(mode, ep, tp):
    with host_as_accelerator() as bench:
        result = measure_accelerated(bench, Shape(8, ep, tp, 30, 2, mode), 2, 0)
    data = json.loads(json.dumps(result.to_dict()))
    assert list(data["times"]) == [IDLE, BUSY]
    for times in data["times"].values():
        assert list(times) == ["stock", "reference", "packed"]
        for one in times.values():
            assert one["elapsed"]["p50"] >= one["host"]["p50"] > 0
            assert one["wait"]["p50"] >= 0
    if mode == "pad":
        assert data["times"][IDLE]["stock"]["wait"]["p50"] == 0, "nothing is copied, so nobody waits"
    assert set(data["on_device"]) == {"stock", "reference", "packed"}


@pytest.mark.megatron
@pytest.mark.once
def test_a_difference_from_the_cpu_ends_the_bench(monkeypatch):
    real = packed.split_plan
    calls = []

    def wrong_the_second_time(*arguments):
        calls.append(arguments)
        plan = real(*arguments)
        return plan._replace(input_splits=plan.input_splits + 1) if len(calls) == 2 else plan

    with host_as_accelerator() as bench:
        monkeypatch.setattr(packed, "split_plan", wrong_the_second_time)
        with pytest.raises(BenchError, match="packed on the cpu leaves input_splits"):
            measure_accelerated(bench, Shape(8, 4, 1, 30, 2, "dropless"), 1, 0)


class FakeRecorder:
    """Stands for the simulation's: yields rows that were written beforehand."""

    def __init__(self, *rows):
        self.left = list(rows)

    @contextlib.contextmanager
    def __call__(self):
        rows = self.left.pop(0)
        yield SimpleNamespace(rows=lambda: rows)


@pytest.mark.megatron
@pytest.mark.once
def test_a_ledger_has_no_times():
    record = FakeRecorder([("kernel a", 4, None), ("kernel b", 2, None)], [("kernel a", 1, None)], [("copy", 1, 64)])
    with host_as_accelerator() as bench:
        result = count_calls(bench.team, bench.clockwork, record, Shape(8, 4, 1, 30, 2, "dropless"), 0)
    assert result.ledger["stock"][0] == (KERNELS, 6, None)
    assert result.ledger["packed"] == [("copy", 1, 64)]
    report = Report({}, [result], [])
    assert json.loads(json.dumps(report.to_dict()))["unit"] is None
    text = render(*report.parts())
    assert "simulated" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["kernels", "6", "1", "0"] in rows
    assert ["kernel", "b", "2", "0", "0"] in rows
    assert ["copy", "0", "0", "1", "(64)"] in rows


@pytest.mark.parametrize("name", ["nothing.of.that.name:record", "json:nothing", "", "json"])
def test_an_unknown_recorder(name):
    with pytest.raises(BenchError, match="--ledger"):
        recorder(name)


def test_a_recorder_by_name():
    assert recorder("json:dumps") is json.dumps


def trace(*events):
    return [{"cat": category, "name": name, "dur": duration} for category, name, duration in events]


def test_a_profile_is_added_up_and_divided_by_the_calls():
    events = trace(
        ("kernel", "reduce", 3.0),
        ("kernel", "reduce", 5.0),
        ("kernel", "nccl", 10.0),
        ("gpu_memcpy", "Memcpy DtoH", 2.0),
        ("gpu_memset", "Memset", 1.0),
        ("cuda_runtime", "cudaLaunchKernel", 4.0),
        ("cuda_runtime", "cudaLaunchKernel", 4.0),
        ("cuda_runtime", "cudaDeviceSynchronize", 90.0),
        ("gpu_user_annotation", "mindspeed_moe.counts", 50.0),
        ("cpu_op", "aten::sum", 50.0),
    )
    seen = read_trace([*events, {"ph": "M", "name": "process_name"}], 2)
    assert seen.device_us == 10.5
    assert (seen.kernels, seen.copies, seen.fills) == (1.5, 0.5, 0.5)
    assert seen.by_name["reduce"] == (1.0, 4.0)
    assert seen.runtime == {"cudaLaunchKernel": 1.0}


def test_a_profile_in_which_the_device_does_not_show():
    assert read_trace(trace(("cpu_op", "aten::sum", 1.0), ("cuda_runtime", "cudaFree", 1.0)), 1) is None


def host_time(host, wait):
    return HostTime(*(Spread(one - 1, one, one + 1) for one in (host + wait, host, wait)))


def accelerator_result(**changes):
    values = {
        "shape": Shape(8, 4, 1, 9, 2, "dropless"),
        "device": "cuda",
        "rounds": 7,
        "seed": 3,
        "latency_us": 20.0,
        "busy_us": 1500.0,
        "times": {
            IDLE: {"stock": host_time(90, 40), "reference": host_time(60, 30), "packed": host_time(30, 20)},
            BUSY: {"stock": host_time(100, 1400), "reference": host_time(60, 1400), "packed": host_time(25, 1400)},
        },
        "on_device": {
            "stock": DeviceTime(Spread(50, 51, 52), 7, 7, None),
            "reference": DeviceTime(None, 0, 7, None),
            "packed": DeviceTime(Spread(20, 21, 22), 7, 7, read_trace(trace(("kernel", "reduce", 3.0)), 1)),
        },
    }
    return AcceleratorResult(**{**values, **changes})


def test_report_of_one_shape():
    text = render(*Report({"device": "cuda: Some GPU"}, [accelerator_result()], []).parts())
    rows = [line.split() for line in text.splitlines() if line.lstrip().startswith(("packed", "reference"))]
    assert ["packed", "idle", "host", "until", "free", "to", "launch", "29.0", "30.0", "31.0", "3.00"] in rows
    assert ["packed", "busy", "host", "until", "free", "to", "launch", "24.0", "25.0", "26.0", "4.00"] in rows
    assert "latency 20 us" in text
    assert ["packed", "20.0", "21.0", "22.0", "7", "of", "7", "1", "0", "3.0"] in rows
    assert ["reference", *"---", "0", "of", "7", *("not", "measured") * 3] in rows


def test_report_of_a_sweep():
    other = accelerator_result(shape=Shape(16, 4, 1, 9, 2, "dropless"))
    text = render(*Report({}, [accelerator_result(), other], []).parts())
    assert text.count("30.0 (3.00) | 50.0 | 21.0") == 2
    assert "60.0 (1.50) | 90.0 | -" in text


def test_ratios_in_json():
    data = accelerator_result().to_dict()
    assert data["times"][IDLE]["packed"]["host_ratio_to_stock"] == 3
    assert data["times"][BUSY]["packed"]["host_ratio_to_stock"] == 4
    assert json.loads(json.dumps(data))["on_device"]["packed"]["launches"]["kernels"] == 1


def test_tokens_that_stand_for_other_ranks_have_the_right_number():
    rows = torch.arange(6.0).view(3, 2)
    for length in (0, 1, 3, 7, 9):
        output = torch.full((length, 2), -1.0)
        HOST.exchange_rows(output, rows)
        assert output.tolist() == [rows[at % 3].tolist() for at in range(length)]
    empty = torch.full((2, 2), -1.0)
    HOST.exchange_rows(empty, rows[:0])
    assert not empty.any()


def test_the_profiler_is_asked_only_where_it_knows_the_device():
    if torch.profiler.ProfilerActivity.CUDA in torch.profiler.supported_activities():
        pytest.skip("this torch can profile a GPU")
    assert accelerated.launches(Clockwork(STREAMS), nothing) is None
