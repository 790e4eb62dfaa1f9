"""Where a rank stands: step, layer, collective, and the main thread's stack."""

from __future__ import annotations

import sys
import threading
import time
import traceback

_FRAMES = 12  # innermost ones that are told


class Place:
    """Written by the main thread, read by the watch's: single assignments, so nothing needs a lock.

    step: its name. at: layer and micro-batch, or what is being done. collective: the last one that was called.
    """

    def __init__(self) -> None:
        self.step = "start"
        self.at = ""
        self.collective = "none yet"
        self.inside = False  # whether the call of the collective has not returned yet
        self._since = time.monotonic()
        self._raised = ""

    def begin(self, step: str) -> None:
        """A new step begins."""
        self.step, self.at, self._since = step, "", time.monotonic()

    def left(self, error: BaseException) -> None:
        """An error leaves the step: where it was raised is where this rank stands from now on."""
        self._raised = "".join(traceback.format_exception(error, limit=-_FRAMES))

    def describe(self) -> str:
        """Return several lines: where the main thread of this process stands at this moment."""
        state = "has not returned" if self.inside else "has returned, or was launched"
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        frames = traceback.extract_stack(frame)[-_FRAMES:] if frame is not None else []
        stack = self._raised or "".join(traceback.format_list(frames))
        return (
            f"step: {self.step} (for {time.monotonic() - self._since:.1f} s)\n"
            f"at: {self.at or 'its beginning'}\n"
            f"last collective: {self.collective} ({state})\n"
            f"stack:\n{stack}"
        )
