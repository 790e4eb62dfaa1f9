"""The package logger. Root handlers are never touched: how messages look is the launch script's business."""

from __future__ import annotations

import logging
import threading

logger = logging.getLogger("mindspeed_moe")

_said: set[str] = globals().get("_said", set())  # kept when the module is reloaded
_said_lock = threading.Lock()


def once(level: int, message: str, about: str | None = None) -> None:
    """Log `message` the first time that it comes up in this process, or the first message about something."""
    about = message if about is None else about
    with _said_lock:
        if about in _said:
            return
        _said.add(about)
    logger.log(level, message)
