"""The simulated HCCL under the real torch_npu: results, errors, faults and what stays behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ascend_sim import environment

WORKER = Path(__file__).with_name("hccl_worker.py")
REPOSITORY = Path(__file__).resolve().parents[3]
SHARED_MEMORY = Path("/dev/shm")


@dataclass
class Rank:
    """How one process of a launch ended."""

    code: int
    output: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def left_behind(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Segments in shared memory that these processes made; their names hold the process id."""
    return [p.name for made in processes for p in SHARED_MEMORY.glob(f"ascend_sim_hccl_*_{made.pid}_*")]


def launch(
    scenario: str, world: int = 2, *, fault: str | None = None, limit_s: float = 1800, **extra: str
) -> list[Rank]:
    """Runs a scenario of hccl_worker.py on `world` processes; no shared memory may be left after it."""
    variables = environment(
        npus=world, fault=fault, device_memory=extra.pop("device_memory", None), base={**os.environ, **extra}
    )
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    variables |= {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), scenario],
            env={**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    ended = []
    deadline = time.monotonic() + limit_s
    try:
        for process in processes:
            output, _ = process.communicate(timeout=max(1, deadline - time.monotonic()))
            ended.append(Rank(process.returncode, output))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert left_behind(processes) == []
    return ended


def all_done(ranks: list[Rank], scenario: str) -> None:
    for number, rank in enumerate(ranks):
        assert rank.code == 0, f"rank {number} ended with {rank.code}:\n{rank.output}"
        assert f"done {scenario}" in rank.output, f"rank {number} ended with {rank.code}:\n{rank.output}"


@pytest.mark.parametrize("world", [2, 4])
def test_collectives(world: int) -> None:
    """Every collective, type and reduction, groups and ledger; slots of 4 KiB make many rounds."""
    ranks = launch("collectives", world, ASCEND_SIM_HCCL_SLOT_KB="4", HCCL_BUFFSIZE="2")
    all_done(ranks, "collectives")


def test_failing_calls() -> None:
    all_done(launch("failing_calls", TASK_QUEUE_ENABLE="0", HCCL_BUFFSIZE="2"), "failing_calls")


def test_mismatch_is_reported_on_both_ranks() -> None:
    all_done(launch("mismatch", TORCH_HCCL_ASYNC_ERROR_HANDLING="0"), "mismatch")


def test_late_rank_and_large_messages() -> None:
    ranks = launch("late", fault="rank_late=1:2.5")
    all_done(ranks, "late")
    for rank in ranks:
        took = float(rank.output.rsplit("took ", 1)[1].split()[0])
        assert took >= 2.5, rank.output


def test_missing_rank_is_named() -> None:
    here, missing = launch("missing", TORCH_HCCL_ASYNC_ERROR_HANDLING="0", ASCEND_SIM_HCCL_TIMEOUT="2")
    all_done([here], "missing")
    # torch_npu 2.7 and 2.10 ask a communicator for errors whatever that variable says, and end the rank that slept.
    assert missing.code == 0 or "got ERROR via HcclGetCommAsyncError" in missing.output, missing.output


def test_dying_rank_ends_the_others_through_the_watchdog() -> None:
    ranks = launch("dies_with_watchdog", fault="rank_dies=1:3")
    assert ranks[0].code != 0, ranks[0].output
    assert "rank 1 has died" in ranks[0].output, ranks[0].output
    assert ranks[1].code == -9, ranks[1].output
