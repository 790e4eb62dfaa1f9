"""The watch beside a rank: who is told what, and when a process ends. Ranks are threads on one store here."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from mindspeed_moe.errors import BenchError, GroupError
from mindspeed_moe.world import watch as module
from mindspeed_moe.world.watch import FAILED, Command, Watch

LIMIT = timedelta(seconds=60)


@pytest.fixture
def store() -> Any:
    return dist.HashStore()


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit codes of the processes that would have ended."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(module, "_PERIOD_S", 0.01)
    monkeypatch.setattr(module, "_FAREWELL_S", 0.2)
    return codes


def test_a_run_without_failure_leaves_no_thread_and_no_trace(store: Any, ended: list[int]) -> None:
    before = threading.active_count()
    watch = Watch(store, 0, 2, LIMIT)
    with watch.watching():
        watch.step("one")
        time.sleep(0.05)
    assert threading.active_count() == before
    assert not store.check([module._KEY])
    assert not ended


def test_a_failure_is_told_with_rank_and_step(store: Any, ended: list[int]) -> None:
    watch = Watch(store, 3, 4, LIMIT)
    watch.step("counting")
    with pytest.raises(ZeroDivisionError), watch.watching():
        raise ZeroDivisionError("division by zero")
    assert store.get(module._KEY).decode() == "rank 3, in step 'counting': ZeroDivisionError: division by zero"
    assert not ended, "the rank that fails ends by its own exception"


def test_a_rank_that_is_interrupted_while_it_fails_tells_why_it_fails(store: Any, ended: list[int]) -> None:
    def fail() -> None:
        try:
            raise OSError("connection closed")
        finally:
            raise KeyboardInterrupt("SIGTERM")  # as a signal would, at any place

    with pytest.raises(KeyboardInterrupt), Watch(store, 0, 1, LIMIT).watching():
        fail()
    assert b"OSError: connection closed" in store.get(module._KEY)


def test_a_rank_that_hears_of_a_failure_ends(store: Any, ended: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    store.set(module._KEY, "rank 1, in step 'x': OSError: gone")
    watch = Watch(store, 0, 2, LIMIT)
    with watch.watching():
        until = time.monotonic() + 600
        while not ended and time.monotonic() < until:  # as if in a collective that never returns
            time.sleep(0.01)
    assert ended == [FAILED]
    assert "mindspeed-moe tune: rank 0 ends: rank 1, in step 'x': OSError: gone" in capsys.readouterr().err
    assert store.add(module._HEARD, 0) == 1


def test_what_breaks_because_another_rank_failed_names_that_rank(store: Any, ended: list[int]) -> None:
    store.set(module._KEY, "rank 1, in step 'x': OSError: gone")
    wanted = pytest.raises(BenchError, match="rank 0 ends: rank 1, in step 'x': OSError: gone")
    with wanted, Watch(store, 0, 2, LIMIT).watching():
        raise RuntimeError("Connection closed by peer")


def test_a_message_of_ones_own_stays(store: Any, ended: list[int]) -> None:
    store.set(module._KEY, "rank 1, in step 'x': GroupError: they disagree")
    with pytest.raises(GroupError, match=r"^they disagree$"), Watch(store, 0, 2, LIMIT).watching():
        raise GroupError("they disagree")


def test_a_step_that_takes_too_long_ends_the_process(
    store: Any, ended: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    watch = Watch(store, 0, 1, timedelta(seconds=0.1))
    with watch.watching():
        for name in ("a", "b", "c"):  # each in time
            watch.step(name)
            time.sleep(0.05)
        assert not ended
        time.sleep(0.5)
    assert ended == [FAILED]
    assert "rank 0 ends: rank 0, in step 'c': not done after 0 s" in capsys.readouterr().err


def test_a_failing_rank_waits_until_the_others_have_heard(store: Any, ended: list[int]) -> None:
    def other() -> None:
        while not store.check([module._KEY]):
            time.sleep(0.01)
        store.add(module._HEARD, 1)
        heard.append(time.monotonic())

    heard: list[float] = []
    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(KeyError), Watch(store, 0, 2, LIMIT).watching():
        raise KeyError("x")
    assert heard, "it had not heard yet"
    thread.join()


def test_a_store_that_is_gone_ends_the_process(ended: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    class Gone:
        def check(self, *arguments: object) -> bool:
            raise RuntimeError("Broken pipe\nand a stack")

        add = compare_set = check

    with Watch(Gone(), 0, 2, LIMIT).watching():
        until = time.monotonic() + 600
        while not ended and time.monotonic() < until:
            time.sleep(0.01)
    assert ended == [FAILED]
    assert "the store of this launch is gone (Broken pipe)" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- where everybody stands


Told = list[tuple[str, dict[int, str]]]


def commands(ranks: int, told: Told) -> list[Command]:
    """A command for each rank; all write down what is told."""

    def tell(problem: str, standings: Any) -> None:
        told.append((problem, dict(standings)))

    return [Command("selftest", lambda rank=rank: f"stands at {rank}", tell) for rank in range(ranks)]  # type: ignore[misc]


def test_when_a_step_takes_too_long_one_rank_tells_where_all_stand(store: Any, ended: list[int]) -> None:
    told: Told = []
    watches = [Watch(store, rank, 2, timedelta(seconds=0.1), one) for rank, one in enumerate(commands(2, told))]

    def rank(watch: Watch) -> None:
        with watch.watching():
            watch.step("x")
            time.sleep(0.6)

    threads = [threading.Thread(target=rank, args=(watch,)) for watch in watches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [FAILED, FAILED]
    ((problem, standings),) = told
    assert "in step 'x': not done after 0 s" in problem
    assert standings == {0: "stands at 0", 1: "stands at 1"}


def test_a_rank_that_does_not_answer_is_named_by_the_first_that_does(store: Any, ended: list[int]) -> None:
    told: Told = []
    wanted = pytest.raises(ZeroDivisionError)
    with wanted, Watch(store, 1, 3, LIMIT, commands(3, told)[1]).watching():
        raise ZeroDivisionError("division by zero")
    ((problem, standings),) = told
    assert problem == "rank 1, in step 'start': ZeroDivisionError: division by zero"
    assert standings[1] == "stands at 1"
    assert standings[0].startswith("no answer")
    assert standings[2].startswith("no answer")


def test_without_a_store_a_rank_tells_where_it_stands_itself(ended: list[int]) -> None:
    class Gone:
        def check(self, *arguments: object) -> bool:
            raise RuntimeError("Broken pipe")

        add = compare_set = set = check

    told: Told = []
    with pytest.raises(KeyError), Watch(Gone(), 1, 2, LIMIT, commands(2, told)[1]).watching():
        raise KeyError("x")
    assert [standings for _, standings in told] == [{1: "stands at 1"}]


def test_a_signal_ends_a_rank_whose_main_thread_cannot_take_it(store: Any, ended: list[int]) -> None:
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)  # as if the handler had no turn
    try:
        with Watch(store, 0, 1, LIMIT).watching():
            os.kill(os.getpid(), signal.SIGTERM)
            until = time.monotonic() + 600
            while not ended and time.monotonic() < until:
                time.sleep(0.01)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended == [FAILED]
    assert b"ended from outside" in store.get(module._KEY)
    assert signal.set_wakeup_fd(-1) == -1, "put back"
