"""What a process of the demo tells the parent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ready:
    """Rank 0 is about to train: versions of what it imported."""

    versions: dict[str, str]


@dataclass(frozen=True)
class Step:
    """Rank 0 has done a step: number of steps done, loss in nats, seconds that it took."""

    implementation: str
    done: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class Result:
    """Rank 0 has finished an implementation; see training.Run for the fields.

    compared: calls and layers that were verified; None where nothing was.
    """

    implementation: str
    losses: tuple[float, ...]
    seconds: float
    preprocess: dict[str, Any]
    compared: dict[str, int] | None = None
