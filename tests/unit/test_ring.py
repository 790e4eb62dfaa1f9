"""Slots are given out one by one, and never one that the device may still use."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from unittest import mock

import pytest
import torch

from mindspeed_moe import log
from mindspeed_moe.errors import PreprocessError
from mindspeed_moe.preprocess.ring import Ring, Slot


@dataclass
class Event:
    done: bool = False
    recorded: bool = False

    def record(self) -> None:
        self.done, self.recorded = False, True

    def query(self) -> bool:
        return self.done


@dataclass
class Made:
    """Makes slots and remembers them."""

    slots: list[Slot] = field(default_factory=list)

    def __call__(self) -> Slot:
        self.slots.append(Slot(Event()))
        return self.slots[-1]


@pytest.fixture(autouse=True)
def _said_nothing_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_said", set())


def test_one_slot_serves_calls_that_are_waited_for() -> None:
    made = Made()
    ring = Ring(made, limit=1)
    for _ in range(5):
        ring.free(ring.take())
    assert len(made.slots) == 1


def test_a_slot_that_was_given_up_comes_back_when_its_copy_is_done() -> None:
    made = Made()
    ring = Ring(made, limit=2)
    first = ring.take()
    ring.give_up(first, kept=None)
    second = ring.take()
    assert second is not first, "its copy is still under way"
    ring.give_up(second, kept=None)
    first.copied.done = True
    assert ring.take() is first
    second.copied.done = True
    assert ring.take() is second
    assert len(made.slots) == 2


def test_what_a_call_kept_lives_until_its_copy_is_done() -> None:
    import gc
    import weakref

    class Tensor:
        pass

    ring = Ring(Made(), limit=3)
    slot, tensor = ring.take(), Tensor()
    alive = weakref.ref(tensor)
    ring.give_up(slot, kept=(tensor,))
    del tensor
    ring.take()
    gc.collect()
    assert alive() is not None
    slot.copied.done = True
    assert ring.take() is slot
    gc.collect()
    assert alive() is None


def test_a_bound_that_is_reached_names_the_setting() -> None:
    ring = Ring(Made(), limit=2)
    ring.give_up(ring.take(), kept=None)
    ring.give_up(ring.take(), kept=None)
    with pytest.raises(PreprocessError, match=r"2 by calls given up.*preprocess\.max_slots: 2 allows no more"):
        ring.take()


def test_a_slot_of_a_failed_call_is_never_used_again() -> None:
    made = Made()
    ring = Ring(made, limit=2)
    broken = ring.take()
    broken.copied.done = True  # of an earlier call: it says nothing about this one
    ring.lose(broken, kept=None)
    for _ in range(3):
        slot = ring.take()
        assert slot is not broken
        ring.free(slot)
    ring.lose(ring.take(), kept=None)
    with pytest.raises(PreprocessError, match="2 by calls that failed"):
        ring.take()


def test_slots_are_told_apart_whatever_their_tensors_hold() -> None:
    @dataclass(eq=False)
    class WithTensor(Slot):
        words: torch.Tensor

    made: list[WithTensor] = []
    ring = Ring(lambda: made.append(WithTensor(Event(), torch.zeros(3))) or made[-1], limit=2)  # type: ignore[func-returns-value]
    for slot in (ring.take(), ring.take()):
        ring.give_up(slot, kept=(torch.zeros(2),))
    made[1].copied.done = True
    assert ring.take() is made[1]
    with pytest.raises(PreprocessError, match="1 by calls given up"):
        ring.take()


def test_no_slot_is_lost_where_an_event_cannot_tell() -> None:
    ring = Ring(Made(), limit=2)
    first, second = ring.take(), ring.take()
    for slot in (first, second):
        ring.give_up(slot, kept=None)
    first.copied.done = True
    gone = mock.patch.object(second.copied, "query", side_effect=RuntimeError("the device is gone"))
    with gone, pytest.raises(RuntimeError, match="the device is gone"):
        ring.take()
    assert ring.take() is first
    second.copied.done = True
    assert ring.take() is second


def test_a_call_that_failed_gives_its_slot_back_when_the_device_has_come_so_far() -> None:
    ring = Ring(Made(), limit=1)
    slot = ring.take()
    ring.fail(slot, kept=None)
    assert slot.copied.recorded
    with pytest.raises(PreprocessError, match="1 by calls given up"):
        ring.take()
    slot.copied.done = True
    assert ring.take() is slot
    with mock.patch.object(slot.copied, "record", side_effect=RuntimeError("the device is gone")):
        ring.fail(slot, kept=None)
    with pytest.raises(PreprocessError, match="1 by calls that failed"):
        ring.take()


def test_growing_is_logged_once_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            ring = Ring(Made(), limit=8)
            ring.give_up(ring.take(), kept=None)
            ring.take()
    told = [record.message for record in caplog.records]
    assert told == [
        "a dispatcher's ring of slots grows beyond one: 1 by calls given up before their wait, 0 by calls that failed"
    ]
