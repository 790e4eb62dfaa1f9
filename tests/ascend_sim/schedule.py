"""Changes the seed and the delays in the running process, for tests that go through many seeds."""

from __future__ import annotations

from tests.ascend_sim import library


def set_schedule(seed: int, *, delay_us: float | None = None, hold_us: float | None = None) -> None:
    """Tasks put on streams from now on are late by what `seed` draws.

    `delay_us`: mean delay before each task. `hold_us`: mean hold of a task that nobody waits for.
    Both in microseconds, from 0; None leaves them as they are.
    """
    for name, value in (("seed", seed), ("delay_us", delay_us), ("hold_us", hold_us)):
        if value is not None and not 0 <= value < 2**53:
            raise ValueError(f"{name} is {value}; allowed: a number from 0")
    library.running().ascend_sim_set_schedule(
        seed, -1.0 if delay_us is None else delay_us, -1.0 if hold_us is None else hold_us
    )
