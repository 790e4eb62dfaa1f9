"""Interleaved timing of several callables, and percentiles."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

WARM_UP = 10  # rounds that are not counted


@dataclass(frozen=True)
class Spread:
    """Percentiles of a duration, in microseconds."""

    p20: float
    p50: float
    p80: float


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return a percentile of values in ascending order, interpolated linearly between the two nearest."""
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def spread(nanoseconds: Sequence[int]) -> Spread:
    """Return the percentiles of durations given in nanoseconds."""
    ordered = sorted(one / 1e3 for one in nanoseconds)
    return Spread(*(percentile(ordered, percent) for percent in (20, 50, 80)))


def nothing() -> None:
    """Do nothing between two calls."""


def interleave(
    calls: Mapping[str, Callable[[], object]], rounds: int, seed: int, before_each: Callable[[], object] = nothing
) -> dict[str, list[int]]:
    """Run every call once a round; returns its durations in nanoseconds, one a round.

    Each round has another order, drawn from the seed, so that none always finds the caches as the same one left
    them; the same seed gives the same orders in every process. before_each is run before every call and not timed.
    The garbage collector rests meanwhile.
    """
    order = list(calls)
    generator = random.Random(seed)
    durations: dict[str, list[int]] = {name: [] for name in calls}
    was_collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for number in range(WARM_UP + rounds):
            generator.shuffle(order)
            for name in order:
                call = calls[name]
                before_each()
                start = time.perf_counter_ns()
                call()
                elapsed = time.perf_counter_ns() - start
                if number >= WARM_UP:
                    durations[name].append(elapsed)
    finally:
        if was_collecting:
            gc.enable()
    return durations
