"""What a launch script may ask, whether `verify` is on or off."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Compared:
    """What this rank has compared with the reference, and found equal.

    calls: of preprocess of which everything was compared. layers: that they belong to.
    """

    calls: int = 0
    layers: int = 0


_latest: Compared | None = None


def compared() -> Compared | None:
    """Return what was compared so far since the last `enable`; None where `verify` is off.

    A difference ends the run, so that what this counts was equal. On ranks whose dispatchers are not verified (no MoE
    layer, `stock`) both numbers stay 0.
    """
    return _latest


def now_comparing(counted: Compared | None) -> None:
    """Let `compared` return these from here on."""
    global _latest
    _latest = counted
