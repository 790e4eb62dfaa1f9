"""Named ranges in profiles: counts, exchange, copy, wait and unpack as parts of preprocess.

torch.profiler shows them; so do Nsight (under torch.autograd.profiler.emit_nvtx) and MindStudio. A program keeps
its steps twice, plain and with ranges, and asks once a call which to take: without a profiler nothing is entered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

PREFIX = "mindspeed_moe."


# Whether a profiler listens in this thread; bound once, so that the question is one call and no look-ups.
profiling: Callable[[], bool] = torch._C._autograd._profiler_enabled


def in_range(name: str, step: Callable[P, R]) -> Callable[P, R]:
    """Return `step` inside a range `mindspeed_moe.<name>`."""

    @functools.wraps(step)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.profiler.record_function(PREFIX + name):
            return step(*args, **kwargs)

    return run
