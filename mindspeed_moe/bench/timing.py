"""Interleaved timing of several callables, and percentiles."""

from __future__ import annotations

import contextlib
import gc
import math
import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

WARM_UP = 10  # rounds that are not counted

Turns = Generator[tuple[str, bool], None, None]


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


def turns(
    names: Sequence[str], rounds: int, seed: int, warm_up: int = WARM_UP
) -> Generator[tuple[str, bool], None, None]:
    """Yield (name, whether it counts), every name once a round; the first rounds warm up and do not count.

    Each round has another order, drawn from the seed, so that none always finds the caches as the same one left
    them; the same seed gives the same orders in every process. The garbage collector rests meanwhile.
    """
    order = list(names)
    generator = random.Random(seed)
    was_collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for number in range(warm_up + rounds):
            generator.shuffle(order)
            for name in order:
                yield name, number >= warm_up
    finally:
        if was_collecting:
            gc.enable()


def interleave(
    calls: Mapping[str, Callable[[], object]], rounds: int, seed: int, before_each: Callable[[], object] = nothing
) -> dict[str, list[int]]:
    """Run every call once a round, in `turns`; returns its durations in nanoseconds, one a round.

    before_each is run before every call and not timed.
    """
    durations: dict[str, list[int]] = {name: [] for name in calls}
    with contextlib.closing(turns(list(calls), rounds, seed)) as order:
        for name, counts in order:
            call = calls[name]
            before_each()
            start = time.perf_counter_ns()
            call()
            elapsed = time.perf_counter_ns() - start
            if counts:
                durations[name].append(elapsed)
    return durations
