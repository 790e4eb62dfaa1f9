"""The queue between training and the writers, and the thread that empties it. Training never waits here."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mindspeed_moe import lifetime, log
from mindspeed_moe.log import logger
from mindspeed_moe.telemetry.load import Load, Taken, loads

_WAITING = 256  # training steps whose records may wait; with a disk that hangs, later ones are dropped
MISSING = "telemetry: records are missing"
_FAREWELL_S = 5.0  # that the end of the process waits for what is in the queue


class Writer(Protocol):
    """Takes records in the outlet's thread."""

    def write(self, loads: Sequence[Load]) -> None:
        """Write the records of one training step."""

    def close(self) -> None:
        """No more records will come."""


class Outlet:
    """make: makes the writers, in the thread, with the first records. before_close: called before the last ones go."""

    def __init__(self, make: Callable[[], Sequence[Writer]]) -> None:
        self._make = make
        self._queue: queue.Queue[Sequence[Taken] | None] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._dropped = 0
        self.before_close: Callable[[], None] = lambda: None

    def open(self) -> None:
        """Start the thread, if it is not there; when the interpreter ends it is too late for that."""
        if self._thread is None and os.getpid() == self._process:
            self._thread = threading.Thread(target=self._run, name="mindspeed_moe telemetry", daemon=True)
            self._thread.start()
            lifetime.at_end(self.close)

    def put(self, taken: Sequence[Taken]) -> None:
        """Hand over the records of one training step; they are dropped when the writers cannot keep up."""
        if os.getpid() != self._process:  # a child that was forked has neither the thread nor a claim to the files
            return
        self.open()
        try:
            self._queue.put_nowait(taken)
        except queue.Full:
            self._dropped += 1
            log.once(
                logging.WARNING, f"telemetry: {_WAITING} steps wait to be written; records are dropped from here on"
            )

    def close(self) -> None:
        """Write what is in the queue, within a few seconds, and end the thread."""
        if self._thread is None or os.getpid() != self._process:
            return
        self.before_close()
        thread, self._thread = self._thread, None
        if self._dropped:
            logger.warning("telemetry: the records of %d steps were dropped: the writers hung", self._dropped)
            self._dropped = 0
        try:
            self._queue.put(None, timeout=_FAREWELL_S)
        except queue.Full:
            return  # the writers hang; the thread ends with the process
        thread.join(_FAREWELL_S)

    def _run(self) -> None:
        writers: list[Writer] | None = None
        while (taken := self._queue.get()) is not None:
            if writers is None:
                writers = self._made()
            added_up = _added_up(taken)
            for writer in writers:
                _guarded(writer, writer.write, added_up)
        for writer in writers or ():
            _guarded(writer, writer.close)

    def _made(self) -> list[Writer]:
        try:
            return list(self._make())
        except Exception as error:
            logger.warning("telemetry: nothing is written: %r; training goes on", error)
            return []


def _added_up(taken: Sequence[Taken]) -> list[Load]:
    try:
        return loads(taken)
    except Exception as error:
        log.once(logging.WARNING, f"{MISSING}: {error!r}; training goes on", MISSING)
        # Not all layers for one of them.
        return [] if len(taken) == 1 else [load for one in taken for load in _added_up([one])]


def _guarded(writer: Writer, step: Callable[..., None], *arguments: Any) -> None:
    try:
        step(*arguments)
    except Exception as error:
        about = f"telemetry: {type(writer).__name__}"  # the texts of errors may differ each time
        log.once(logging.WARNING, f"{about}: {error!r}; training goes on", about)
