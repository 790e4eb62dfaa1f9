"""What our programs print is their own: what libraries print beside it is put aside, and shown when something fails.

For commands and the ranks that they start, never for training: there, output is the launch script's business.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import IO, Any

from mindspeed_moe.environment import libraries_may_speak, quieten_torch
from mindspeed_moe.errors import MindSpeedMoEWarning, printable
from mindspeed_moe.log import logger

_MOST = 8000  # bytes of what was put aside that are shown, from its end
_STDOUT, _STDERR = 1, 2


@contextlib.contextmanager
def own_output() -> Iterator[Callable[[], str]]:
    """Keep libraries out of what this program prints; yields a function that returns what was put aside.

    Their warnings, and their logs below an error, are not shown. Standard output is for Python alone: what C++ prints
    there is put aside, up to the end of the process. What is written straight to standard error stays there: it may be
    the last words of a process that dies. With -W or PYTHONWARNINGS everything is shown.
    """
    if libraries_may_speak():
        yield str
        return
    quieten_torch()
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, MindSpeedMoEWarning):
                shown(message, category, *rest, **more)

        warnings.showwarning = show
        last, strangers = logging.lastResort, _Strangers()
        if last is not None:
            last.addFilter(strangers)
        aside = _standard_output_aside()
        try:
            yield lambda: _end_of(aside) if aside is not None else ""
        finally:
            if last is not None:
                last.removeFilter(strangers)


class _Strangers(logging.Filter):
    """Of loggers without a handler, leave out what is no error and not of this package."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR or record.name.partition(".")[0] == logger.name


def _standard_output_aside() -> IO[bytes] | None:
    """Give sys.stdout a descriptor of its own, and the first one to a file; None where it is not the process's."""
    python = sys.stdout
    if not isinstance(python, io.TextIOWrapper) or python is not sys.__stdout__ or python.fileno() != _STDOUT:
        return None
    try:
        aside = tempfile.TemporaryFile()  # noqa: SIM115
    except OSError:  # no place for files: rather mixed than no output at all
        return None
    python.flush()
    sys.stdout = io.TextIOWrapper(
        os.fdopen(os.dup(_STDOUT), "wb", 0 if python.write_through else -1),
        encoding=python.encoding,
        errors=python.errors,
        line_buffering=python.line_buffering,
        write_through=python.write_through,
    )
    os.dup2(aside.fileno(), _STDOUT)
    return aside


def put_aside(path: str) -> None:
    """In a process that our program has started: what is printed from here on goes to a file, but for our own log."""
    if libraries_may_speak():
        return
    logger.addHandler(logging.StreamHandler(open(os.dup(_STDERR), "w", errors="backslashreplace")))  # noqa: SIM115
    with open(path, "wb") as file:
        for descriptor in (_STDOUT, _STDERR):
            os.dup2(file.fileno(), descriptor)


@contextlib.contextmanager
def started_aside(path: str) -> Iterator[None]:
    """What processes print that are started in the block goes to a file. No thread may print meanwhile."""
    if libraries_may_speak():
        yield
        return
    with contextlib.ExitStack() as stack, open(path, "wb") as file:
        for stream, descriptor in ((sys.stdout, _STDOUT), (sys.stderr, _STDERR)):
            stream.flush()
            before = os.dup(descriptor)
            stack.callback(os.close, before)
            stack.callback(os.dup2, before, descriptor)
            os.dup2(file.fileno(), descriptor)
        yield


def put_aside_in(path: str) -> str:
    """Return the end of what was put aside in a file, under a heading; empty when that is nothing."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        return _end_of(file)
    return ""


def _end_of(file: IO[bytes]) -> str:
    size = os.fstat(file.fileno()).st_size
    text = printable(os.pread(file.fileno(), _MOST, max(0, size - _MOST)).decode(errors="replace")).strip()
    return f"libraries printed:\n{text}" if text else ""
