"""The host as a device: what Megatron asks torch.cuda for, when everything runs in order on the host."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import torch


class HostEvent:
    """An event on the host: work is done when the call that does it returns, so nothing is ever pending."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._recorded = 0.0

    def record(self, stream: Any = None) -> None:
        """Take the time."""
        self._recorded = time.perf_counter()

    def elapsed_time(self, end: HostEvent) -> float:
        """Return the milliseconds until `end` was recorded."""
        return (end._recorded - self._recorded) * 1e3

    def query(self) -> bool:
        """Whether the recorded work is done: always."""
        return True

    def wait(self, stream: Any = None) -> None:
        """Return at once."""

    def synchronize(self) -> None:
        """Return at once."""


class HostStream:
    """A stream on the host: there is one order of work, the program's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        """Return at once."""

    def wait_event(self, event: Any) -> None:
        """Return at once."""

    def record_event(self, event: HostEvent | None = None) -> HostEvent:
        """Record an event, a new one when none is given."""
        event = event or HostEvent()
        event.record(self)
        return event

    def query(self) -> bool:
        """Whether all work is done: always."""
        return True

    def synchronize(self) -> None:
        """Return at once."""


_STREAM = HostStream()
_DEVICE = torch.device("cpu")


def current_stream(device: Any = None) -> HostStream:
    """Return the one stream."""
    return _STREAM


def stream(stream: Any) -> contextlib.nullcontext[None]:
    """Enter a stream: nothing changes."""
    return contextlib.nullcontext()


def current_device() -> torch.device:
    """Return the host, in a form that `device=` takes."""
    return _DEVICE


def set_device(device: Any) -> None:
    """Choose a device: there is one."""


def synchronize(device: Any = None) -> None:
    """Return at once."""


def to_current_device(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Stand for Tensor.cuda: a tensor on the host is where it should be."""
    return self


def get_rng_state(device: Any = "cpu", clone: bool = False, graph_safe: bool = False) -> torch.Tensor:
    """Return the state of the host's generator (a fresh copy, as torch gives it)."""
    return torch.get_rng_state()


def set_rng_state(new_state: torch.Tensor, device: Any = -1, graph_safe: bool = False) -> None:
    """Set the state of the host's generator."""
    torch.set_rng_state(new_state)


def manual_seed(seed: int) -> None:
    """Seed the host's generator and nothing else, as torch.cuda.manual_seed does for a GPU's."""
    torch.default_generator.manual_seed(int(seed))


def host_copy(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
    """Convert a host tensor as Megatron's maybe_move_tensor_to_cpu converts a GPU tensor; pass on the rest."""
    if not isinstance(tensor, torch.Tensor):
        return tensor
    return tensor.numpy() if as_numpy else tensor
