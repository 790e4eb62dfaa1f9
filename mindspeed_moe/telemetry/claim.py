"""One launch at a time writes to a folder: two would mix their ranks, and report of one what the other did.

All processes of a launch share a lock on one file, which holds a word that their store knows; the system takes the lock
from a process that ends, however it ends. Nothing is held where the file system has no locks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import weakref
from pathlib import Path
from typing import Any

from mindspeed_moe import log
from mindspeed_moe.preprocess.agreement import launch_store
from mindspeed_moe.telemetry_files import CLAIM

_OWN = os.urandom(8).hex()
_KEY = "mindspeed_moe/telemetry"
# File systems without locks, and something else under the lock's name. All other errors are those of the folder.
_NO_LOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF}
_NO_LOCK |= {errno.EISDIR, errno.ELOOP, errno.ENXIO}
# Of a store: its host has ended, the main thread has just destroyed the process groups, or it cannot do as much.
_GONE = (RuntimeError, ValueError, NotImplementedError)


class FolderTakenError(OSError):
    """Another launch writes to the folder."""


class Claim:
    """What this process holds of a folder. word: of the launch, while it is held; "" where nothing can be locked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: int | None = None
        self.word = ""
        self._known: Any = lambda: None  # the store that knows the word; held, it would outlive its process group
        self._none = False

    def hold(self) -> None:
        """Take the folder, or go on holding it.

        Raises OSError when it cannot be written to, FolderTakenError when another launch writes to it.
        """
        if self._file is None and not self._none:
            try:
                self._take()
            except OSError as error:
                if error.errno not in _NO_LOCK:
                    raise
                self._none = True
                log.once(
                    logging.WARNING,
                    f"telemetry: {self._folder} cannot be locked ({error.strerror}): nothing keeps another launch out",
                )
        if self._file is not None:
            self._announce()

    def release(self) -> None:
        """Leave the folder to others."""
        file, self._file = self._file, None
        if file is not None:
            fcntl.flock(file, fcntl.LOCK_UN)  # also where a child, which was forked, has the file open
            os.close(file)

    def _take(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self._folder / CLAIM, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                self.word = _OWN + os.urandom(4).hex()  # another one each time that the folder is taken
                os.ftruncate(file, 0)
                os.pwrite(file, self.word.encode(), 0)
                self._announce()  # while nobody else can read the word
            fcntl.flock(file, fcntl.LOCK_SH)  # at once: whoever has the file alone is about to share it
            self.word = os.pread(file, 64, 0).decode(errors="replace")
            if not self._is_ours():
                raise FolderTakenError(
                    "another launch writes to it, and its ranks would be taken for ours; give each launch a "
                    "`telemetry.folder` of its own"
                )
        except BaseException:
            os.close(file)
            raise
        self._file = file

    def _announce(self) -> None:
        """Tell the launch's store the word, again when process groups were made anew."""
        with contextlib.suppress(*_GONE):  # asked again with the next step
            store = launch_store()
            if store is not None and store is not self._known():
                store.add(f"{_KEY}/{self.word}", 1)
                self._known = weakref.ref(store)

    def _is_ours(self) -> bool:
        if self.word.startswith(_OWN):
            return True
        with contextlib.suppress(*_GONE):
            store = launch_store()
            return store is not None and store.add(f"{_KEY}/{self.word}", 0) > 0
        return False
