"""Which files of a folder are of one run: of a launch, and of later launches that went on from where it had been."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from mindspeed_moe.report.records import MOST_COUNT, Header, MalformedLineError, parse_header, parse_line, whole
from mindspeed_moe.report.segments import Damage, Segment, lines_of

_UNTOLD = "+"  # behind the word of the launch before: a file without one, as of older releases and without locks


@dataclass
class Run:
    """word, started: of its first launch, "" where not told. first: the step that it begins with, of all `ranks`.

    number: the lowest among its ranks' segments. records, last: counted by who reads them.
    """

    word: str
    started: str
    number: int
    first: int = sys.maxsize
    ranks: set[int] = field(default_factory=set)
    records: int = 0
    last: int = 0


def runs_of(ranks: Mapping[int, list[Segment]]) -> tuple[list[Run], dict[Segment, Run]]:
    """Return the runs, oldest first, and the run of each segment.

    A launch that begins behind the first step of the run before it goes on with it, as from a checkpoint; one that
    begins there or earlier is a run of its own. Nodes without a common file system have words of their own: what has
    no rank in common with a run is a part of it.
    """
    launches: dict[str, Run] = {}
    word_of: dict[Segment, str] = {}
    for rank, segments in ranks.items():
        begun = [_beginning(segment) for segment in segments]
        # A damaged header goes with its neighbours.
        word = next((header.run or _UNTOLD for header, _ in begun if header is not None), _UNTOLD)
        for segment, (header, step) in zip(segments, begun, strict=True):
            if header is not None:
                word = header.run or (word if word.endswith(_UNTOLD) else word + _UNTOLD)
            started = header.started if header is not None else ""
            word_of[segment] = word
            launch = launches.setdefault(word, Run(word if word[-1] != _UNTOLD else "", started, segment.number))
            launch.started = min(launch.started or started, started or launch.started)
            launch.number = min(launch.number, segment.number)
            launch.ranks.add(rank)
            launch.first = min(launch.first, sys.maxsize if step is None else step)
    runs: list[Run] = []
    run_of: dict[str, Run] = {}
    for word, launch in sorted(launches.items(), key=lambda one: (one[1].started, one[1].number)):
        same = bool(runs) and not launch.ranks.isdisjoint(runs[-1].ranks)
        if not runs or (same and launch.first <= runs[-1].first):
            runs.append(launch)
        else:
            runs[-1].ranks |= launch.ranks
            runs[-1].first = min(runs[-1].first, launch.first)
        run_of[word] = runs[-1]
    return runs, {segment: run_of[word] for segment, word in word_of.items()}


def _beginning(segment: Segment) -> tuple[Header | None, int | None]:
    """Return a segment's header and the step of its first record; None what is not there or damaged."""
    header = None
    for _, line, _ in lines_of(segment, Damage()):  # counted when all is read
        try:
            record = parse_line(line)
            if record["kind"] == "header":
                header = parse_header(record, segment.rank)
            elif record["kind"] == "load":
                return header, whole(record, "step", 0, MOST_COUNT)
        except MalformedLineError:
            continue
    return header, None
