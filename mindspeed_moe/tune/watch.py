"""Keeps a rank that fails, or stands still, from hanging the others: a thread beside each looks at the store."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from mindspeed_moe.errors import BenchError, MindSpeedMoEError

FAILED = 1
_KEY, _HEARD = "mindspeed_moe/tune/failed", "mindspeed_moe/tune/heard"
_PERIOD_S = 0.2
_FAREWELL_S = 3.0  # that a failing rank waits for the others to hear of it, before its launcher ends them


class Watch:
    """Ends this process when another rank has failed, or when a step here takes longer than allowed.

    store: a torch.distributed store, a connection of its own: the main thread may be waiting in another one.
    """

    def __init__(self, store: Any, rank: int, world_size: int, step_limit: timedelta) -> None:
        self._store, self._rank, self._others = store, rank, world_size - 1
        self._limit = step_limit.total_seconds()
        self._step, self._since = "start", time.monotonic()
        self._over, self._failed = threading.Event(), threading.Event()

    def step(self, name: str) -> None:
        """A new step begins; its time runs from now."""
        self._step, self._since = name, time.monotonic()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look at the store until the block ends; an exception inside it is told to the other ranks.

        When another rank has failed before, that is the reason for whatever happens here: BenchError says so.
        """
        thread = threading.Thread(target=self._look, name="mindspeed_moe tune watch", daemon=True)
        thread.start()
        try:
            yield
        except BaseException as error:
            self._failed.set()
            first = self._tell(f"{type(error).__name__}: {error}")
            if first is None:
                self._wait_until_heard()
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
            if time.monotonic() - self._since > self._limit:
                first = self._tell(f"not done after {self._limit:.0f} s")
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
        print(f"mindspeed-moe tune: rank {self._rank} ends: {problem}", file=sys.stderr, flush=True)
        os._exit(FAILED)
