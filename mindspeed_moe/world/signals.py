"""An end from outside, by the launcher or by Ctrl-C: seen also while the main thread sits in a call into C."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType

_ENDS = frozenset((signal.SIGTERM, signal.SIGINT))


@contextlib.contextmanager
def ended_like_interrupted() -> Iterator[None]:
    """A launcher ends its processes with SIGTERM: treat it as Ctrl-C, which cleans up."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt("SIGTERM")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Ends:
    """Tells another thread that a signal to end has come: Python runs handlers in the main thread, between calls."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._since: float | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hear of signals until the block ends; outside of the main thread, where Python has none, do nothing."""
        with self._reader, self._writer:
            if threading.current_thread() is not threading.main_thread():
                self._reader.setblocking(False)
                yield
                return
            self._reader.setblocking(False)
            self._writer.setblocking(False)
            before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            try:
                yield
            finally:
                signal.set_wakeup_fd(before)

    def since_s(self) -> float:
        """Return the seconds since a signal to end came, 0 for none."""
        with contextlib.suppress(BlockingIOError):
            if self._since is None and _ENDS & set(self._reader.recv(64)):
                self._since = time.monotonic()
        return 0.0 if self._since is None else time.monotonic() - self._since
