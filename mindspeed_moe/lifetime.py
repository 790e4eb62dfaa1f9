"""What ends with the plugin: threads, files and hooks, which begin when they are first needed.

Whoever starts one says here how it ends; `disable()` and the end of the process run that, last started first.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable

from mindspeed_moe.log import logger

# Kept when the module is reloaded, as in a notebook: what was begun still has to end.
_endings: list[Callable[[], None]] = globals().get("_endings", [])
_lock = globals().get("_lock") or threading.Lock()
_ends_with_the_process = globals().get("_ends_with_the_process", False)


def at_end(ending: Callable[[], None]) -> None:
    """Have `ending` called once, by the next `end`."""
    global _ends_with_the_process
    with _lock:
        _endings.append(ending)
        if not _ends_with_the_process:
            atexit.register(end)
            _ends_with_the_process = True


def end() -> None:
    """Run all endings, the last registered first. One that fails is logged, and does not keep the others from it."""
    while True:
        with _lock:
            if not _endings:
                return
            ending = _endings.pop()
        try:
            ending()
        except Exception:
            logger.exception("something of mindspeed_moe could not be ended in order")
