"""What a launch script may call, whether telemetry is on or off."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from mindspeed_moe.preprocess.steps import Steps

Record = Mapping[str, Any]
Subscriber = Callable[[Record], None]

# Kept when the module is reloaded, as in a notebook.
_subscribers: list[Subscriber] = globals().get("_subscribers", [])
_lock = globals().get("_lock") or threading.Lock()
_steps: weakref.ref[Steps] | None = globals().get("_steps")


def subscribe(subscriber: Subscriber) -> Callable[[], None]:
    """Have a callable called with every record of this rank, in the thread that writes; returns what ends that.

    A record is what a line of the files holds (docs/telemetry.md). Needs `telemetry.enabled: true`. What the callable
    raises is logged once; training goes on.
    """
    with _lock:
        _subscribers.append(subscriber)

    def unsubscribe() -> None:
        with _lock:
            if subscriber in _subscribers:
                _subscribers.remove(subscriber)

    return unsubscribe


def subscribers() -> tuple[Subscriber, ...]:
    """Return who is to be called."""
    with _lock:
        return tuple(_subscribers)


def set_step(step: int) -> None:
    """Number the training step that is under way; does nothing where neither telemetry nor `verify` is on.

    Without it steps count from Megatron's iteration at the first forward pass, where Megatron's training loop runs, and
    else from 0.
    """
    steps = _steps() if _steps is not None else None
    if steps is not None:
        steps.set(step)


def now_counting(steps: Steps | None) -> None:
    """Let `set_step` number these; None: nothing."""
    global _steps
    _steps = None if steps is None else weakref.ref(steps)
