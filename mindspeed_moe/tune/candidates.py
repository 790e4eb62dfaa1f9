"""Every valid combination of a row's choices for one layout."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from mindspeed_moe.dispatch_table import Row

# tokens_per_expert is not measured: where the experts read their counts is theirs to say, and `auto` asks them.
MEASURED = ("counts", "exchange", "exchange_group", "stream")


@dataclass(frozen=True)
class Candidate:
    """One combination: what differs from the defaults, as in a configuration's `preprocess`; empty for the defaults."""

    choices: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return ", ".join(f"{choice} {value}" for choice, value in self.choices) or "defaults"


DEFAULTS = Candidate()


def candidates(row: Row, ep: int, tp: int) -> tuple[Candidate, ...]:
    """Return every combination that this layout allows, the defaults first."""
    offered = {}
    for choice in MEASURED:
        values: tuple[str, ...] = getattr(row, choice)
        if choice != "counts" and ep * tp == 1:
            values = values[:1]  # without peers nothing is exchanged
        if choice == "exchange_group" and tp > 1:
            values = tuple(value for value in values if value != "ep")
        offered[choice] = values
    return tuple(
        Candidate(tuple((choice, value) for choice, value in combination if value != offered[choice][0]))
        for combination in itertools.product(
            *([(choice, value) for value in values] for choice, values in offered.items())
        )
    )
