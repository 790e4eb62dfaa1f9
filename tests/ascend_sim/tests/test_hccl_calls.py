"""The simulated libhccl called directly: ranks that do not agree, and calls that torch_npu does not make."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.ascend_sim import environment

WORKER = Path(__file__).with_name("hccl_calls_worker.py")
SHARED_MEMORY = Path("/dev/shm")
INTERNAL_ERROR, TASK_TIMEOUT = 507899, 107020  # what the stream returns
BAD_PARAMETER, NULL_POINTER, INTERNAL, NOT_SUPPORTED, TIMEOUT, REMOTE = 1, 2, 4, 5, 9, 21  # what HCCL returns


def left_behind(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Segments in shared memory that these processes made; their names hold the process id."""
    return [p.name for made in processes for p in SHARED_MEMORY.glob(f"ascend_sim_hccl_*_{made.pid}_*")]


def start(scenario: str, folder: Path, world: int, extra: dict[str, str]) -> list[subprocess.Popen[str]]:
    variables = environment(npus=world) | extra
    variables.pop("RANK", None)
    return [
        subprocess.Popen(
            [sys.executable, str(WORKER), scenario, str(rank), str(world), str(folder)],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def run(scenario: str, folder: Path, world: int = 2, **extra: str) -> list[dict[str, Any]]:
    """The RESULT of every rank; {} for a rank that was killed."""
    processes = start(scenario, folder, world, extra)
    results = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=1800)
            assert process.returncode in (0, -9), errors
            results.append(json.loads(output.split("RESULT ", 1)[1]) if process.returncode == 0 else {})
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert left_behind(processes) == []
    return results


# What both ranks must read: the two sides, each with its own words.
BOTH = {
    "operation": (
        "rank 0: HcclAllReduce number 2, count 4, int32, sum",
        "rank 1: HcclAllGather number 2, count 4, int32",
    ),
    "count": ("rank 0: HcclAllReduce number 2, count 4,", "rank 1: HcclAllReduce number 2, count 5,"),
    "dtype": (
        "rank 0: HcclAllReduce number 2, count 4, int32",
        "rank 1: HcclAllReduce number 2, count 4, float32",
    ),
    "size": ("count 4, int32", "count 2, int64"),
    "reduction": ("int32, sum", "int32, max"),
    "root": (
        "rank 0: HcclBroadcast number 2, count 4, int32, root 0",
        "rank 1: HcclBroadcast number 2, count 4, int32, root 1",
    ),
    "uneven": (
        "rank 1 sends 16 bytes to rank 0, which expects 12",
        "rank 1: HcclAlltoAllV number 2, send counts [4, 0]",
        "rank 0: HcclAlltoAllV number 2, send counts [1, 2], receive counts [1, 3]",
    ),
    "order": ("rank 0: HcclAllReduce number 2", "rank 1: HcclBarrier number 2"),
    "send_length": ("rank 0 sends 4 int32 to rank 1", "rank 1 receives 5 int32 from rank 0"),
    "both_send": ("rank 0: HcclSend (sends 4 int32 to rank 1)", "rank 1: HcclSend (sends 4 int32 to rank 0)"),
    "both_receive": ("rank 0: HcclRecv (receives 4 int32 from rank 1)", "rank 1: HcclRecv (receives 4"),
    "send_and_collective": (
        "rank 0: HcclSend (sends 4 int32 to rank 1)",
        "rank 1: HcclAllReduce number 2, count 4",
    ),
}


@pytest.mark.parametrize("kind", BOTH)
def test_ranks_that_do_not_agree(kind: str, tmp_path: Path) -> None:
    results = run(kind, tmp_path)
    for result in results:
        assert result["code"] == INTERNAL_ERROR, result
        assert result["async"] == INTERNAL, result
        assert "The real HCCL would hang here" in result["message"], result
        for words in BOTH[kind]:
            assert words in result["message"], result
        assert result["seconds"] < 900, f"they hung: {result}"


def test_circle_of_three_ranks(tmp_path: Path) -> None:
    for result in run("circle_of_three", tmp_path, 3):
        assert result["async"] == INTERNAL, result
        for rank in range(3):
            assert f"rank {rank}: HcclRecv (receives 4 int32 from rank {(rank + 1) % 3})" in result["message"], result


def test_rank_that_never_comes(tmp_path: Path) -> None:
    waiting, absent = run("never_comes", tmp_path, ASCEND_SIM_HCCL_TIMEOUT="0.5")
    assert waiting["code"] == TASK_TIMEOUT, waiting
    assert waiting["async"] == TIMEOUT, waiting
    assert "rank 1 did not arrive within 0.5 s at HcclAllReduce number 2" in waiting["message"], waiting
    assert "rank 1: HcclAllGather number 1, count 4, int32 (its last one, ended)" in waiting["message"], waiting
    assert absent["code"] == 0, absent
    assert absent["async"] == TIMEOUT, absent


def test_exec_timeout_of_the_real_one_counts(tmp_path: Path) -> None:
    waiting, _ = run("never_comes", tmp_path, HCCL_EXEC_TIMEOUT="1")
    assert "did not arrive within 1 s" in waiting["message"], waiting


def test_rank_that_destroys_the_communicator(tmp_path: Path) -> None:
    waiting, _ = run("destroys", tmp_path)
    assert waiting["async"] == REMOTE, waiting
    assert "rank 1 has destroyed the communicator" in waiting["message"], waiting


def test_rank_that_dies(tmp_path: Path) -> None:
    waiting, dead = run("count", tmp_path, ASCEND_SIM_FAULT="rank_dies=1:2")
    assert dead == {}
    assert waiting["async"] == REMOTE, waiting
    assert "rank 1 has died" in waiting["message"], waiting


def test_calls_that_torch_npu_does_not_make(tmp_path: Path) -> None:
    first, second = run("correct", tmp_path)
    shared = {"sum": [1], "gathered": [0, 1], "size": 2, "named": True}
    assert first == shared | {
        "all_to_all_vc": [0],
        "scatter": [5, 6],
        "own": [0] * 3,
        "other": [1] * 3,
        "rank": 0,
    }
    expected = {
        "all_to_all_vc": [1, 2, 10, 11, 12],
        "scatter": [7, 8],
        "own": [1] * 3,
        "other": [0] * 3,
        "rank": 1,
    }
    assert second == shared | expected


def test_wrong_arguments(tmp_path: Path) -> None:
    expected = {
        "null communicator": (NULL_POINTER, "the communicator is a null pointer"),
        "unknown communicator": (BAD_PARAMETER, "does not exist or has been destroyed"),
        "null buffer": (NULL_POINTER, "the send buffer is a null pointer"),
        "host buffer": (BAD_PARAMETER, "the send buffer is host memory"),
        "data type": (BAD_PARAMETER, "no data type 99"),
        "reduction": (BAD_PARAMETER, "no reduction 9"),
        "root": (BAD_PARAMETER, "the root is rank 7"),
        "itself": (BAD_PARAMETER, "itself outside a group"),
        "group end": (BAD_PARAMETER, "without HcclGroupStart"),
        "all-to-all counts": (BAD_PARAMETER, "sends 4 elements to every rank but receives 2"),
        "root information": (BAD_PARAMETER, "was not made by the simulated HcclGetRootInfo"),
        "rank": (BAD_PARAMETER, "rank 2 of 2 ranks"),
        "empty configuration": (BAD_PARAMETER, "HcclCommConfigInit"),
        "buffer of 0 MB": (BAD_PARAMETER, "hcclBufferSize is 0"),
    }
    for result in run("wrong_arguments", tmp_path):
        assert result.keys() == expected.keys()
        for name, (code, words) in expected.items():
            assert result[name][0] == code, (name, result[name])
            assert words in result[name][1], (name, result[name])


@pytest.mark.parametrize(
    "variable", ["ASCEND_SIM_HCCL_TIMEOUT", "HCCL_EXEC_TIMEOUT", "HCCL_BUFFSIZE", "ASCEND_SIM_HCCL_SLOT_KB"]
)
def test_setting_that_does_not_parse(variable: str, tmp_path: Path) -> None:
    process = start("correct", tmp_path, 1, {variable: "soon"})[0]
    _, errors = process.communicate(timeout=1800)
    assert process.returncode != 0, errors
    assert f'{variable} is "soon", but must be a number from' in errors, errors


def test_ranks_that_count_differently(tmp_path: Path) -> None:
    results = run("joins_with_other_world", tmp_path)
    texts = [result["message"] for result in results]
    assert all(result["code"] == BAD_PARAMETER for result in results), results
    assert any("another rank joined it with" in text for text in texts), texts


def test_rank_that_joins_twice(tmp_path: Path) -> None:
    results = run("joins_twice", tmp_path, HCCL_CONNECT_TIMEOUT="1")
    assert sorted(result["code"] for result in results) == [BAD_PARAMETER, TIMEOUT], results
    assert any("rank 0 joins the communicator twice" in result["message"] for result in results), results


def test_abandoned_shared_memory_is_removed(tmp_path: Path) -> None:
    """A launch killed while its ranks came together leaves a segment; the next launch clears it away."""
    process = start("correct", tmp_path, 2, {})
    process[1].kill()
    process[1].wait()
    deadline = time.monotonic() + 600
    while not left_behind(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    process[0].kill()
    process[0].wait()
    assert left_behind(process) != []
    following = tmp_path / "next"
    following.mkdir()
    run("correct", following)
    assert left_behind(process) == []


def test_no_room_in_shared_memory(tmp_path: Path) -> None:
    """Stands in for a full /dev/shm: no file of this process may grow beyond 64 KiB."""
    limit = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [sys.executable, str(WORKER), "correct", "0", "1", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-c", limit, *command], env=environment(npus=1), stderr=subprocess.PIPE, text=True
    )
    _, errors = process.communicate(timeout=1800)
    assert process.returncode != 0, errors
    assert "no room in /dev/shm for" in errors, errors
    assert left_behind([process]) == []
