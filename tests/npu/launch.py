"""Run a job on several ranks of the simulated Ascend device, one process a rank, and bring back what each found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]


def run_ranks(
    job: str,
    ranks: int,
    folder: Path,
    *,
    device: str = "npu",
    arguments: dict[str, Any] | None = None,
    timeout_s: float = 1800,
    **sim: Any,
) -> list[Any]:
    """Run `npu.worker` with the named job on `ranks` simulated devices; returns each rank's result, in rank order.

    device: npu, or cpu for what the simulation is compared with. sim: what tests.ascend_sim.launching.environment
    takes (seed, delay_us, fault ...).
    Raises AssertionError with a rank's output when it fails, or when the time is over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    variables = VARIABLES[device](ranks, sim)
    variables["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent), variables.get("PYTHONPATH", "")])
    variables["OMP_NUM_THREADS"] = "1"
    variables["TORCHDYNAMO_DISABLE"] = "1"  # 0.18 and later compile small functions; the simulation has no compiler
    task = {"job": job, "world_size": ranks, "device": device, "folder": str(folder), "arguments": arguments or {}}
    processes, logs = [], []
    for rank in range(ranks):
        log = (folder / f"rank{rank}.log").open("w")
        logs.append(log)
        command = [sys.executable, "-m", "npu.worker", json.dumps({**task, "rank": rank})]
        processes.append(subprocess.Popen(command, cwd=TESTS, env=variables, stdout=log, stderr=subprocess.STDOUT))
    deadline = time.monotonic() + timeout_s
    try:
        while any(process.poll() is None for process in processes):
            failed = [rank for rank, process in enumerate(processes) if process.poll()]
            assert not failed, f"rank {failed[0]} of job {job} failed:\n{_tail(folder, failed[0])}"
            assert time.monotonic() < deadline, f"job {job} not done in {timeout_s} s:\n" + "\n".join(
                _tail(folder, rank) for rank in range(ranks)
            )
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for log in logs:
            log.close()
    for rank, process in enumerate(processes):
        assert process.returncode == 0, f"rank {rank} of job {job} failed:\n{_tail(folder, rank)}"
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]


def _simulated(ranks: int, sim: dict[str, Any]) -> dict[str, str]:
    from tests.ascend_sim.launching import environment

    return environment(npus=ranks, **sim)


def _plain(ranks: int, sim: dict[str, Any]) -> dict[str, str]:
    return {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}


VARIABLES = {"npu": _simulated, "cpu": _plain}


def _tail(folder: Path, rank: int) -> str:
    return f"--- rank {rank}\n" + "\n".join((folder / f"rank{rank}.log").read_text().splitlines()[-40:])
