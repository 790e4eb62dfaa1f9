"""How long the host waits for the device inside a call: the two calls that can wait are wrapped, and timed.

Stock waits for an event, the seed for a stream, `packed` for an event; nobody waits in another way, which the
simulated runtime's ledger proves. Whatever a call takes besides is time in which the host works or launches.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from mindspeed_moe.bench.places import replaced

OnWait = Callable[[Any], object]


class Waiting:
    """Adds up the time of waits, in nanoseconds."""

    def __init__(self) -> None:
        self._nanoseconds = 0
        self._count = 0

    def take(self) -> tuple[int, int]:
        """Return the nanoseconds and the number of the waits since the last call, and begin anew."""
        taken = self._nanoseconds, self._count
        self._nanoseconds = self._count = 0
        return taken

    @contextlib.contextmanager
    def watching(self, streams: Any, on_wait: OnWait | None = None) -> Iterator[None]:
        """Time every `synchronize` of an event or a stream, under whatever name they are called.

        streams: torch.cuda or its counterpart. on_wait: called with the event or stream before each wait; its time
        counts as waiting.
        """
        owners = (streams.Event, streams.Stream)
        with replaced([(owner, "synchronize", self._timed(owner.synchronize, on_wait)) for owner in owners]):
            yield

    def _timed(self, wait: Callable[..., Any], on_wait: OnWait | None) -> Callable[..., Any]:
        clock = time.perf_counter_ns

        def synchronize(waited: Any, *rest: Any) -> Any:
            start = clock()
            try:
                if on_wait is not None:
                    on_wait(waited)
                return wait(waited, *rest)
            finally:
                self._nanoseconds += clock() - start
                self._count += 1

        return synchronize
