"""What makes a race show: a device that has much to do already, host threads that compute, ranks that come late."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator

import torch

from mindspeed_moe.bench.devices import DEVICES, Clockwork
from mindspeed_moe.bench.load import Busy

_BUSY_US = 2000.0  # of device time in front of a call
_SMALL_KERNELS = 20  # instead of it on a simulated device, whose times say nothing
_LATE_OF = 3  # one call in so many is late
_LATEST_S = 0.004
_THREAD_SIDE = 128  # of the matrices that a busy host thread multiplies
_THREAD_PAUSE_S = 0.001


class Pressure:
    """queue: keeps the device busy; does nothing on the host. late: makes this rank late, at random from a seed."""

    def __init__(self, queue: Callable[[], object], seed: int) -> None:
        self.queue = queue
        self._random = random.Random(seed)

    def late(self) -> None:
        """Sleep for a while, now and then."""
        if self._random.randrange(_LATE_OF) == 0:
            time.sleep(self._random.uniform(0, _LATEST_S))


@contextlib.contextmanager
def under_pressure(device: str, seed: int, *, simulated: bool) -> Iterator[Pressure]:
    """Yield the pressure of a device; on the host, a thread computes until the block ends."""
    place = DEVICES[device]
    if place.streams is not None:
        yield Pressure(
            _small_kernels(device) if simulated else Busy(Clockwork(place.streams()), device, _BUSY_US), seed
        )
        return
    over = threading.Event()
    thread = threading.Thread(target=_compute, args=(over,), name="mindspeed_moe selftest load", daemon=True)
    thread.start()
    try:
        yield Pressure(lambda: None, seed)
    finally:
        over.set()
        thread.join()


def _small_kernels(device: str) -> Callable[[], object]:
    number = torch.zeros(1, device=device)

    def queue() -> None:
        for _ in range(_SMALL_KERNELS):
            number.add_(1)

    return queue


def _compute(over: threading.Event) -> None:
    matrix = torch.ones(_THREAD_SIDE, _THREAD_SIDE)
    while not over.wait(_THREAD_PAUSE_S):
        torch.mm(matrix, matrix)
