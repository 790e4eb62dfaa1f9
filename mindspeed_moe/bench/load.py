"""What keeps a device busy before a call, and a delay on the device that stands for a network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from mindspeed_moe.bench.devices import Clockwork
from mindspeed_moe.errors import BenchError

_SIDE = 1024  # of the square matrices that keep a device busy
_TRIALS = 20  # products that are timed to find out how long one takes
_TRIAL_CYCLES = 10_000_000


class Busy:
    """Matrix products that keep the current stream busy for a while.

    us: how long, in microseconds of device time; the number of products is found by timing some.
    """

    def __init__(self, clockwork: Clockwork, device: str, us: float) -> None:
        self._matrix = torch.ones(_SIDE, _SIDE, device=device)
        self._out = torch.empty_like(self._matrix)
        self._products(_TRIALS)  # the first ones choose their kernels
        one = clockwork.duration_us(lambda: self._products(_TRIALS)) / _TRIALS
        self.products = max(1, math.ceil(us / one)) if us else 0

    def __call__(self) -> None:
        """Queue the products; the host does not wait."""
        self._products(self.products)

    def _products(self, number: int) -> None:
        for _ in range(number):
            torch.mm(self._matrix, self._matrix, out=self._out)


def device_sleep(clockwork: Clockwork, us: float) -> Callable[[], object] | None:
    """Return a call that keeps the current stream asleep for `us` microseconds; None for no delay.

    Raises BenchError where the device has no such kernel.
    """
    if not us:
        return None
    sleep: Any = getattr(clockwork.streams, "_sleep", None)
    if sleep is None:
        raise BenchError("--latency-us: this device has no kernel that sleeps; allowed: 0")
    sleep(_TRIAL_CYCLES)
    cycles = round(us * _TRIAL_CYCLES / clockwork.duration_us(lambda: sleep(_TRIAL_CYCLES)))
    return lambda: sleep(cycles)
