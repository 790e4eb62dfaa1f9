"""Local processes that live and die together. Knows nothing of what they do.

Each process gets a function to tell the parent something. The first failure ends all; so does leaving the
`with` block for any reason, and the end of the parent itself.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

from mindspeed_moe.output import put_aside, put_aside_in

_GRACE = 5.0  # seconds that a process has to end after SIGTERM
_SHUTDOWN = 60.0  # seconds that an interpreter has to end by itself after its work, on a busy machine too
_ECHO = 1.0  # seconds in which other ranks may report the failure that happened first

Target = Callable[..., None]


class ProcessFailedError(Exception):
    """A process failed; the message names its rank and has its traceback, or how it ended."""


@dataclass(frozen=True)
class _Failure:
    rank: int
    when: float  # on the machine-wide monotonic clock
    text: str


class Processes:
    """Runs target(tell, rank, *arguments) in `count` fresh interpreters; a context manager.

    What they print is put aside, and shown of one that fails.
    target must be importable (a function of a module), arguments picklable.
    """

    def __init__(self, count: int, target: Target, *arguments: Any) -> None:
        self._count = count
        # Read in the child after its output is put aside: it imports what they are made of.
        self._work = pickle.dumps((target, arguments))
        self._folder = tempfile.TemporaryDirectory(prefix="mindspeed-moe-output-")
        self._processes: list[BaseProcess] = []
        self._pipes: dict[Connection, int] = {}

    def __enter__(self) -> Processes:
        # With its helper process running, start() leaves the signal mask alone.
        resource_tracker.ensure_running()
        # The children inherit a mask that blocks Ctrl-C: the parent decides what ends, and they leave no traceback.
        # One that comes meanwhile reaches the parent when the mask is taken off.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for rank in range(self._count):
                self._start(rank)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except BaseException:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def messages(self) -> Iterator[Any]:
        """Yield what the processes tell, until all have ended.

        Raises ProcessFailedError for the failure that happened first.
        """
        failures: list[_Failure] = []
        deadline: float | None = None
        while self._pipes and (deadline is None or time.monotonic() < deadline):
            patience = None if deadline is None else max(0.0, deadline - time.monotonic())
            for ready in connection.wait(list(self._pipes), patience):
                assert isinstance(ready, Connection)
                message = self._receive(ready)
                if isinstance(message, _Failure):
                    failures.append(message)
                    deadline = deadline or time.monotonic() + _ECHO
                elif message is not None and not failures:
                    yield message
        if failures:
            first = min(failures, key=lambda failure: failure.when)
            told = (f"rank {first.rank} failed, all {self._count} were ended", first.text)
            raise ProcessFailedError("\n".join(filter(None, (*told, put_aside_in(self._aside(first.rank))))))

    def _aside(self, rank: int) -> str:
        return f"{self._folder.name}/rank{rank}"

    def _start(self, rank: int) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_in_child, args=(theirs, self._aside(rank), rank, self._work), name=f"rank {rank}", daemon=True
        )
        process.start()
        theirs.close()  # so that the end of the child closes the pipe
        self._processes.append(process)
        self._pipes[ours] = rank

    def _receive(self, pipe: Connection) -> Any:
        """Return a message, a _Failure, or None when the process has ended well."""
        try:
            return pipe.recv()
        except (EOFError, ConnectionResetError):
            rank = self._pipes.pop(pipe)
            pipe.close()
        process = self._processes[rank]
        process.join(_SHUTDOWN)
        code = process.exitcode
        if code == 0:
            return None
        return _Failure(rank, time.monotonic(), f"the process {_ending(code)}, without a traceback")

    def _end(self) -> None:
        for process in self._processes:
            process.terminate()
        deadline = time.monotonic() + _GRACE
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()
        for pipe in self._pipes:
            pipe.close()
        self._pipes.clear()
        self._folder.cleanup()


def _ending(code: int | None) -> str:
    if code is None:
        return f"did not end within {_SHUTDOWN:.0f} s after its work"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _in_child(pipe: Connection, aside: str, rank: int, work: bytes) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        put_aside(aside)
        target, arguments = pickle.loads(work)
        target(pipe.send, rank, *arguments)
    except BaseException as error:
        pipe.send(_Failure(rank, time.monotonic(), "".join(traceback.format_exception(error)).rstrip()))
        pipe.close()
        # No orderly end: a library may wait for peers that are gone.
        os._exit(1)
    pipe.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
