"""The watch beside a rank: who is told what, and when a process ends. Ranks are threads on one store here."""

from __future__ import annotations

import os
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from mindspeed_moe.errors import BenchError, GroupError
from mindspeed_moe.tune import watch as module
from mindspeed_moe.tune.watch import FAILED, Watch

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


def test_a_rank_that_hears_of_a_failure_ends(store: Any, ended: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    store.set(module._KEY, "rank 1, in step 'x': OSError: gone")
    watch = Watch(store, 0, 2, LIMIT)
    with watch.watching():
        until = time.monotonic() + 5
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
        until = time.monotonic() + 5
        while not ended and time.monotonic() < until:
            time.sleep(0.01)
    assert ended == [FAILED]
    assert "the store of this launch is gone (Broken pipe)" in capsys.readouterr().err
