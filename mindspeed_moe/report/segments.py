"""The files of a telemetry folder and their lines, with a count of what is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mindspeed_moe.errors import ReportError
from mindspeed_moe.files import open_regular
from mindspeed_moe.telemetry_files import SEGMENT, segment_name

_MOST_BYTES = 1 << 24  # of one line: a longer one is damage, and never in memory as a whole


@dataclass(frozen=True)
class Segment:
    """One file: its rank, and its number among the rank's files."""

    path: Path
    rank: int
    number: int


@dataclass
class Damage:
    """What could not be read. first: `file:line: reason` of the first malformed line or unreadable file."""

    truncated: int = 0
    malformed: int = 0
    unreadable: int = 0
    first: str | None = None

    def add_malformed(self, segment: Segment, line: int, reason: str) -> None:
        """Count a line that was skipped."""
        self.malformed += 1
        self._remember(f"{segment.path.name}:{line}: {reason}")

    def add_unreadable(self, segment: Segment, error: OSError) -> None:
        """Count a file that was given up."""
        self.unreadable += 1
        self._remember(f"{segment.path.name}: {error.strerror}")

    def _remember(self, text: str) -> None:
        self.first = self.first or text


def segments_of(folder: Path) -> dict[int, list[Segment]]:
    """Return each rank's segments, oldest first. Raises ReportError when there are none."""
    try:
        names = [path for path in folder.iterdir() if SEGMENT.fullmatch(path.name)]
    except OSError as error:
        raise ReportError(f"{folder}: cannot be read: {error.strerror}; expected: a folder of telemetry") from error
    if not names:
        raise ReportError(f"{folder}: holds no telemetry; expected: files such as {segment_name(0, 1)}")
    ranks: dict[int, list[Segment]] = {}
    for path in names:
        match = SEGMENT.fullmatch(path.name)
        assert match is not None
        ranks.setdefault(int(match[1]), []).append(Segment(path, int(match[1]), int(match[2])))
    return {rank: sorted(ranks[rank], key=lambda one: (one.number, one.path.name)) for rank in sorted(ranks)}


def lines_of(segment: Segment, damage: Damage) -> Iterator[tuple[int, bytes, bool]]:
    """Yield each line's number from 1, its bytes, and whether its end is there; a file that fails ends early."""
    number = 0
    try:
        with open_regular(segment.path) as file:
            while line := file.readline(_MOST_BYTES):
                number += 1
                ended = line.endswith(b"\n")
                if not ended and len(line) == _MOST_BYTES:
                    damage.add_malformed(segment, number, f"longer than {_MOST_BYTES} bytes")
                    while line and not line.endswith(b"\n"):
                        line = file.readline(_MOST_BYTES)
                    continue
                yield number, line, ended
    except OSError as error:
        damage.add_unreadable(segment, error)
