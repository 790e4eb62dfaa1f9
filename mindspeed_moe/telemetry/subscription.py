"""Hands every record to the callables of the launch script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mindspeed_moe.log import logger
from mindspeed_moe.telemetry.load import Load
from mindspeed_moe.telemetry.public import Record, Subscriber, subscribers


class Subscribers:
    """Calls everybody; one that raises is called no more."""

    def __init__(self) -> None:
        self._failed: list[Subscriber] = []  # which need not be hashable

    def write(self, loads: Sequence[Load]) -> None:
        """Call every subscriber with each record."""
        for subscriber in subscribers():
            if subscriber in self._failed:
                continue
            try:
                for load in loads:
                    subscriber(_plain({**load.facts.line(), **load.line()}))
            except Exception:
                self._failed.append(subscriber)
                logger.exception("telemetry: %r failed and is called no more; training goes on", subscriber)

    def close(self) -> None:
        """Nothing is held."""


def _plain(record: dict[str, Any]) -> Record:
    return {name: one.tolist() if isinstance(one, np.ndarray) else one for name, one in record.items()}
