"""Ranks that disagree find out before their first exchange: through a real store, each rank a thread of its own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from mindspeed_moe.errors import GroupError
from mindspeed_moe.preprocess import agreement

LONG, SHORT = timedelta(seconds=600), timedelta(seconds=1)
FACTS = {"mindspeed_moe": "0.1.0", "exchange": "all_gather", "num_experts": 8, "ep_size": 2, "tp_size": 1}


Connect = Callable[[], Any]


@pytest.fixture(params=["HashStore", "TCPStore"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Return a new client of one store: every rank has its own."""
    if request.param == "HashStore":
        store = dist.HashStore()
        yield lambda: store
    else:
        server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        yield lambda: dist.TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False)


class Rank:
    """A process, as far as the comparison can tell: a client of the store, and a global rank."""

    def __init__(self, number: int, connect: Connect) -> None:
        self.number, self.store = number, connect()

    def compare(self, ranks: tuple[int, ...], facts: Mapping[str, str | int], timeout: timedelta = LONG) -> str | None:
        """Return the error's message, None when all agree."""
        try:
            agreement.compare(self.store, ranks, self.number, facts, timeout)
        except GroupError as error:
            return str(error)
        return None


def together(*calls: Any, before: Mapping[int, float] | None = None) -> list[str | None]:
    """Run the calls at once, each in a thread; `before` delays the start of single ones by seconds."""
    results: list[Any] = ["did not end"] * len(calls)

    def run(index: int) -> None:
        threading.Event().wait((before or {}).get(index, 0))
        results[index] = calls[index]()

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(900)
        assert not thread.is_alive(), "a rank hangs"
    return results


def compare_all(connect: Connect, facts: Mapping[int, Mapping[str, str | int]], timeout: timedelta = LONG) -> Any:
    ranks = tuple(facts)
    results = together(*[lambda r=rank: Rank(r, connect).compare(ranks, facts[r], timeout) for rank in ranks])
    return dict(zip(ranks, results, strict=True))


@pytest.mark.parametrize("ranks", [(0,), (0, 1), (0, 1, 2, 3), (4, 6), (3, 1)])
def test_ranks_that_agree_go_on(connect: Connect, ranks: tuple[int, ...]) -> None:
    assert compare_all(connect, dict.fromkeys(ranks, FACTS)) == dict.fromkeys(ranks)


@pytest.mark.parametrize("odd", [0, 1, 3])
def test_one_rank_that_differs_ends_them_all(connect: Connect, odd: int) -> None:
    facts = {rank: {**FACTS, "num_experts": 16} if rank == odd else FACTS for rank in range(4)}
    told = compare_all(connect, facts)
    others = [rank for rank in range(4) if rank != odd]
    for rank, message in told.items():
        assert message is not None
        assert message.startswith(f"rank {rank}: the ranks of the TPxEP group [0, 1, 2, 3] disagree: num_experts: ")
        assert f"16 on ranks [{odd}]" in message
        assert f"8 on ranks {others}" in message
        assert "ep_size" not in message, "what they agree on is not told"


def test_all_differences_are_told(connect: Connect) -> None:
    told = compare_all(connect, {0: FACTS, 1: {**FACTS, "mindspeed_moe": "0.2.0", "exchange": "all_to_all"}})
    assert told[0] is not None
    assert "exchange: 'all_gather' on ranks [0]; 'all_to_all' on ranks [1]" in told[0]
    assert "mindspeed_moe: '0.1.0' on ranks [0]; '0.2.0' on ranks [1]" in told[0]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_fact_that_one_rank_alone_reports_is_a_difference(connect: Connect, rank: int) -> None:
    facts = {0: dict(FACTS), 1: dict(FACTS)}
    facts[rank]["capacity"] = 3
    for message in compare_all(connect, facts).values():
        assert message is not None
        assert "capacity: " in message
        assert f"3 on ranks [{rank}]" in message


def test_a_silent_rank_ends_the_others_within_the_timeout(connect: Connect) -> None:
    ranks = (0, 1, 2)
    told = together(*[lambda r=rank: Rank(r, connect).compare(ranks, FACTS, SHORT) for rank in (0, 1)])
    for rank, message in enumerate(told):
        assert message is not None
        assert message.startswith(f"rank {rank}: ranks [2] of the TPxEP group [0, 1, 2] did not report")
        assert "is the plugin enabled there, and are the processes alive?" in message


def test_a_silent_rank_is_named_by_those_who_came_first_too(connect: Connect) -> None:
    """Rank 1 has waited for half of its time when the first rank begins to: it must not blame the first rank."""
    ranks = (0, 1, 2)
    told = together(*[lambda r=rank: Rank(r, connect).compare(ranks, FACTS, SHORT) for rank in (0, 1)], before={0: 0.5})
    assert told[1] is not None
    assert told[1].startswith("rank 1: ranks [2] of the TPxEP group [0, 1, 2] did not report")


def test_a_silent_first_rank_ends_the_others(connect: Connect) -> None:
    ranks = (0, 1, 2)
    told = together(*[lambda r=rank: Rank(r, connect).compare(ranks, FACTS, SHORT) for rank in (1, 2)])
    for rank, message in zip((1, 2), told, strict=True):
        assert message is not None
        assert message.startswith(f"rank {rank}: rank 0 gave no verdict on the expert layout within ")


def test_every_comparison_is_its_own(connect: Connect) -> None:
    """The next layer of the same group compares anew: neither a good nor a bad verdict is read twice."""
    ranks = (0, 1)
    processes = [Rank(rank, connect) for rank in ranks]
    for facts, agreed in (((FACTS, FACTS), True), ((FACTS, {**FACTS, "ep_size": 4}), False), ((FACTS, FACTS), True)):
        pairs = zip(processes, facts, strict=True)
        told = together(*[lambda p=process, f=fact: p.compare(ranks, f) for process, fact in pairs])
        assert [message is None for message in told] == [agreed, agreed]


def test_a_second_enable_goes_on_where_the_first_ended(connect: Connect) -> None:
    """A verdict of before disable() must not be read after it; a rank has no memory but the store."""
    facts = {0: FACTS, 1: {**FACTS, "ep_size": 4}}
    assert all(compare_all(connect, facts).values())
    assert compare_all(connect, dict.fromkeys((0, 1), FACTS)) == {0: None, 1: None}


def test_two_groups_in_one_store_do_not_mix(connect: Connect) -> None:
    calls = [(rank, ranks, {**FACTS, "num_experts": ranks[0]}) for ranks in ((0, 1), (2, 3)) for rank in ranks]
    assert together(*[lambda c=call: Rank(c[0], connect).compare(c[1], c[2]) for call in calls]) == [None] * 4


def test_a_real_process_group_of_one() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        agreement.require_agreement(dist.group.WORLD, FACTS)
        agreement.require_agreement(dist.group.WORLD, FACTS)
    finally:
        dist.destroy_process_group()


class Wrapper(dist.ProcessGroup):
    """As frameworks put one around a group, to make it again: no backend of its own."""


def test_ranks_wait_for_each_other_as_long_as_their_group_does() -> None:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=3))
    dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=timedelta(minutes=70))
    try:
        group = dist.new_group([0], timeout=timedelta(minutes=50))
        assert agreement.patience(group) == timedelta(minutes=50)
        assert agreement.patience(Wrapper(0, 1)) == timedelta(minutes=70)
        with mock.patch.object(agreement, "compare") as compare:
            agreement.require_agreement(group, FACTS)
        assert compare.call_args.args[4] == timedelta(minutes=50)
    finally:
        dist.destroy_process_group()
    assert agreement.patience(Wrapper(0, 1)) is None


# ------------------------------------------------------------------------------------------------- a whole launch


def launches(*facts: Mapping[str, str | int]) -> list[agreement.LaunchAgreement]:
    """As processes of one launch make them."""
    return [agreement.LaunchAgreement(one) for one in facts]


def test_ranks_of_a_launch_that_agree_are_told_nothing(connect: Connect) -> None:
    store = connect()
    for rank, launch in enumerate(launches(FACTS, FACTS, FACTS)):
        launch.tell_to(store, rank)
        assert launch.difference_in(store) == ""


@pytest.mark.parametrize("odd", [0, 1, 3])
def test_whoever_differs_is_named_to_every_rank_of_a_launch(connect: Connect, odd: int) -> None:
    store = connect()
    every = launches(*[{**FACTS, "exchange": "ring"} if rank == odd else FACTS for rank in range(4)])
    for rank, launch in enumerate(every):
        launch.tell_to(store, rank)
    told = {launch.difference_in(store) for launch in every}
    assert len(told) == 1
    others = "'all_gather' on ranks [0]" if odd else "'all_gather' on ranks [1, 2, 3]"
    odd_one = f"'ring' on ranks [{odd}]"
    assert told.pop() == (
        "the ranks of this launch disagree (rank 0 came first; ranks that agree with it are not named): exchange: "
        + "; ".join([others, odd_one] if odd else [odd_one, others])
    )


def test_a_message_names_a_bounded_number_of_ranks(connect: Connect) -> None:
    store = connect()
    every = launches(FACTS, *[{**FACTS, "ep_size": 4}] * 100)
    for rank, launch in enumerate(every):
        launch.tell_to(store, rank)
    told = every[0].difference_in(store)
    assert told.endswith(f"ep_size: 2 on ranks [0]; 4 on ranks {list(range(1, 65))}; and 36 more differ")


def test_a_rank_that_dies_while_it_tells_holds_nobody_up(connect: Connect) -> None:
    """Its place was taken and never filled; another one differs too."""
    store = connect()
    first, second = launches(FACTS, {**FACTS, "ep_size": 4})
    first.tell_to(store, 0)
    store.add(f"{first._PREFIX}/places", 1)
    second.tell_to(store, 2)
    assert "ep_size: 2 on ranks [0]; 4 on ranks [2]" in first.difference_in(store)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Return what stands for a process: as often as it is entered, it goes on where it was."""

    def new() -> contextlib.AbstractContextManager[None]:
        kept: dict[str, Any] = {"_made": None, "_passes": []}

        @contextlib.contextmanager
        def entered() -> Iterator[None]:
            with mock.patch.multiple(agreement.LaunchAgreement, **kept):
                yield
                kept.update({name: getattr(agreement.LaunchAgreement, name) for name in kept})

        return entered

    return new


def test_only_what_is_in_force_first_in_a_process_is_compared(process: Any) -> None:
    with process()():
        first, second = object(), object()
        assert agreement.LaunchAgreement.planned(FACTS, first) is not None, "planned, and never applied"
        planned = agreement.LaunchAgreement.planned(FACTS, second)
        assert planned is not None
        planned.in_force()
        assert agreement.LaunchAgreement.planned(FACTS, second) is not None, "the next pass of the same"
        assert agreement.LaunchAgreement.planned(FACTS, first) is None
        assert agreement.LaunchAgreement.planned(FACTS, object()) is None


RING = {**FACTS, "exchange": "ring"}


@pytest.mark.parametrize(
    ("passes", "apart"),
    [
        (((FACTS,), (FACTS,)), False),
        (((FACTS, FACTS), (FACTS, FACTS)), False),
        (((FACTS, FACTS), (RING, RING)), True),
        (((FACTS,), (RING, RING, RING)), True),
        (((FACTS, FACTS), (FACTS, RING)), True),
        (((FACTS, RING), (FACTS, RING)), False),
        (((FACTS, RING, FACTS), (FACTS, RING, FACTS)), False),
        (((FACTS, RING, FACTS), (FACTS, RING, RING)), True),
    ],
)
@pytest.mark.parametrize("built", ["in the last pass", "in every pass", "by one rank in every pass"])
def test_passes_of_one_enable_are_compared(
    connect: Connect, process: Any, passes: Any, apart: bool, built: str
) -> None:
    """One rank after the other has all of its passes; a rank tells the store where it builds a layer."""
    store, told = connect(), []
    for rank, facts in enumerate(passes):
        with process()():
            enabling = object()
            for number, one in enumerate(facts):
                launch = agreement.LaunchAgreement.planned(one, enabling)
                assert launch is not None
                launch.in_force()
                if number == len(facts) - 1 or built == "in every pass" or ("one rank" in built and rank == 0):
                    launch.tell_to(store, rank)
            told.append(launch.difference_in(store))
    assert (told[-1] != "") is apart
    assert "exchange: " in told[-1] or not apart


def test_a_launch_is_told_once_in_each_life_of_the_process_groups() -> None:
    launch, other = launches(FACTS, {**FACTS, "ep_size": 4})
    launch.tell()  # no process groups: nobody to tell
    assert launch.difference() == ""
    launch.require()
    for _ in range(2):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        try:
            with mock.patch.object(launch, "tell_to", wraps=launch.tell_to) as told:
                for _ in range(3):
                    launch.require()
            assert told.call_count == 1
            other.tell_to(dist.distributed_c10d._get_default_store(), 5)
            with pytest.raises(GroupError, match=r"^rank 0: the ranks of this launch disagree .*4 on ranks \[5\]"):
                launch.require()
        finally:
            dist.destroy_process_group()


def test_a_group_hears_of_a_difference_elsewhere_from_its_first_rank(connect: Connect) -> None:
    """All of its ranks, and together, though only the first one asks."""
    ranks = (2, 3)
    asked = []

    def elsewhere(rank: int) -> str:
        asked.append(rank)
        return "something is wrong elsewhere"

    def compare(rank: int) -> str | None:
        try:
            agreement.compare(connect(), ranks, rank, FACTS, LONG, lambda: elsewhere(rank))
        except GroupError as error:
            return str(error)
        return None

    told = together(lambda: compare(2), lambda: compare(3))
    assert told == [f"rank {rank}: something is wrong elsewhere" for rank in ranks]
    assert asked == [2]


@pytest.mark.parametrize("silent", [4, 2])
def test_who_waits_for_a_silent_rank_hears_of_a_difference_elsewhere(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, silent: int
) -> None:
    """A rank on stock never comes; what it runs may be told while the others wait, and none of them waits on."""
    monkeypatch.setattr(agreement, "_LOOK_S", 0.05)
    told_at = time.monotonic() + 0.3
    ranks = (2, 3, 4)

    def elsewhere() -> str:
        return "rank is on stock" if time.monotonic() > told_at else ""

    def compare(rank: int) -> str | None:
        try:
            agreement.compare(connect(), ranks, rank, FACTS, LONG, elsewhere)
        except GroupError as error:
            return str(error)
        return None

    calls = [partial(compare, rank) for rank in ranks if rank != silent]
    assert together(*calls) == [f"rank {rank}: rank is on stock" for rank in ranks if rank != silent]


def test_a_store_that_is_gone_is_not_asked_over_and_over() -> None:
    asked = []

    class Ended:
        def add(self, key: str, amount: int) -> int:
            asked.append(key)
            raise RuntimeError("Connection reset by peer")

    with pytest.raises(RuntimeError, match="reset"):
        agreement._await(Ended(), "key", 1, LONG, lambda: "")
    assert asked == ["key"]


# --------------------------------------------------------------------------------------------------- a refusal


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_a_rank_that_cannot_take_part_says_why_and_nobody_waits_for_it(connect: Connect, odd: int) -> None:
    ranks = (0, 1, 2)
    agreement.refuse_in(connect(), ranks, odd, "half of its experts are missing")
    others = [rank for rank in ranks if rank != odd]
    told = together(*[lambda r=rank: Rank(r, connect).compare(ranks, FACTS) for rank in others])
    why = f"rank {odd} of the TPxEP group cannot take part: half of its experts are missing"
    assert told == [f"rank {rank}: {why}" for rank in others]


def test_a_refusal_is_of_one_comparison(connect: Connect) -> None:
    ranks = (0, 1)
    agreement.refuse_in(connect(), ranks, 1, "not yet")
    assert Rank(0, connect).compare(ranks, FACTS) is not None
    assert compare_all(connect, dict.fromkeys(ranks, FACTS)) == {0: None, 1: None}


def test_with_fake_groups_there_is_nobody_to_ask() -> None:
    """As tools use them that build a large launch's model in one process; their store can do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=3, world_size=64)
    try:
        launch = launches(FACTS)[0]
        launch.tell()
        launch.require()
        agreement.require_agreement(dist.group.WORLD, FACTS, launch.difference)
        agreement.refuse(dist.group.WORLD, "something")
    finally:
        dist.destroy_process_group()


class Gone:
    """A store whose host has ended."""

    timeout = LONG

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("connection reset by peer")


def test_a_store_that_cannot_be_asked_costs_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mindspeed_moe.log._said", set())
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        launch = launches(FACTS)[0]
        with mock.patch.object(agreement, "launch_store", Gone):
            for _ in range(3):
                launch.tell()
                launch.require()
            agreement.refuse(dist.group.WORLD, "something")  # who calls it raises an error of its own, which must stay
        with mock.patch.object(launch, "tell_to", wraps=launch.tell_to) as told:
            launch.require()
        assert told.call_count == 1, "it was told to nobody yet"
    finally:
        dist.destroy_process_group()
    (record,) = caplog.records
    assert record.getMessage() == "ranks of different groups are not compared with each other: connection reset by peer"
