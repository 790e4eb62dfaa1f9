"""Which group the counts travel on; groups are stand-ins whose ranks are told by a patched torch.distributed."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from mindspeed_moe.errors import GroupError, UnsupportedError
from mindspeed_moe.preprocess import groups
from mindspeed_moe.preprocess.groups import Groups
from mindspeed_moe.preprocess.layout import ExpertLayout

EP2 = ExpertLayout(num_experts=4, ep_size=2, tp_size=1, ep_rank=0, tp_rank=0)
EP2_TP2 = ExpertLayout(num_experts=4, ep_size=2, tp_size=2, ep_rank=0, tp_rank=0)


class Dist:
    """As much of torch.distributed as choosing a group takes."""

    def __init__(self) -> None:
        self.pg_map: dict[Any, None] = {}
        self.distributed_c10d = SimpleNamespace(_world=self, new_group=partial(self.new_group, of="torch"))
        self.made: list[tuple[list[int], Any, bool]] = []
        self.made_by: list[str] = []
        self.world_size = 8
        self.timeouts: list[Any] = []
        self.lists = True

    def get_process_group_ranks(self, group: Any) -> list[int]:
        return list(group.ranks)

    def get_world_size(self) -> int:
        return self.world_size

    def new_group(
        self,
        ranks: list[int],
        *,
        pg_options: Any,
        use_local_synchronization: bool = False,
        of: str = "all",
        **more: Any,
    ) -> Any:
        """of: what is put in the place of torch's function replaces it for all callers, but not in its own module."""
        self.made.append((ranks, pg_options, use_local_synchronization))
        self.made_by.append(of)
        self.timeouts.append(more.get("timeout"))
        group = named("dedicated", *ranks)
        if self.lists:
            self.pg_map[group] = None
        return group


class Group:
    def __init__(self, name: str, ranks: tuple[int, ...]) -> None:
        self.name, self.ranks = name, ranks


def named(name: str, *ranks: int) -> Any:
    return Group(name, ranks)


@pytest.fixture(autouse=True)
def dist(monkeypatch: pytest.MonkeyPatch) -> Dist:
    stand_in = Dist()
    monkeypatch.setattr(groups, "dist", stand_in)
    return stand_in


def dispatcher(ep: Any, tp_ep: Any, **config: Any) -> Any:
    return SimpleNamespace(ep_group=ep, tp_ep_group=tp_ep, config=SimpleNamespace(**config))


ALONE = dispatcher(named("ep", 0, 1), named("tp_ep", 0, 1))
WITH_TP = dispatcher(named("ep", 0, 2), named("tp_ep", 0, 1, 2, 3))
OTHER_RANKS = dispatcher(named("ep", 0, 2), named("tp_ep", 0, 1))
OVERLAPPED = dispatcher(named("ep", 0, 1), named("tp_ep", 0, 1), overlap_moe_expert_parallel_comm=True)


def choose(groups: Groups, who: Any, layout: ExpertLayout) -> Any:
    overlapped = getattr(who.config, "overlap_moe_expert_parallel_comm", False)
    return groups.choose(who.tp_ep_group, who.ep_group, layout, overlapped=overlapped)


@pytest.mark.parametrize(
    ("wanted", "who", "layout", "chosen"),
    [
        ("auto", ALONE, EP2, "ep"),
        ("auto", WITH_TP, EP2_TP2, "tp_ep"),
        ("auto", OTHER_RANKS, EP2, "tp_ep"),
        ("auto", OVERLAPPED, EP2, "tp_ep"),
        ("tp_ep", ALONE, EP2, "tp_ep"),
        ("tp_ep", WITH_TP, EP2_TP2, "tp_ep"),
        ("ep", ALONE, EP2, "ep"),
        ("ep", OVERLAPPED, EP2, "ep"),
    ],
)
def test_choice(wanted: str, who: Any, layout: ExpertLayout, chosen: str) -> None:
    assert choose(Groups(wanted), who, layout).name == chosen


@pytest.mark.parametrize(("who", "layout"), [(WITH_TP, EP2_TP2), (OTHER_RANKS, EP2)])
def test_ep_where_it_does_not_hold_the_ranks(who: Any, layout: ExpertLayout) -> None:
    with pytest.raises(GroupError, match=r"preprocess\.exchange_group: 'ep': .* allowed here: auto, tp_ep"):
        choose(Groups("ep"), who, layout)


def test_a_dedicated_group_is_made_once_for_the_same_ranks(dist: Dist) -> None:
    chooser = Groups("dedicated", lambda: "1 MB")
    first = choose(chooser, ALONE, EP2)
    assert choose(chooser, ALONE, EP2) is first
    assert choose(chooser, WITH_TP, EP2_TP2) is not first
    assert dist.made == [([0, 1], "1 MB", True), ([0, 1, 2, 3], "1 MB", True)], "members alone take part"


def test_a_dedicated_group_that_was_destroyed_is_made_again(dist: Dist) -> None:
    chooser = Groups("dedicated", lambda: "1 MB")
    first = choose(chooser, ALONE, EP2)
    dist.pg_map.clear()
    assert choose(chooser, ALONE, EP2) is not first


def test_what_a_framework_may_make_again_has_a_new_name_each_time(dist: Dist) -> None:
    """torch counts groups that all ranks make; others it names by their ranks and how many groups are there."""
    dist.world_size = 4
    chooser = Groups("dedicated", lambda: "1 MB")
    choose(chooser, ALONE, EP2)
    choose(chooser, WITH_TP, EP2_TP2)
    assert dist.made == [([0, 1], "1 MB", True), ([0, 1, 2, 3], "1 MB", False)]
    assert dist.made_by == ["torch", "all"]


class Store:
    """What all ranks of a launch share, as long as their process groups live."""


@pytest.mark.parametrize("listed", [True, False], ids=["torch's own", "behind a wrapper"])
def test_a_dedicated_group_lives_as_long_as_the_groups_of_the_launch(
    dist: Dist, listed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrapper, of a framework that destroys groups and makes them again behind it, is not in torch's list."""
    dist.lists = listed
    chooser, store = Groups("dedicated", lambda: "1 MB"), Store()
    monkeypatch.setattr(groups, "launch_store", lambda: store)
    first = choose(chooser, ALONE, EP2)
    others = dispatcher(named("ep", 0, 1), named("tp_ep", 0, 1))
    assert choose(chooser, ALONE, EP2) is choose(chooser, others, EP2) is first
    anew = Store()
    monkeypatch.setattr(groups, "launch_store", lambda: anew)
    second = choose(chooser, ALONE, EP2)
    assert second is not first
    assert choose(chooser, ALONE, EP2) is second
    assert len(dist.made) == 2


def test_a_dedicated_group_is_as_patient_as_the_group_that_it_stands_for(
    dist: Dist, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "patience", lambda group: timedelta(hours=2) if group is ALONE.tp_ep_group else None)
    chooser = Groups("dedicated", lambda: "1 MB")
    choose(chooser, ALONE, EP2)
    choose(chooser, WITH_TP, EP2_TP2)
    assert dist.timeouts == [timedelta(hours=2), None], "None: torch's default"


def test_dedicated_without_hccl() -> None:
    with pytest.raises(UnsupportedError, match="'dedicated' needs HCCL"):
        choose(Groups("dedicated"), ALONE, EP2)
