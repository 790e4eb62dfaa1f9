"""How one rank's failed verification reaches all others, without a collective: through the store, seen by a thread.

The main thread of another rank may sit in a collective that will never end. Its thread tells what happened, gives the
main thread a while to come to its next check or to fail by itself, and ends the process if it does not.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed as dist

from mindspeed_moe import lifetime
from mindspeed_moe.log import logger
from mindspeed_moe.preprocess.agreement import launch_store

Report = Mapping[str, Any]

EXIT_CODE = 1
_KEY = "mindspeed_moe/verify"
_PERIOD_S = 0.5
_RANKS_A_SECOND = 2000  # that ask the store: with more ranks, each asks less often
_FAREWELL_S = 15.0  # that a rank which fails waits for the others' dumps: its end may take them and the store along
_GRACE_S = 20.0
_LAST_LOOK_S = 2.0


class Alarm:
    """One rank's ear and voice. A report has a `text` and says in `dump` what the rank left.

    react: called in the thread with another rank's report; returns a sentence for this rank's log, or "".
    run: a word that all ranks have in common once they listen, another one in each run.
    """

    def __init__(self, react: Callable[[Report], str], *, grace_s: float = _GRACE_S) -> None:
        self.run = _word()
        self._react = react
        self._grace_s = grace_s
        self._known: Any = lambda: None  # the store that is listened to; held, it would outlive its process group
        self._line: Callable[[], Any] = lambda: None  # the store to ask, while it is there
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._main_ends = threading.Event()
        self._answered = threading.Event()
        self._answered.set()  # nothing is to be answered
        self._heard: Report | None = None
        self._period_s = _PERIOD_S
        self._prefix = ""
        self._ranks = 1
        self._counted = False
        self._lock = threading.Lock()

    @property
    def heard(self) -> Report | None:
        """Another rank's report, once it has been heard."""
        return self._heard

    def listen(self) -> None:
        """Begin to listen, once there are process groups; again when they have been made anew."""
        if not dist.is_initialized():
            return
        store = dist.distributed_c10d._get_default_store()
        if store is self._known() or launch_store() is None:
            return
        self._over.set()  # of the old store's thread
        self._known, self._over = weakref.ref(store), threading.Event()
        rank, self._ranks = dist.get_rank(), dist.get_world_size()
        # Counted in the store itself, which outlives disable() and enable().
        self._prefix = f"{_KEY}/{store.add(f'{_KEY}/turns/{rank}', 1)}"
        self._period_s = max(_PERIOD_S, self._ranks / _RANKS_A_SECOND)
        self._counted = False
        self.run = store.compare_set(f"{self._prefix}/run", "", self.run).decode()
        if self._ranks > 1:
            store.add(f"{self._prefix}/listening", 1)
            # A connection of its own: a wait of the main thread does not block it. Before torch 2.8 there is none:
            # then the store itself, which must not outlive its process group.
            own = store.clone() if hasattr(store, "clone") else None
            self._line = self._known if own is None else lambda: own
            self._thread = threading.Thread(
                target=self._look, args=(self._line, self._over), name="mindspeed_moe verify", daemon=True
            )
            self._thread.start()
            lifetime.at_end(self.close)

    def sound(self, report: Report) -> None:
        """Tell all ranks, and wait until they part."""
        self.tell(report)
        self.part()

    def tell(self, report: Report) -> None:
        """Tell all ranks; the first report counts."""
        self._main_ends.set()
        if self._ranks > 1:
            with contextlib.suppress(RuntimeError):  # the store may be gone with its host
                _there(self._line).compare_set(f"{self._prefix}/report", "", json.dumps(dict(report)))

    def part(self) -> None:
        """This rank has left its dump: wait until each other has, or fails as well, for a while at most."""
        if self._ranks == 1:
            return
        with contextlib.suppress(RuntimeError):
            store = _there(self._line)
            self._count(store)
            until = time.monotonic() + _FAREWELL_S
            while time.monotonic() < until:
                if store.add(f"{self._prefix}/done", 0) >= store.add(f"{self._prefix}/listening", 0):
                    return
                time.sleep(self._period_s / 5)

    def main_ends(self) -> None:
        """The main thread has come to a check and raises: nobody has to end the process for it.

        Waits until the thread has left this rank's dump: the process may end with the main thread.
        """
        self._main_ends.set()
        self._answered.wait(_FAREWELL_S)

    def close(self) -> None:
        """Stop listening, and leave the process alone; an answer that has begun is brought to its end."""
        self._over.set()
        self._main_ends.set()
        self._known = lambda: None
        self._answered.wait(_FAREWELL_S)
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(_LAST_LOOK_S)  # the interpreter must not end while it asks the store

    def _count(self, store: Any) -> None:
        """This rank has nothing more to leave; said once, whoever comes first: its main thread or the other."""
        with self._lock:
            first, self._counted = not self._counted, True
        if first:
            store.add(f"{self._prefix}/done", 1)

    def _look(self, line: Callable[[], Any], over: threading.Event) -> None:
        while not over.wait(self._period_s):
            try:
                if not _there(line).check([f"{self._prefix}/report"]):
                    continue
                report = json.loads(_there(line).get(f"{self._prefix}/report"))
            except RuntimeError:
                return  # the store is gone: process groups were destroyed, or its host has ended
            if self._main_ends.is_set() or over.is_set():
                return  # this rank fails as well, and says so itself
            self._answer(report, line)
            return

    def _answer(self, report: Report, line: Callable[[], Any]) -> None:
        self._answered.clear()
        self._heard = report
        text = f"rank {dist.get_rank() if dist.is_initialized() else '?'}: {report['text']}{report['dump']}"
        try:
            text += self._react(report)
        except Exception as error:  # the report itself must come out whatever happens here
            text += f" (this rank's own dump failed: {error})"
        logger.critical("%s", text)
        with contextlib.suppress(RuntimeError):
            self._count(_there(line))
        self._answered.set()
        if not self._main_ends.wait(self._grace_s):
            print(f"mindspeed_moe ends this process: {text}", file=sys.stderr, flush=True)
            os._exit(EXIT_CODE)


def _there(line: Callable[[], Any]) -> Any:
    store = line()
    if store is None:
        raise RuntimeError("the store is gone with its process group")
    return store


def _word() -> str:
    """Not from a random generator of Python's or torch's: training may draw from them."""
    return os.urandom(6).hex()
