"""Runs the jobs that count, and holds what they found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distributed.layers import SEQ, has_sequence_dispatcher
from npu.floor import Case, Cost, cases
from npu.launch import run_ranks


@dataclass(frozen=True)
class Measured:
    """calls: by case, what each rank found. communicators: by case of GROUP_CASES, each rank's, in bytes."""

    calls: dict[Case, list[dict[str, Any]]]
    communicators: dict[str, list[list[int]]]

    def costs(self, case: Case) -> list[Cost]:
        """Return what a call costs on each rank."""
        return [Cost(**rank["cost"]) for rank in self.calls[case]]


def measure(folder: Path) -> Measured:
    """Count everything, on four ranks (every layout fits in) and on two."""
    communicators = run_ranks(
        "count_communicators", 2, folder / "communicators", arguments={"folder": str(folder / "communicators")}
    )
    return Measured(
        calls=calls(list(_wanted()), 4, folder / "calls"),
        communicators={name: [rank[name] for rank in communicators] for name in communicators[0]},
    )


def _wanted() -> Iterator[Case]:
    """Every case that the installed release has."""
    from npu.layer import modes

    yield from cases(modes())
    if has_sequence_dispatcher():
        yield from cases(modes(SEQ), SEQ)


def calls(wanted: list[Case], ranks: int, folder: Path) -> dict[Case, list[dict[str, Any]]]:
    """Count one call in each case."""
    arguments = {"cases": [asdict(case) for case in wanted]}
    found = run_ranks("count_calls", ranks, folder, arguments=arguments)
    return {case: [rank[at] for rank in found] for at, case in enumerate(wanted)}
