"""Processes that live and die together: messages, failures, Ctrl-C, the end of the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mindspeed_moe.demo.processes import Processes, ProcessFailedError, Target

Tell = Callable[[Any], None]

# ------------------------------------------------------------------------------------------------ targets


def count_to(tell: Tell, rank: int, last: int) -> None:
    for number in range(last):
        tell((rank, number))


def fail_in(tell: Tell, rank: int, failing: int, folder: str) -> None:
    Path(folder, str(rank)).write_text(str(os.getpid()))
    if rank != failing:
        time.sleep(600)
    while len(os.listdir(folder)) < 3:
        time.sleep(0.01)
    raise ValueError("the reason")


def exit_in(tell: Tell, rank: int, code: int) -> None:
    if rank == 1:
        os._exit(code)
    time.sleep(600)


def kill_in(tell: Tell, rank: int) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def fail_after_another(tell: Tell, rank: int, flag: str) -> None:
    """Every rank fails, rank 2 first; the others report what followed from it."""
    if rank == 2:
        Path(flag).touch()
        raise ValueError("the root of it")
    while not Path(flag).exists():
        time.sleep(0.01)
    time.sleep(0.3)
    raise ConnectionResetError("a peer is gone")


def sleep_stubbornly(tell: Tell, rank: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell("asleep")
    time.sleep(600)


# ------------------------------------------------------------------------------------------------ tests


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(true: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_messages_of_all_arrive_in_each_ones_order() -> None:
    with Processes(3, count_to, 50) as processes:
        told = list(processes.messages())
    assert sorted(told) == [(rank, number) for rank in range(3) for number in range(50)]
    for rank in range(3):
        assert [number for who, number in told if who == rank] == list(range(50))


def test_a_failure_shows_rank_and_traceback_and_ends_the_others(tmp_path: Path) -> None:
    with (
        pytest.raises(ProcessFailedError) as caught,
        Processes(3, fail_in, 1, str(tmp_path)) as processes,
    ):
        list(processes.messages())
    message = str(caught.value)
    assert message.startswith("rank 1 failed, all 3 were ended")
    assert 'raise ValueError("the reason")' in message
    assert message.endswith("ValueError: the reason")
    pids = [int((tmp_path / str(rank)).read_text()) for rank in range(3)]
    assert [alive(pid) for pid in pids] == [False] * 3


def test_the_first_failure_is_told_not_what_followed(tmp_path: Path) -> None:
    with (
        pytest.raises(ProcessFailedError, match=r"(?s)rank 2 failed.*the root of it") as caught,
        Processes(3, fail_after_another, str(tmp_path / "flag")) as processes,
    ):
        list(processes.messages())
    assert "a peer is gone" not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "arguments", "how"),
    [(exit_in, (7,), "ended with exit code 7"), (kill_in, (), "was ended by SIGKILL")],
)
def test_an_end_without_traceback_is_told(target: Target, arguments: tuple[Any, ...], how: str) -> None:
    with (
        pytest.raises(ProcessFailedError, match=rf"(?s)rank 1 failed.*the process {how}, without a traceback"),
        Processes(2, target, *arguments) as processes,
    ):
        list(processes.messages())


def test_leaving_early_ends_even_who_ignores_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindspeed_moe.demo.processes._GRACE", 0.2)
    with Processes(2, sleep_stubbornly) as processes:
        assert next(processes.messages()) == "asleep"
        pids = [process.pid for process in processes._processes]
        assert all(pid is not None and alive(pid) for pid in pids)
    assert not any(alive(pid) for pid in pids if pid is not None)


PARENT = """
import sys, time, os
sys.path.insert(0, sys.argv[1])
from mindspeed_moe.demo.processes import Processes
from test_demo_processes import fail_in
if __name__ == "__main__":
    try:
        with Processes(3, fail_in, -1, sys.argv[2]) as processes:
            list(processes.messages())
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc for what is left running")
@pytest.mark.parametrize(
    ("ending", "code", "to_all"),
    [
        (signal.SIGINT, 130, True),
        (signal.SIGINT, 130, False),
        (signal.SIGTERM, -15, False),
        (signal.SIGKILL, -9, False),
    ],
)
def test_the_end_of_the_parent_leaves_nothing_running(
    tmp_path: Path, ending: signal.Signals, code: int, to_all: bool
) -> None:
    """Ctrl-C reaches the whole process group; other ends reach the parent alone."""
    script, folder = tmp_path / "parent.py", tmp_path / "pids"
    script.write_text(PARENT)
    folder.mkdir()
    parent = subprocess.Popen(
        [sys.executable, str(script), str(Path(__file__).parent), str(folder)],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert wait_until(lambda: len([path for path in folder.iterdir() if path.read_text()]) == 3, 60)
        pids = [int(path.read_text()) for path in folder.iterdir()]
        assert all(alive(pid) for pid in pids)
        os.killpg(parent.pid, ending) if to_all else os.kill(parent.pid, ending)
        _, errors = parent.communicate(timeout=1800)
    finally:
        parent.kill()
    assert parent.returncode == code
    assert wait_until(lambda: not any(alive(pid) for pid in pids))
    assert "Traceback" not in errors
