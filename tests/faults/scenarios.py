"""The faults, as a table: how each is made, and what must come of it."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch.distributed as dist

from faults import living
from faults.training import AFTER, BEFORE, Training

CPU, NPU = "cpu", "npu"
NO_FAULT = "no fault"
FAULTY = 1  # the rank that the fault strikes
GRACE_S = 20  # that other ranks are given after a failed verification

Strike = Callable[[Training], None]


@dataclass(frozen=True)
class Scenario:
    """A fault. strike: makes it, on rank FAULTY after BEFORE steps; AFTER steps follow on both ranks. At once: before
    the first step, on both ranks. slow: not on every run; the same is tried on the cpu.

    ends: whether the run must end; else it must end well, with the losses of a run without fault.
    faulty, others: what a rank's last words must match, where the run ends. within_s: from the fault to the last end;
    far above what is seen, for a busy machine, and far below the group's timeout, which must not be what ends a run.
    everywhere: the fault strikes both ranks. group_timeout_s: of the process groups. dumps: how many are left.
    records: of telemetry, on the ranks that are struck, where they are not one for each step.
    store_on: the rank whose process hosts the store of the process groups, where it is not a file.
    """

    name: str
    device: str
    strike: Strike
    ends: bool
    faulty: str = ""
    others: str = ""
    within_s: float = 300
    everywhere: bool = False
    at_once: bool = False
    slow: bool = False
    group_timeout_s: float = 600
    dumps: int = 0
    records: int | None = None
    store_on: int | None = None
    warns: str = ""
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.device}: {self.name}"

    def run(self, training: Training) -> None:
        if self.at_once:
            self.strike(training)
        training.begin()
        training.steps(BEFORE)
        if self.at_once:
            training.mark()
        elif training.rank == FAULTY or self.everywhere:
            training.mark()
            self.strike(training)
        training.steps(AFTER)


# ------------------------------------------------------------------------------------------------- on the host


def _collective_fails(training: Training) -> None:
    mock.patch.object(dist, "all_to_all_single", side_effect=RuntimeError("the network is gone")).start()


def _dies(training: Training) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _late(training: Training) -> None:
    time.sleep(3)


def _never_comes(training: Training) -> None:
    time.sleep(10)
    os._exit(3)


def _terminated(training: Training) -> None:
    from mindspeed_moe.preprocess.exchange import AllToAll

    mock.patch.object(AllToAll, "run", side_effect=_terminate).start()


def _terminate(*given: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _terminated_with_a_handler(training: Training) -> None:
    """As under Megatron's `--exit-signal-handler`: the signal is noted, and training goes on to its next checkpoint."""
    from mindspeed_moe.preprocess.exchange import AllToAll

    signal.signal(signal.SIGTERM, lambda *given: print("SIGTERM noted", flush=True))
    run = AllToAll.run

    def terminate(exchange: AllToAll, *given: Any) -> Any:
        _terminate()
        return run(exchange, *given)

    mock.patch.object(AllToAll, "run", terminate).start()


def _disk_full(training: Training) -> None:
    from mindspeed_moe.telemetry import jsonl

    whole, calls = os.write, []

    def full(file: int, data: bytes) -> int:
        calls.append(file)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(file, data[:30])

    mock.patch.object(jsonl.os, "write", full).start()


def _no_folder(training: Training) -> None:
    training.telemetry.parent.mkdir(parents=True, exist_ok=True)
    training.telemetry.write_text("a file stands where the folder should be made")


def _wrong_splits(training: Training) -> None:
    from mindspeed_moe.preprocess import packed, packed_async

    for module in (packed, packed_async):
        right = module.split_plan

        def wrong(*given: Any, right: Any = right) -> Any:
            plan = right(*given)
            return plan._replace(input_splits=plan.input_splits + np.array([1, -1]))

        mock.patch.object(module, "split_plan", wrong).start()


def _wrong_splits_and_no_place(training: Training) -> None:
    training.dumps.write_text("a file stands where the folder should be made")
    _wrong_splits(training)


class _OnFullDisk(io.FileIO):
    def write(self, data: Any) -> int:
        super().write(bytes(data)[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _wrong_splits_and_a_full_disk(training: Training) -> None:
    from mindspeed_moe import files

    mock.patch.object(files, "open", _OnFullDisk, create=True).start()
    _wrong_splits(training)


_READ_ONLY = Path("/sys/kernel")  # nobody can write there, not even root


def _read_only_telemetry(training: Training) -> None:
    if training.rank == FAULTY:
        training.telemetry = _READ_ONLY


def _wrong_splits_and_a_read_only_folder(training: Training) -> None:
    training.dumps.symlink_to(_READ_ONLY)
    _wrong_splits(training)


# ----------------------------------------------------------------------------------- in the simulated runtime


def _simulated(fault: str) -> Strike:
    def strike(training: Training) -> None:
        from tests.ascend_sim.faults import set_faults

        set_faults(fault)

    return strike


def _pinned_exhausted(training: Training) -> None:
    """New layers need slots of their own, larger ones than torch has put by: there is no memory for them on one."""
    training.model, training.optimizer = training.build(experts=256)
    if training.rank == FAULTY:
        _simulated("pinned_alloc_fails_at=1")(training)


def _device_exhausted(training: Training) -> None:
    """A micro-batch that needs more than torch has put by."""
    training.tokens = 40_000
    _simulated("device_memory=1KiB")(training)


# What torch says of a rank that is gone: gloo, and HCCL as it is simulated.
_CLOSED = r"[Cc]onnection (closed by peer|reset by peer)|Broken pipe|Socket closed"
_GONE = r"rank 1 .*(ended|died|gone)|process .* ended|has ended"
_DIFFERENCE = (
    r"verification failed on rank 1, .*training step 3, micro-batch 0 .*input_splits\[0\]: found (\d+), expected (\d+)"
)
_NOT_WRITABLE = r"Read-only file system|Operation not permitted|Permission denied"

SCENARIOS = (
    Scenario(NO_FAULT, CPU, living.nothing, ends=False),
    Scenario("a collective fails on one rank", CPU, _collective_fails, True, r"the network is gone", _CLOSED),
    Scenario("a rank dies", CPU, _dies, True, r"^$", _CLOSED),
    Scenario("the rank dies that hosts the store", CPU, _dies, True, r"^$", _CLOSED, store_on=FAULTY),
    Scenario("a rank is 3 s late", CPU, _late, ends=False),
    Scenario(
        "a rank does not come within the group's timeout (6 s)",
        CPU, _never_comes, True, r"^$", rf"Timed out waiting|{_CLOSED}", group_timeout_s=6,
    ),
    Scenario("SIGTERM in the middle of preprocess", CPU, _terminated, True, r"^$", r"^$", everywhere=True),
    Scenario(
        "SIGTERM in the middle of preprocess, with a handler that lets training go on",
        CPU, _terminated_with_a_handler, False, everywhere=True, warns="SIGTERM noted",
    ),
    Scenario("the disk is full under telemetry", CPU, _disk_full, False, warns=r"No space left on device", records=3),
    Scenario(
        "telemetry's folder is read-only",
        CPU, _read_only_telemetry, False, at_once=True, warns=_NOT_WRITABLE, records=0,
    ),
    Scenario(
        "telemetry's folder cannot be made",
        CPU, _no_folder, False, at_once=True, everywhere=True, warns="File exists", records=0,
    ),
    Scenario("verification finds a difference", CPU, _wrong_splits, True, _DIFFERENCE, _DIFFERENCE, dumps=2),
    Scenario(
        "verification finds a difference on the rank that hosts the store",
        CPU, _wrong_splits, True, _DIFFERENCE, _DIFFERENCE, store_on=FAULTY, dumps=2,
    ),
    Scenario(
        "verification finds a difference, and no dump can be written",
        CPU, _wrong_splits_and_no_place, True, _DIFFERENCE + r".*no dump could be written", _DIFFERENCE,
    ),
    Scenario(
        "verification finds a difference, and the disk is full",
        CPU, _wrong_splits_and_a_full_disk, True, _DIFFERENCE + r".*no dump could be written.*No space left on device",
        _DIFFERENCE, dumps=1,
    ),
    Scenario(
        "verification finds a difference, and its folder is read-only",
        CPU, _wrong_splits_and_a_read_only_folder, True,
        _DIFFERENCE + rf".*no dump could be written.*({_NOT_WRITABLE})", _DIFFERENCE,
    ),
    Scenario("processes are forked after enable (data loader)", CPU, living.forks, False, everywhere=True),
    Scenario("new process groups after destroy_process_group", CPU, living.new_groups, False, everywhere=True),
    Scenario("a second model in the process", CPU, living.second_model, False, everywhere=True, records=9),
    Scenario(
        "a checkpoint saved with the plugin, loaded without it, and back",
        CPU, living.checkpoint, False, everywhere=True,
    ),
    Scenario(NO_FAULT, NPU, living.nothing, ends=False),
    Scenario("a collective fails on one rank", NPU, _simulated("hccl_error_at=1"), True, r"hccl", _GONE),
    Scenario("a rank dies", NPU, _simulated("rank_dies=1:1"), True, r"^$", _GONE),
    Scenario("a rank is 3 s late", NPU, _simulated("rank_late=1:3"), ends=False),
    Scenario(
        "pinned memory is exhausted",
        NPU, _pinned_exhausted, True, r"PreprocessError: no pinned host memory left", _GONE, everywhere=True,
    ),
    Scenario("device memory is exhausted", NPU, _device_exhausted, True, r"out of memory", _GONE),
    Scenario(
        "an event never completes (task limit 4 s)",
        NPU, _simulated("event_never_completes=1"), True, r"507014", r"error code is \d{6}",
        variables={"ASCEND_SIM_TASK_TIMEOUT_S": "4", "ASCEND_SIM_HCCL_TIMEOUT": "8"},
    ),
    Scenario("SIGTERM in the middle of preprocess", NPU, _terminated, True, r"^$", r"^$", everywhere=True),
    Scenario(
        "SIGTERM in the middle of preprocess, with a handler that lets training go on",
        NPU, _terminated_with_a_handler, False, everywhere=True, warns="SIGTERM noted",
    ),
    Scenario("new process groups after destroy_process_group", NPU, living.new_groups, False, everywhere=True),
    Scenario("processes are forked after enable (data loader)", NPU, living.forks, False, everywhere=True, slow=True),
    Scenario("a second model in the process", NPU, living.second_model, False, everywhere=True, slow=True, records=9),
    Scenario(
        "a checkpoint saved with the plugin, loaded without it, and back",
        NPU, living.checkpoint, False, everywhere=True, slow=True,
    ),
    Scenario("verification finds a difference", NPU, _wrong_splits, True, _DIFFERENCE, _DIFFERENCE, dumps=2),
)  # fmt: skip


def named(device: str, name: str) -> Scenario:
    """Return a scenario of the table."""
    return next(one for one in SCENARIOS if (one.device, one.name) == (device, name))


def scenario_folder(root: Path, scenario: Scenario) -> Path:
    """Return a folder for a scenario's files."""
    return root / re.sub(r"\W+", "-", scenario.id)
