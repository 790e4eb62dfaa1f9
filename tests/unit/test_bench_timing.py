"""Interleaved timing and percentiles. What a call takes is never asserted."""

from __future__ import annotations

import gc
import random
import time

import pytest

from mindspeed_moe.bench import timing
from mindspeed_moe.bench.timing import WARM_UP, Spread, interleave, percentile, spread


def plain_percentile(values, percent):
    """Between the values of rank floor and ceil of (n - 1) * p, in exact integers of percent."""
    ordered = sorted(values)
    steps = (len(ordered) - 1) * percent
    below, rest = steps // 100, steps % 100
    if rest == 0:
        return ordered[below]
    return (ordered[below] * (100 - rest) + ordered[below + 1] * rest) / 100


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 100, 301])
@pytest.mark.parametrize("percent", [0, 20, 50, 80, 99, 100])
def test_percentiles(count, percent):
    values = [random.Random(count).randrange(1000) for _ in range(count)]
    assert percentile(sorted(values), percent) == pytest.approx(plain_percentile(values, percent))


def test_a_percentile_by_hand():
    assert percentile([10, 20, 30, 40, 50, 60], 50) == 35
    assert percentile([10, 20, 30, 40, 50, 60], 20) == 20


def test_spread_is_in_microseconds_whatever_the_order():
    assert spread([5000, 1000, 4000, 2000, 3000, 6000]) == Spread(2.0, 3.5, 5.0)


def orders(seed):
    said = []
    calls = {name: (lambda name=name: said.append(name)) for name in "abc"}
    durations = interleave(calls, 40, seed, lambda: said.append("-"))
    assert {name: len(taken) for name, taken in durations.items()} == {"a": 40, "b": 40, "c": 40}
    assert set(said[::2]) == {"-"}
    return ["".join(said[1::2][start : start + 3]) for start in range(0, len(said) // 2, 3)]


def test_calls_take_turns_in_an_order_that_the_seed_decides():
    rounds = orders(1)
    assert len(rounds) == WARM_UP + 40
    assert {"".join(sorted(one)) for one in rounds} == {"abc"}
    assert len(set(rounds)) == 6
    assert orders(1) == rounds
    assert orders(2) != rounds


def test_what_stands_between_two_calls_is_not_timed(monkeypatch):
    clock = [0]
    monkeypatch.setattr(time, "perf_counter_ns", lambda: clock[0])

    def takes(nanoseconds):
        def wait():
            clock[0] += nanoseconds

        return wait

    durations = interleave({"short": takes(7), "long": takes(11)}, 3, 0, takes(1000))
    assert durations == {"short": [7, 7, 7], "long": [11, 11, 11]}


@pytest.mark.parametrize("collecting", [True, False])
def test_the_garbage_collector_rests_and_comes_back_even_after_an_error(collecting):
    seen = []

    def fail():
        seen.append(gc.isenabled())
        raise ZeroDivisionError

    (gc.enable if collecting else gc.disable)()
    try:
        with pytest.raises(ZeroDivisionError):
            interleave({"fail": fail}, 1, 0)
        assert seen == [False]
        assert gc.isenabled() is collecting
    finally:
        gc.enable()


def test_nothing_does_nothing():
    assert timing.nothing() is None
