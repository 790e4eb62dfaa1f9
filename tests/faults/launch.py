"""Runs a scenario on its ranks, and tells how each of them ended and what is left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from faults.scenarios import NPU, Scenario, scenario_folder
from faults.training import RANKS
from faults.worker import run_rank

TESTS = Path(__file__).resolve().parents[1]
PATIENCE_S = 120.0  # for a run as a whole; importing takes most of it on a busy machine
_PRELOADED = (
    "torch", "torch._dynamo", "torch.distributed", "torch.utils.data", "numpy", "pydantic", "yaml",
    "megatron.core.parallel_state", "megatron.core.models.gpt.gpt_layer_specs",
    "megatron.core.transformer.moe.moe_layer", "distributed.layers", "mindspeed_moe.verify.verified",
    "mindspeed_moe.telemetry.jsonl",
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """One rank. code: its exit status, negative for a signal. log: what it wrote. at: when it had ended."""

    code: int
    log: str
    at: float

    @property
    def last_words(self) -> str:
        """The exception that ended it, or ""."""
        lines = [line for line in self.log.splitlines() if re.match(r"[A-Za-z_.]*(Error|Exception|Interrupt)\b", line)]
        return lines[-1] if lines else ""


def line_that_says(wanted: str, one: Ended) -> str | None:
    """Return the line in which a rank says what a pattern describes; "" where it must say nothing, and does not."""
    if wanted == "^$":
        return None if one.last_words else ""
    if re.search(wanted, one.last_words):
        return one.last_words
    return next((line for line in one.log.splitlines() if re.search(wanted, line)), None)


@dataclass(frozen=True)
class Outcome:
    """ranks: in order. seconds: from the fault to each rank's end. losses: by rank, of those that came so far.

    steps: that each rank had done when it ended. records: (step, rank) of all telemetry lines. broken: lines that are
    none, and files that were not finished. dumps: names.
    """

    ranks: tuple[Ended, ...]
    seconds: tuple[float, ...]
    losses: tuple[list[str] | None, ...]
    steps: tuple[int, ...]
    records: tuple[tuple[int, int], ...]
    broken: tuple[str, ...]
    dumps: tuple[str, ...]


def run(scenario: Scenario, root: Path) -> Outcome:
    """Run a scenario; ranks that do not end are killed, which shows in their code."""
    folder = scenario_folder(root, scenario)
    folder.mkdir(parents=True)
    tasks = [
        {"device": scenario.device, "name": scenario.name, "rank": rank, "folder": str(folder)} for rank in range(RANKS)
    ]
    start = _simulated if scenario.device == NPU else _forked
    ended = _wait([start(task, scenario) for task in tasks])
    struck = [float(path.read_text()) for path in folder.glob("rank*.fault")]
    records, broken = _telemetry(folder)
    return Outcome(
        ranks=tuple(
            Ended(code, (folder / f"rank{rank}.log").read_text(errors="replace"), at)
            for rank, (code, at) in enumerate(ended)
        ),
        seconds=tuple(at - min(struck, default=0.0) for _, at in ended),
        losses=tuple(_read(folder / f"rank{rank}.losses") for rank in range(RANKS)),
        steps=tuple(int((_text(folder / f"rank{rank}.steps")) or 0) for rank in range(RANKS)),
        records=records,
        broken=(*broken, *(path.name for path in folder.rglob("*.part"))),
        dumps=tuple(sorted(path.name for path in folder.glob("dumps/*.npz"))),
    )


@dataclass(frozen=True)
class _Process:
    code: Callable[[], int | None]
    kill: Callable[[], None]


def _forked(task: dict[str, Any], scenario: Scenario) -> _Process:
    context = get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    process = context.Process(target=run_rank, args=(task,))
    process.start()
    return _Process(lambda: process.exitcode, process.kill)


def _simulated(task: dict[str, Any], scenario: Scenario) -> _Process:
    from tests.ascend_sim.launching import environment

    variables = environment(npus=RANKS) | scenario.variables
    variables["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent), variables.get("PYTHONPATH", "")])
    variables |= {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "RANK": str(task["rank"])}
    process = subprocess.Popen([sys.executable, "-m", "faults.worker", json.dumps(task)], cwd=TESTS, env=variables)
    return _Process(process.poll, process.kill)


def _wait(processes: list[_Process]) -> list[tuple[int, float]]:
    deadline = time.monotonic() + PATIENCE_S
    ended: dict[int, tuple[int, float]] = {}
    while len(ended) < len(processes):
        for number, process in enumerate(processes):
            code = process.code()
            if number not in ended and code is not None:
                ended[number] = code, time.time()
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.02)
    return [ended[number] for number in range(len(processes))]


def _telemetry(folder: Path) -> tuple[tuple[tuple[int, int], ...], tuple[str, ...]]:
    records, broken = [], []
    for path in sorted(folder.glob("telemetry/*.jsonl")):
        text = path.read_text()
        if not text.endswith("\n"):
            broken.append(f"{path.name}: its last line has no end")
        for line in text.splitlines():
            try:
                found = json.loads(line)
            except ValueError:
                broken.append(f"{path.name}: {line[:40]}")
                continue
            if found["kind"] == "load":
                records.append((found["step"], int(path.name[4:9])))
    return tuple(records), tuple(broken)


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


KILLED = -signal.SIGKILL
