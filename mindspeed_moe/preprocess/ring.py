"""Slots: the buffers of one call, from its first kernel until the host has read the copy. A ring for each dispatcher.

What leaves the plugin owns its memory, so a slot is free as soon as the host has read it, whoever keeps the splits.
One slot is enough for training as it should be; another is needed when a call was given up before its wait (an
exception, a forward that nobody finished) and its copy may still be under way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from mindspeed_moe import log
from mindspeed_moe.errors import PreprocessError


@dataclass(eq=False)  # nor are those that follow: a slot is itself, whatever its tensors hold
class Slot:
    """Base of slots. copied: the event behind the copy to the host."""

    copied: Any


S = TypeVar("S", bound=Slot)


class Ring(Generic[S]):
    """Gives out slots, never one that the device may still use.

    make: makes a slot. limit: how many there may be (preprocess.max_slots).
    """

    def __init__(self, make: Callable[[], S], limit: int) -> None:
        self._make = make
        self._limit = limit
        self._free: list[S] = []
        self._given_up: list[tuple[S, object]] = []
        self._broken: list[tuple[S, object]] = []
        self._made = 0

    def take(self) -> S:
        """Return a free slot; PreprocessError when all are in use and no more may be made."""
        if self._free:
            return self._free.pop()
        if self._given_up:
            self.expects_copies()
            if self._free:
                return self._free.pop()
        if self._made >= self._limit:
            raise PreprocessError(
                f"all {self._made} slots of a dispatcher are in use: {self._in_use()}; "
                f"preprocess.max_slots: {self._limit} allows no more"
            )
        if self._given_up or self._broken:
            log.once(logging.WARNING, f"a dispatcher's ring of slots grows beyond one: {self._in_use()}")
        elif self._made:
            log.once(logging.INFO, f"a dispatcher's ring of slots grows beyond one: {self._in_use()}")
        self._free.append(self._make())
        self._made += 1
        return self._free.pop()

    def idle(self) -> bool:
        """Return whether no call was given up; so that nobody has to keep this ring when its dispatcher has gone."""
        return not self._given_up

    def expects_copies(self) -> bool:
        """Return whether copies of calls that were given up are still under way; the slots of the others are free."""
        # A call may be given up at any moment, by whoever collects garbage: each is in one of the lists all the time.
        waiting, self._given_up = self._given_up, []
        try:
            while waiting:
                slot, kept = waiting[-1]
                done = slot.copied.query()
                del waiting[-1]
                if done:
                    self._free.append(slot)
                else:
                    self._given_up.append((slot, kept))
        finally:
            self._given_up += waiting
        return bool(self._given_up)

    def free(self, slot: S) -> None:
        """Take back a slot that the host has read."""
        if slot not in self._free:  # as after an interrupt
            self._free.append(slot)

    def give_up(self, slot: S, kept: object) -> None:
        """Take back the slot of a call that nobody waited for; `kept` lives until its copy is done."""
        if slot not in (*self._free, *(one for one, _ in (*self._given_up, *self._broken))):
            self._given_up.append((slot, kept))

    def fail(self, slot: S, kept: object) -> None:
        """Take back the slot of a call that failed, and of which all that was begun stands on the current stream."""
        try:
            slot.copied.record()
        except Exception:  # what failed before is about to be told
            self.lose(slot, kept)
        else:
            self.give_up(slot, kept)

    def lose(self, slot: S, kept: object) -> None:
        """Take back the slot of a call that failed half-way: nothing tells when the device is done with it."""
        self._broken.append((slot, kept))

    def _in_use(self) -> str:
        given_up, broken = len(self._given_up), len(self._broken)
        under_way = self._made - len(self._free) - given_up - broken
        told = f"{given_up} by calls given up before their wait, {broken} by calls that failed"
        return told + (f", {under_way} by calls under way" if under_way else "")
