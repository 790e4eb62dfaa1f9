"""How long preprocess and its host half take: a wrapper around both, whatever stands there, removed afterwards.

Releases that copy inside of preprocess have no other half: its time is in there.
"""

from __future__ import annotations

import functools
import importlib
import statistics
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from mindspeed_moe.contract.generations import ALLTOALL, HOST_COPY_HOOK, LEGACY

METHODS = ("preprocess", HOST_COPY_HOOK.name)
_CLASSES = {"alltoall": ALLTOALL, "alltoall_seq": LEGACY}


class PreprocessTimer:
    """While entered, times every layer's calls; one entry a layer and forward pass.

    Enter it after `mindspeed_moe.enable` and leave it before `disable`, which expects to find its own patches.
    elapsed: seconds by the clock, with the wait for the other ranks' counts. computing: seconds of this thread's
    processor time, without it. dispatcher: as Megatron's configuration names it.
    """

    def __init__(self, dispatcher: str = "alltoall") -> None:
        self._dispatcher = dispatcher
        self.elapsed: list[float] = []
        self.computing: list[float] = []
        self._latest: dict[int, int] = {}  # id of a dispatcher -> its latest entry
        self._originals: dict[str, Any] = {}

    def __enter__(self) -> PreprocessTimer:
        dispatcher = _class_of(self._dispatcher)
        self._originals = {name: vars(dispatcher)[name] for name in METHODS if name in vars(dispatcher)}
        for name, original in self._originals.items():
            setattr(dispatcher, name, self._timed(original, opens_entry=name == METHODS[0]))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        dispatcher = _class_of(self._dispatcher)
        for name, original in self._originals.items():
            setattr(dispatcher, name, original)

    def _timed(self, original: Callable[..., Any], *, opens_entry: bool) -> Callable[..., Any]:
        @functools.wraps(original)
        def timed(dispatcher: Any, *args: Any, **kwargs: Any) -> Any:
            if opens_entry:
                self._latest[id(dispatcher)] = len(self.elapsed)
                self.elapsed.append(0.0)
                self.computing.append(0.0)
            clock, processor = time.perf_counter(), time.thread_time()
            try:
                return original(dispatcher, *args, **kwargs)
            finally:
                entry = self._latest[id(dispatcher)]
                self.computing[entry] += time.thread_time() - processor
                self.elapsed[entry] += time.perf_counter() - clock

        return timed

    def summary(self) -> dict[str, float | int]:
        """Return the number of entries and the medians in microseconds."""
        return {
            "calls": len(self.elapsed),
            "median_us": statistics.median(self.elapsed) * 1e6,
            "median_computing_us": statistics.median(self.computing) * 1e6,
        }


def _class_of(dispatcher: str) -> type:
    module, _, name = _CLASSES[dispatcher].rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found
