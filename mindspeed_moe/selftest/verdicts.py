"""All ranks come to one verdict on a step, through the launch's store: it works where collectives do not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

_PREFIX = "mindspeed_moe/selftest"
_FAILED = 1 << 32  # added to the number of arrivals by a rank with problems
MOST = 5  # problems of one rank in one step that are told


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a step. what: attribute or tensor, the first place, and both values."""

    step: str
    rank: int
    what: str

    def __str__(self) -> str:
        return f"{self.step}; rank {self.rank}: {self.what}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


class Verdicts:
    """Exchanges what ranks have found. patience: seconds that a rank waits for the others."""

    def __init__(self, store: Any, rank: int, world_size: int, patience: timedelta) -> None:
        self._store, self._rank, self._world_size, self._patience = store, rank, world_size, patience
        self._turn = 0

    def agree(self, step: str, found: Sequence[str]) -> tuple[Problem, ...]:
        """Return every rank's problems, the same on all ranks; RuntimeError when a rank does not come."""
        own = [Problem(step, self._rank, what) for what in found[:MOST]]
        if self._world_size == 1:
            return tuple(own)
        self._turn += 1
        key = f"{_PREFIX}/{self._turn}"
        if own:
            self._store.set(f"{key}/{self._rank}", json.dumps([one.what for one in own]))
        arrived = self._store.add(f"{key}/arrived", 1 + (_FAILED if own else 0))
        if arrived % _FAILED == self._world_size:
            self._store.set(f"{key}/verdict", "failed" if arrived >= _FAILED else "passed")
        self._store.wait([f"{key}/verdict"], self._patience)
        if self._store.get(f"{key}/verdict") == b"passed":
            return ()
        ranks = [rank for rank in range(self._world_size) if self._store.check([f"{key}/{rank}"])]
        return tuple(
            Problem(step, rank, what) for rank in ranks for what in json.loads(self._store.get(f"{key}/{rank}"))
        )
