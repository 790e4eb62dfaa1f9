"""The real torch_npu on the simulated runtime: what is late is seen late, counts are exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.ascend_sim.tests.running import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("timeline")


@pytest.fixture(scope="module")
def seen(folder: Path) -> dict[str, Any]:
    ended = run("runtime_torch.py", str(folder / "trace"), trace=folder / "process.json", variables={"RANK": "3"})
    assert ended.returncode == 0, ended.stdout + ended.stderr
    document: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return document


def test_unsynchronised_read_sees_poison_with_every_seed(seen: dict[str, Any]) -> None:
    assert seen["late"] == [[True, True]] * 20


def test_side_stream_that_waits_is_right_with_every_seed(seen: dict[str, Any]) -> None:
    assert seen["side stream waits"] == [True] * 20


def test_side_stream_that_does_not_wait_is_wrong_with_every_seed(seen: dict[str, Any]) -> None:
    assert seen["side stream does not wait"] == [False] * 20


def test_event_on_the_wrong_stream_is_wrong_with_every_seed(seen: dict[str, Any]) -> None:
    assert seen["event on the wrong stream"] == [False] * 20


def test_counting_counts_nothing_itself(seen: dict[str, Any]) -> None:
    assert seen["nothing"] == []


def test_counts_are_exact_for_work_still_in_torch_npus_queue(seen: dict[str, Any]) -> None:
    assert seen["300 copies"] == [300, 300, 300 * 4096]


def test_every_sort_of_call_is_counted(seen: dict[str, Any]) -> None:
    mixed = seen["mixed"]
    assert mixed["kernel_count"] == 2, mixed["kernels"]
    assert mixed["event_records"] == mixed["event_waits"] == mixed["event_synchronizations"] == 1
    # One by hand, and one before each of the two synchronous copies.
    assert mixed["stream_synchronizations"] == 3
    assert mixed["device_synchronizations"] == 1
    assert mixed["copies"] == [
        {"direction": "device_to_host", "asynchronous": False, "pinned": False, "count": 1, "bytes": 4096},
        {"direction": "host_to_device", "asynchronous": False, "pinned": False, "count": 1, "bytes": 4096},
    ]
    assert mixed["device_allocations"] == []
    assert mixed["host_allocations"] == 0
    assert seen["table"].startswith("simulated")
    assert "event synchronizations" in seen["table"]


def test_pageable_copy_waits_and_is_counted_as_pageable(seen: dict[str, Any]) -> None:
    assert seen["pageable"] == [True, 1, 0]


def test_elapsed_time_of_events(seen: dict[str, Any]) -> None:
    between, around = seen["elapsed ms"]
    assert 0 < between < around
    assert "enable_timing" in seen["elapsed without timing"]
    assert seen["never recorded"] == [True, None]


def test_out_of_memory_is_torchs_own_error(seen: dict[str, Any]) -> None:
    assert "out of memory" in seen["out of memory"]
    assert seen["inside"] == "device_memory=64MiB"
    assert seen["after"] == ""
    assert seen["memory again"] == 128 << 20


def test_pinned_allocations_are_counted(seen: dict[str, Any]) -> None:
    assert seen["pinned allocation"] == [1, 64 << 20]


def test_faults_that_do_not_parse_say_what_is_allowed(seen: dict[str, Any]) -> None:
    zero, no_seconds, size, twice, unknown = seen["fault errors"]
    assert 'hccl_error_at is "0"; allowed: a whole number from 1' in zero
    assert "RANK:SECONDS" in no_seconds
    assert "64MiB" in size
    assert "twice" in twice
    assert 'no fault "speed"' in unknown
    assert "hccl_error_at" in unknown
    assert seen["seed"].startswith("seed is -1")


def _events(path: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return [event for event in events if event["ph"] == "X"]


def test_timeline_of_a_block(seen: dict[str, Any], folder: Path) -> None:
    names = [event["name"] for event in _events(folder / "trace.block")]
    assert any(name.startswith("aclnnAdd") for name in names)
    assert len(names) < len(_events(folder / "trace.all"))
    assert all(event["dur"] >= 0 and event["ts"] > 0 for event in _events(folder / "trace.all"))


def test_timeline_of_a_process_carries_its_rank(seen: dict[str, Any], folder: Path) -> None:
    assert len(_events(folder / "process.rank3.json")) >= len(_events(folder / "trace.all"))


def test_pinned_allocation_that_fails() -> None:
    program = """
import torch
x = torch.ones(4, device="npu")
try:
    target = torch.empty(4, pin_memory=True)
except RuntimeError as error:
    print("refused:", error)
else:
    print("got", target.data_ptr())
"""
    ended = run(program, fault="pinned_alloc_fails_at=1")
    assert ended.returncode == 0, ended.stderr
    # torch_npu 2.13 itself raises nothing when aclrtMallocHost fails: the tensor has no memory.
    assert ended.stdout.splitlines()[-1].startswith(("refused: ", "got 0"))
