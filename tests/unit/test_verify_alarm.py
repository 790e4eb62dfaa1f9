"""A failed verification reaches all ranks through a real store: each rank an alarm of its own, and its thread."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from mindspeed_moe import lifetime
from mindspeed_moe.verify import alarm as module
from mindspeed_moe.verify.alarm import Alarm, Report

REPORT = {"text": "output_splits[1]: found 9, expected 2", "dump": "; dump: x.npz", "call": 3}
SOON = 100.0  # seconds: what takes longer hangs, however busy the machine is


class Ranks:
    """Stands for torch.distributed: `connect` makes a rank's client of the store; the rank that asks is set before."""

    def __init__(self, connect: Callable[[], Any], world: int) -> None:
        self.world, self.rank, self.joined = world, 0, True
        self.stores = [connect() for _ in range(world)]
        self.distributed_c10d = SimpleNamespace(_get_default_store=self.store)

    def store(self) -> Any:
        return self.stores[self.rank]

    def is_initialized(self) -> bool:
        return self.joined

    def put(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(module, "dist", self)
        patch.setattr(module, "launch_store", self.store)

    def get_rank(self) -> int:
        return self.rank

    def get_world_size(self) -> int:
        return self.world

    def listen(self, alarms: list[Alarm]) -> None:
        for self.rank, one in enumerate(alarms):
            one.listen()


Connect = Callable[[], Any]


@pytest.fixture(params=["HashStore", "TCPStore", "FileStore"])
def connect(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Connect]:
    """Return a new client of one store: every rank has its own."""
    if request.param == "HashStore":
        store = dist.HashStore()
        yield lambda: dist.PrefixStore("world", store)
    elif request.param == "FileStore":
        yield lambda: dist.FileStore(str(tmp_path / "store"), -1)
    else:
        server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        yield lambda: dist.TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Return the codes of processes that were ended; every alarm looks often, and stops with the test."""
    codes: list[int] = []
    monkeypatch.setattr(module.os, "_exit", codes.append)
    monkeypatch.setattr(module, "_PERIOD_S", 0.02)
    yield codes
    lifetime.end()
    wait_for(lambda: not threads())


@pytest.fixture
def join(monkeypatch: pytest.MonkeyPatch, exits: list[int]) -> Callable[..., Ranks]:
    def join(connect: Connect, alarms: list[Alarm]) -> Ranks:
        ranks = Ranks(connect, len(alarms))
        ranks.put(monkeypatch)
        ranks.listen(alarms)
        return ranks

    return join


def threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "mindspeed_moe verify"]


def wait_for(done: Callable[[], Any]) -> None:
    until = time.monotonic() + SOON
    while not done():
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.01)


def alarms_of(count: int, react: Callable[[Report], str] = lambda report: "", grace_s: float = SOON) -> list[Alarm]:
    return [Alarm(react, grace_s=grace_s) for _ in range(count)]


def test_every_other_rank_hears_the_report(connect: Connect, join: Any, exits: list[int]) -> None:
    alarms = alarms_of(3)
    join(connect, alarms)
    assert [one.heard for one in alarms] == [None] * 3
    alarms[1].sound(REPORT)
    assert [one.heard for one in alarms] == [REPORT, None, REPORT]
    for one in alarms:
        one.main_ends()
    assert exits == []


def test_whoever_sounds_waits_until_the_others_have_left_their_dumps(connect: Connect, join: Any) -> None:
    """Its end may take the store along, or make a launcher end the others."""
    left = []

    def react(report: Report) -> str:
        time.sleep(0.2)
        left.append(report["call"])
        return ""

    alarms = alarms_of(3, react)
    join(connect, alarms)
    alarms[0].sound(REPORT)
    assert left == [3, 3]


def test_ranks_that_all_fail_do_not_wait_for_each_others_threads(
    connect: Connect, join: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PERIOD_S", 60.0)  # no thread will ever look
    alarms = alarms_of(4)
    join(connect, alarms)
    monkeypatch.setattr(module, "_FAREWELL_S", 60.0)
    for one in alarms:
        one._period_s = 0.02
    sounding = [threading.Thread(target=one.sound, args=(REPORT,), daemon=True) for one in alarms]
    for one in sounding:
        one.start()
    for one in sounding:
        one.join(SOON)
        assert not one.is_alive()


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_first_report_is_the_one_that_is_heard(connect: Connect, join: Any, when: str) -> None:
    alarms = alarms_of(3)
    join(connect, alarms)
    first, second = {**REPORT, "text": "first"}, {**REPORT, "text": "second"}
    alarms[0].sound(first)
    alarms[1].sound(second)
    assert alarms[2].heard == first


def test_a_rank_that_cannot_answer_holds_the_others_up_for_a_while_only(
    connect: Connect, join: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FAREWELL_S", 0.3)
    never = threading.Event()
    alarms = alarms_of(2, lambda report: str(never.wait(SOON)))
    join(connect, alarms)
    began = time.monotonic()
    alarms[0].sound(REPORT)
    assert 0.3 <= time.monotonic() - began < SOON / 2
    never.set()
    alarms[1].main_ends()


# ------------------------------------------------------------------------------------------------ the main thread


def test_a_main_thread_that_never_comes_back_is_ended(
    connect: Connect, join: Any, exits: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    """It sits in a collective whose other ranks have gone."""
    alarms = alarms_of(2, lambda report: "; own dump: y.npz", grace_s=0.1)
    join(connect, alarms)
    alarms[0].sound(REPORT)
    wait_for(lambda: exits)
    assert exits == [1]
    told = capfd.readouterr().err
    assert "mindspeed_moe ends this process: rank " in told
    assert "output_splits[1]: found 9, expected 2; dump: x.npz; own dump: y.npz" in told


@pytest.mark.parametrize("end", ["main_ends", "close"])
def test_a_main_thread_that_comes_to_a_check_ends_by_itself(
    connect: Connect, join: Any, exits: list[int], end: str
) -> None:
    alarms = alarms_of(2, grace_s=0.5)
    join(connect, alarms)
    alarms[0].sound(REPORT)
    getattr(alarms[1], end)()
    wait_for(lambda: not threads())
    assert exits == []


@pytest.mark.parametrize("end", ["main_ends", "close"])
def test_the_main_thread_does_not_leave_before_its_own_dump_is_written(connect: Connect, join: Any, end: str) -> None:
    """The interpreter would end the thread in the middle of it."""
    left = []

    def react(report: Report) -> str:
        time.sleep(0.3)
        left.append(report["call"])
        return ""

    alarms = alarms_of(2, react)
    join(connect, alarms)
    sounding = threading.Thread(target=alarms[0].sound, args=(REPORT,), daemon=True)
    sounding.start()
    wait_for(lambda: alarms[1].heard)
    getattr(alarms[1], end)()
    assert left == [3]
    sounding.join(SOON)


def test_a_dump_that_fails_does_not_hide_the_report(
    connect: Connect, join: Any, exits: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    def react(report: Report) -> str:
        raise MemoryError("no room")

    alarms = alarms_of(2, react)
    join(connect, alarms)
    alarms[0].sound(REPORT)
    wait_for(lambda: caplog.records)
    assert REPORT["text"] in caplog.text
    assert "this rank's own dump failed: no room" in caplog.text
    alarms[1].main_ends()


# ------------------------------------------------------------------------------------------------ when it is over


def test_after_disable_the_process_is_left_alone(connect: Connect, join: Any, exits: list[int]) -> None:
    reacted: list[Report] = []
    alarms = alarms_of(2, lambda report: str(reacted.append(report)), grace_s=0.0)
    ranks = join(connect, alarms)
    alarms[1].close()
    lifetime.end()
    wait_for(lambda: not threads())
    ranks.stores[0].set(f"{alarms[0]._prefix}/report", "{}")
    time.sleep(0.1)
    assert (alarms[1].heard, reacted, exits) == (None, [], [])


def test_a_store_that_is_gone_ends_the_thread_and_nothing_else(join: Any, exits: list[int]) -> None:
    servers = [dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)]
    port = servers[0].port
    alarms = alarms_of(2)
    ranks = join(lambda: dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False), alarms)
    assert len(threads()) == 2
    servers.clear()
    gc.collect()
    wait_for(lambda: not threads())
    alarms[0].sound(REPORT)  # nobody can be told, and the difference must come out all the same
    assert (alarms[1].heard, exits) == (None, [])
    assert ranks.stores


def test_the_store_lives_no_longer_than_its_process_group(connect: Connect, join: Any) -> None:
    """A rank that hosts the store would keep its port, and the next process group could not have it."""
    ranks = join(connect, alarms_of(2))
    held = weakref.ref(ranks.stores.pop())
    gc.collect()
    wait_for(lambda: held() is None)  # a thread may just be asking it


def test_new_process_groups_are_listened_to_instead(connect: Connect, join: Any, tmp_path: Any) -> None:
    alarms = alarms_of(2)
    ranks = join(connect, alarms)
    old, prefix = ranks.stores, alarms[0]._prefix
    again = dist.FileStore(str(tmp_path / "again"), -1)
    ranks.stores = [dist.PrefixStore("again", again) for _ in old]
    ranks.listen(alarms)
    ranks.listen(alarms)  # on each call of a layer
    wait_for(lambda: len(threads()) == 2)
    old[0].set(f"{prefix}/report", "{}")
    alarms[0].sound(REPORT)
    assert alarms[1].heard == REPORT


def test_a_second_enable_does_not_hear_the_first_ones_report(connect: Connect, join: Any) -> None:
    """A rank has no memory of it but the store."""
    first = alarms_of(2)
    ranks = join(connect, first)
    first[0].sound(REPORT)
    lifetime.end()
    second = alarms_of(2)
    ranks.listen(second)
    time.sleep(0.1)
    assert [one.heard for one in second] == [None, None]
    assert first[0].run == first[1].run
    assert second[0].run == second[1].run != first[0].run


@pytest.mark.parametrize("joined", [False, True])
def test_one_rank_alone_needs_no_thread(join: Any, connect: Connect, joined: bool) -> None:
    alarms = alarms_of(1)
    ranks = Ranks(connect, 1)
    ranks.joined = joined
    with pytest.MonkeyPatch.context() as patch:
        ranks.put(patch)
        alarms[0].listen()
        assert not threads()
        alarms[0].sound(REPORT)
    assert alarms[0].run != Alarm(str).run, "another one in each run, all the same"
