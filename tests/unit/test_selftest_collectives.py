"""What looks over the shoulder of collectives: notes them, and lets no wrong split through."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mindspeed_moe.selftest.collectives import Watched, WrongSplitsError
from mindspeed_moe.selftest.pinned import Copies
from mindspeed_moe.selftest.place import Place


class Group:
    def size(self) -> int:
        return 2


GROUP = Group()


@pytest.fixture
def calls() -> list[Any]:
    return []


def watched(place: Place, calls: list[Any], name: str = "all_to_all_single") -> tuple[Watched, Any]:
    made = Watched(place)

    def original(*arguments: Any, **named: Any) -> None:
        calls.append(place.inside)

    return made, made._wrap(name, original)


def test_a_collective_is_noted_with_shapes_and_group(calls: list[Any]) -> None:
    place = Place()
    _, collective = watched(place, calls, "all_gather_into_tensor")
    collective(torch.zeros(4, 2), torch.zeros(2, 2), group=GROUP)
    assert place.collective == "all_gather_into_tensor of [4, 2] float32, [2, 2] float32, group of 2"
    assert calls == [True]
    assert not place.inside


def test_splits_go_to_the_experts_and_back_and_nowhere_else(calls: list[Any]) -> None:
    place = Place()
    place.at = "layer 1, micro-batch 0"
    made, collective = watched(place, calls)
    rows = torch.zeros(3, 1)

    def send(sent: Any, received: Any, group: Any = GROUP) -> None:
        collective(rows, rows, output_split_sizes=received, input_split_sizes=sent, group=group)

    send([9, 9], [9, 9])  # nobody checks yet
    made.check(GROUP)
    made.allow([1, 2], [3, 0])
    send([1, 2], [3, 0])
    send([3, 0], [1, 2])
    send(None, None)
    send([9, 9], [9, 9], Group())
    with pytest.raises(WrongSplitsError, match=r"layer 1, micro-batch 0: input_splits .* found \[2, 1\] and \[3, 0\]"):
        send([2, 1], [3, 0])
    made.check(None)
    send([2, 1], [3, 0])
    assert len(calls) == 6


def test_slow_copies_to_the_host_are_counted() -> None:
    copies = Copies()
    source = torch.empty(2, device="meta")
    copies.note(torch.empty(2), source, non_blocking=True)
    copies.note(torch.empty(2), torch.empty(2), non_blocking=False)  # on the host alone
    copies.note(source, source, non_blocking=False)
    assert copies.problems() == ["copies to the host: 1 of 1 go to pageable memory, or block; expected none"]
    assert Copies().problems() == []


def test_only_packed_on_a_device_promises_fast_copies() -> None:
    before = vars(torch.Tensor).get("copy_")
    for implementation, on_device in (("reference", True), ("packed", False)):
        with Copies.watching(implementation, on_device):
            assert vars(torch.Tensor).get("copy_") is before
    with Copies.watching("packed", on_device=True):
        assert "copy_" in vars(torch.Tensor)
    assert vars(torch.Tensor).get("copy_") is before
