"""JSON lines, one file after the other for each rank, within a bound on disk. docs/telemetry.md describes the format.

The lines of one training step go to the file in one piece, and a piece that did not fit is cut off again: whatever
happens to the process or to the disk, only what was not written yet is missing, and none is there in half.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from mindspeed_moe.log import logger
from mindspeed_moe.telemetry.load import Load
from mindspeed_moe.telemetry_files import FORMAT, SEGMENT, segment_name

_SEGMENTS = 8  # of the bound: a file's share, which goes at once when the oldest one is deleted
_RETRY_S = 30.0  # after an error of the file system


class JsonLines:
    """A rank's files.

    told: goes into the first line of each file (rank, versions ...). max_bytes: bound on all files of the rank; a file
    with the lines of one step is there in any case.
    """

    def __init__(self, folder: Path, rank: int, told: Mapping[str, Any], max_bytes: int) -> None:
        self._folder, self._rank, self._told = folder, rank, dict(told)
        self._max_bytes = max_bytes
        self._most = 0  # bytes of a step's lines so far
        self._file: int | None = None
        self._size = 0
        self._number = 0
        self._described: set[int] = set()
        self._silent_until = 0.0
        self._lost = 0

    def write(self, loads: Sequence[Load]) -> None:
        """Append the records of one training step; an error of the file system loses them, and is tried again later."""
        if time.monotonic() < self._silent_until:
            self._lost += len(loads)
            return
        try:
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
            self.close()
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

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _lines(self, loads: Sequence[Load]) -> bytes:
        lines = []
        for load in loads:
            if load.facts.layer not in self._described:
                self._described.add(load.facts.layer)
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
        self.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        number = max([self._number, *(number for number, _ in self._own_files())]) + 1
        path = self._folder / segment_name(self._rank, number)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        self._number, self._size, self._described = number, 0, set()
        started = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        head = {"kind": "header", "format": FORMAT, "segment": number, "started": started, **self._told}
        try:
            self._append(encoded(head))
        except OSError:
            path.unlink()  # or another empty file would stay at every try
            raise
        self._keep_within_bound()

    def _own_files(self) -> list[tuple[int, Path]]:
        found = []
        for path in self._folder.iterdir():
            match = SEGMENT.fullmatch(path.name)
            if match and int(match[1]) == self._rank:
                found.append((int(match[2]), path))
        return sorted(found)

    def _keep_within_bound(self) -> None:
        """Delete the oldest files, so that the one that was begun has room."""
        files = self._own_files()[:-1]
        room = self._max_bytes - max(self._max_bytes // _SEGMENTS, self._size + self._most)
        total = sum(path.stat().st_size for _, path in files)
        for _, path in files:
            if total <= room:
                return
            total -= path.stat().st_size
            path.unlink()


def encoded(line: Mapping[str, Any]) -> bytes:
    """Return a line's text; arrays become lists."""
    return orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
