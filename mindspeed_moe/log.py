"""The package logger. Root handlers are never touched: how messages look is the launch script's business."""

from __future__ import annotations

import logging
import threading

logger = logging.getLogger("mindspeed_moe")

_said: set[str] = set()
_said_lock = threading.Lock()


def once(level: int, message: str) -> None:
    """Log `message` the first time that it comes up in this process."""
    with _said_lock:
        if message in _said:
            return
        _said.add(message)
    logger.log(level, message)
