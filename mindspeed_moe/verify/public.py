"""What a launch script may ask, whether `verify` is on or off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Compared:
    """What this rank has compared with the reference, and found equal.

    calls: of preprocess of which everything was compared. layers: that they belong to.
    """

    calls: int
    layers: int


def _nothing() -> None:
    return None


_ask: Callable[[], Compared | None] = globals().get("_ask", _nothing)  # kept when the module is reloaded


def compared() -> Compared | None:
    """Return what was compared so far since the plugin was last enabled; None where `verify` is off.

    A difference ends the run, so that what this counts was equal. On ranks whose dispatchers are not verified (no MoE
    layer, `stock`) both numbers stay 0.
    """
    return _ask()


def now_comparing(ask: Callable[[], Compared] | None) -> None:
    """Let `compared` ask this from here on; None: nothing is compared."""
    global _ask
    _ask = ask or _nothing
