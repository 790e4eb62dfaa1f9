"""Keeps a rank that fails, or stands still, from hanging the others: a thread beside each looks at the store."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from mindspeed_moe.errors import BenchError, MindSpeedMoEError
from mindspeed_moe.world.signals import Ends

FAILED = 1
_KEY, _HEARD = "mindspeed_moe/watch/failed", "mindspeed_moe/watch/heard"
_STANDING, _TOLD = "mindspeed_moe/watch/standing", "mindspeed_moe/watch/told"
_PERIOD_S = 0.2
_FAREWELL_S = 3.0  # that a failing rank waits for the others to hear of it, before its launcher ends them
_SILENT = "no answer: its process has ended, or nothing in it can run"


@dataclass(frozen=True)
class Command:
    """What is watched.

    name: as on the command line. stand: says where this rank stands; None where that is not asked.
    tell: called on one rank, with what has failed and where every rank stands, before all of them end.
    """

    name: str
    stand: Callable[[], str] | None = None
    tell: Callable[[str, Mapping[int, str]], object] | None = None


TUNE = Command("tune")


def _told(error: BaseException) -> str:
    """An interruption may hit a rank that is leaving with an error: that is the reason then."""
    reason = error.__context__ if isinstance(error, KeyboardInterrupt) and error.__context__ else error
    return f"{type(reason).__name__}: {reason}"


class Watch:
    """Ends this process when another rank has failed, or when a step here takes longer than allowed.

    store: a torch.distributed store, a connection of its own: the main thread may be waiting in another one.
    """

    def __init__(self, store: Any, rank: int, world_size: int, step_limit: timedelta, command: Command = TUNE) -> None:
        self._store, self._rank, self._others = store, rank, world_size - 1
        self._limit, self._command = step_limit.total_seconds(), command
        self._step, self._since = "start", time.monotonic()
        self._over, self._failed = threading.Event(), threading.Event()
        self._ends = Ends()

    def step(self, name: str) -> None:
        """A new step begins; its time runs from now."""
        self._step, self._since = name, time.monotonic()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look at the store until the block ends; an exception inside it is told to the other ranks.

        When another rank has failed before, that is the reason for whatever happens here: BenchError says so.
        """
        thread = threading.Thread(target=self._look, name=f"mindspeed_moe {self._command.name} watch", daemon=True)
        with self._ends.listening():
            thread.start()
            try:
                yield
            except BaseException as error:
                self._failed.set()
                first = self._tell(_told(error))
                if first is None:
                    self._wait_until_heard()
                self._part_undisturbed(first)
                if first is None or isinstance(error, MindSpeedMoEError):
                    raise
                raise BenchError(f"rank {self._rank} ends: {first}") from error
            finally:
                self._over.set()
                thread.join()

    def _tell(self, problem: str) -> str | None:
        """Put a problem where the other ranks look; returns None, or the problem of a rank that was first."""
        own = f"rank {self._rank}, in step '{self._step}': {problem}"
        with contextlib.suppress(RuntimeError):  # the store may be gone with its host
            first: str = self._store.compare_set(_KEY, "", own).decode()
            self._store.add(_HEARD, 1)
            return None if first == own else first
        return None

    def _wait_until_heard(self) -> None:
        until = time.monotonic() + _FAREWELL_S
        with contextlib.suppress(RuntimeError, KeyboardInterrupt):
            while self._store.add(_HEARD, 0) <= self._others and time.monotonic() < until:
                time.sleep(_PERIOD_S / 4)

    def _look(self) -> None:
        while not self._over.wait(_PERIOD_S):
            if self._failed.is_set():  # the main thread speaks for this rank
                continue
            stuck = ""
            if time.monotonic() - self._since > self._limit:
                stuck = f"not done after {self._limit:.0f} s"
            elif self._ends.since_s() > _FAREWELL_S / 2:  # the main thread would have ended by itself
                stuck = "ended from outside, while it stood in a call"
            if stuck:
                first = self._tell(stuck)
                self._wait_until_heard()
                self._end(first or self._problem())
                return
            problem = self._problem()
            # The main thread may sit in a collective that nothing interrupts; if not, it has a moment to end by itself.
            if problem is not None and not self._failed.wait(_PERIOD_S) and not self._over.is_set():
                with contextlib.suppress(RuntimeError):
                    self._store.add(_HEARD, 1)
                self._end(problem)
                return

    def _problem(self) -> str | None:
        try:
            return self._store.get(_KEY).decode() if self._store.check([_KEY]) else None
        except RuntimeError as error:
            return f"the store of this launch is gone ({str(error).splitlines()[0]})"

    def _end(self, problem: str | None) -> None:
        self._part(problem)
        print(f"mindspeed-moe {self._command.name}: rank {self._rank} ends: {problem}", file=sys.stderr, flush=True)
        os._exit(FAILED)

    # --------------------------------------------------------------------------------------- where everybody stands

    def _part_undisturbed(self, first: str | None) -> None:
        """Part in a thread: a launcher that ends this process meanwhile interrupts only the main one."""
        if self._command.stand is None:
            return
        thread = threading.Thread(target=lambda: self._part(first or self._problem()), daemon=True)
        thread.start()
        while thread.is_alive():
            with contextlib.suppress(KeyboardInterrupt):
                thread.join()

    def _part(self, problem: str | None) -> None:
        """Say where this rank stands; the first rank that still answers tells it of all, the others wait for that."""
        command = self._command
        if command.stand is None or command.tell is None:
            return
        with contextlib.suppress(RuntimeError):  # the store may be gone with its host
            self._store.set(f"{_STANDING}/{self._rank}", command.stand())
            self._store.add(_STANDING, 1)
            self._wait(lambda: self._store.add(_STANDING, 0) > self._others)
            if any(self._store.check([f"{_STANDING}/{rank}"]) for rank in range(self._rank)):
                self._wait(lambda: self._store.check([_TOLD]))
                return
            command.tell(str(problem), {rank: self._standing(rank) for rank in range(self._others + 1)})
            self._store.set(_TOLD, "yes")
            return
        command.tell(str(problem), {self._rank: command.stand()})

    def _standing(self, rank: int) -> str:
        key = f"{_STANDING}/{rank}"
        return str(self._store.get(key).decode()) if self._store.check([key]) else _SILENT

    def _wait(self, done: Callable[[], bool]) -> None:
        until = time.monotonic() + _FAREWELL_S
        while not done() and time.monotonic() < until:
            time.sleep(_PERIOD_S / 4)
