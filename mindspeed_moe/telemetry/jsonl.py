"""JSON lines, one file after the other for each rank, within a bound on disk. docs/telemetry.md describes the format.

The lines of one training step go to the file in one piece, and a piece that did not fit is cut off again: whatever
happens to the process or to the disk, only what was not written yet is missing, and none is there in half.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import stat
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import orjson

from mindspeed_moe import log
from mindspeed_moe.log import logger
from mindspeed_moe.telemetry.claim import Claim
from mindspeed_moe.telemetry.load import LayerFacts, Load
from mindspeed_moe.telemetry.outlet import MISSING
from mindspeed_moe.telemetry_files import FORMAT, LAST_SEGMENT, SEGMENT, segment_name

_SEGMENTS = 8  # of the bound: a file's share, which goes at once when the oldest one is deleted
_RETRY_S = 30.0  # after an error of the file system


class JsonLines:
    """A rank's files; another rank's from where the process has another one, in process groups that were made anew.

    told: goes into the first line of each file (rank, versions ...). max_bytes: bound on all files of the rank; a file
    with the lines of one step is there in any case. claim: keeps other launches out of the folder.
    """

    # Folder, rank -> its writer in this process: one before it, whose thread hung, is not to write beside it.
    _latest: ClassVar[weakref.WeakValueDictionary[tuple[Path, int], JsonLines]] = weakref.WeakValueDictionary()

    def __init__(
        self, folder: Path, rank: int, told: Mapping[str, Any], max_bytes: int, claim: Claim | None = None
    ) -> None:
        self._folder, self._rank, self._told = folder, rank, dict(told)
        self._max_bytes, self._claim = max_bytes, claim
        self._launch: tuple[int, int] | None = None
        self._most = 0  # bytes of a step's lines so far
        self._file: int | None = None
        self._size = 0
        self._number = 0
        self._described: dict[int, LayerFacts] = {}
        self._kept: set[Path] = set()  # files that cannot be removed
        self._silent_until = 0.0
        self._lost = 0
        self._latest[folder, rank] = self

    def write(self, loads: Sequence[Load]) -> None:
        """Append the records of one training step; an error of the file system loses them, and is tried again later."""
        for launch in dict.fromkeys(one.facts.launch for one in loads):
            self._write(launch, [one for one in loads if one.facts.launch == launch])

    def close(self) -> None:
        """Close the file, and leave the folder to others."""
        self._close_file()
        if self._claim is not None:
            self._claim.release()

    def _write(self, launch: tuple[int, int] | None, loads: Sequence[Load]) -> None:
        if self._latest.get((self._folder, self._rank)) is not self:
            self.close()
            log.once(logging.WARNING, f"{MISSING}: what a hanging disk kept back is not written any more")
            return
        if time.monotonic() < self._silent_until:
            self._lost += len(loads)
            return
        try:
            if self._claim is not None:
                self._claim.hold()
                if self._claim.word:
                    self._told["run"] = self._claim.word
            if launch is not None and launch != self._launch:
                self._close_file()
                self._launch, self._number = launch, 0
                self._rank, self._told["world_size"] = launch
                self._told["rank"] = self._rank
                self._latest[self._folder, self._rank] = self
            if self._file is None or self._size + self._most > self._max_bytes // _SEGMENTS:
                self._next_file()
            data = self._lines(loads)
            if len(data) > self._most:
                self._most = len(data)
                self._keep_within_bound()
            self._append(data)
        except OSError as error:
            self._lost += len(loads)
            self._silent_until = time.monotonic() + _RETRY_S
            self._close_file()
            logger.warning(
                "telemetry: %s cannot be written (%s); training goes on, another try in %d s",
                self._folder,
                error,
                _RETRY_S,
            )
            return
        if self._lost:
            logger.warning("telemetry: written again; %d records are missing", self._lost)
            self._lost = 0

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _lines(self, loads: Sequence[Load]) -> bytes:
        lines = []
        for load in loads:
            if self._described.get(load.facts.layer) != load.facts:
                self._described[load.facts.layer] = load.facts
                lines.append(load.facts.line())
            lines.append(load.line())
        return b"".join(encoded(line) for line in lines)

    def _append(self, data: bytes) -> None:
        assert self._file is not None
        written = 0
        try:
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)

    def _next_file(self) -> None:
        self._close_file()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._number = max(self._number, *(number for number, _ in self._own_files()), 0)
        while self._file is None:
            self._number += 1
            path = self._folder / segment_name(self._rank, self._number)
            with contextlib.suppress(FileExistsError):  # another process was this rank until now, and is not done
                self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        self._size, self._described = 0, {}
        started = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        head = {"kind": "header", "format": FORMAT, "segment": self._number, "started": started, **self._told}
        try:
            self._append(encoded(head))
        except OSError:
            path.unlink()  # or another empty file would stay at every try
            raise
        self._keep_within_bound()

    def _own_files(self) -> list[tuple[int, Path]]:
        """Return what has the name of a file of this rank, whatever it is, by number."""
        found = []
        for path in self._folder.iterdir():
            match = SEGMENT.fullmatch(path.name)
            # Behind the last number there is none: somebody else's joke is not to end telemetry.
            if match and int(match[1]) == self._rank and int(match[2]) < LAST_SEGMENT:
                found.append((int(match[2]), path))
        return sorted(found)

    def _keep_within_bound(self) -> None:
        """Delete the oldest files, so that the one that was begun has room; what cannot be deleted is not counted."""
        sizes = {path: _size(path) for number, path in self._own_files() if number != self._number}
        files = {path: size for path, size in sizes.items() if size is not None and path not in self._kept}
        room = self._max_bytes - max(self._max_bytes // _SEGMENTS, self._size + self._most)
        total = sum(files.values())
        for path, size in files.items():
            if total <= room:
                return
            total -= size
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                self._kept.add(path)
                log.once(
                    logging.WARNING,
                    f"telemetry: {path} cannot be removed ({error.strerror}): it stays, beside {self._max_bytes} bytes",
                    f"telemetry: files that stay in {self._folder}",
                )


def _size(path: Path) -> int | None:
    """Return the bytes of a file, None of what is none or is gone."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def encoded(line: Mapping[str, Any]) -> bytes:
    """Return a line's text; arrays become lists."""
    return orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
