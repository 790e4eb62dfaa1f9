"""The load of one layer's experts on one rank, added up over micro-batches, and the lines that it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mindspeed_moe.preprocess.layout import ExpertLayout

Counts = NDArray[np.int64]

_sum, _most = np.add.reduce, np.maximum.reduce


@dataclass(frozen=True)
class LayerFacts:
    """What stays the same of a layer. layer: its number. group: global ranks of the TPxEP group, in group order.

    row_bytes: of one row in the all-to-all of tokens.
    """

    layer: int
    layout: ExpertLayout
    topk: int
    group: tuple[int, ...]
    row_bytes: int

    def line(self) -> dict[str, Any]:
        """Return the line that describes the layer."""
        one = self.layout
        return {
            "kind": "layer",
            "layer": self.layer,
            "experts": one.num_experts,
            "topk": self.topk,
            "ep": one.ep_size,
            "tp": one.tp_size,
            "ep_rank": one.ep_rank,
            "tp_rank": one.tp_rank,
            "group": list(self.group),
        }


class Load(NamedTuple):
    """The sums of some calls. tokens: [L] rows that each own expert received. sent: [EP] rows sent to each EP peer.

    routed: all rows that were sent. dropped: token-expert pairs that found no place; None where the host does not know.
    padded: with padding to capacity rows are counted, whatever is in them.
    """

    facts: LayerFacts
    step: int
    calls: int
    tokens: Counts
    sent: Counts
    routed: int
    dropped: int | None
    padded: bool

    def line(self) -> dict[str, Any]:
        """Return the record; `tokens` and `sent_bytes` are arrays."""
        tokens = self.tokens
        received = int(_sum(tokens))
        return {
            "kind": "load",
            "step": self.step,
            "layer": self.facts.layer,
            "calls": self.calls,
            "tokens": tokens,
            "imbalance": round(int(_most(tokens)) * len(tokens) / received, 4) if received else 1.0,
            "routed": self.routed,
            "dropped": self.dropped,
            "sent_bytes": self.sent * self.facts.row_bytes,
            "padded": self.padded,
        }


class Call(NamedTuple):
    """One call: what is kept of its plan, T, and whether every expert received its capacity, whatever was in it.

    received: [L]. sent: [EP]; None for a rank without peers, or with padding. rows: that were sent.
    """

    received: Counts
    sent: Counts | None
    rows: int
    tokens: int
    padded: bool


class Totals(NamedTuple):
    """The sums of some calls.

    tokens: T of all. rows: that were sent. received: [L]. sent: [EP]; None for a rank without peers, or with padding.
    """

    calls: int
    tokens: int
    rows: int
    received: Counts
    sent: Counts | None
    padded: bool


def total(before: Totals | None, calls: Sequence[Call]) -> Totals:
    """Add calls up, and to what was added up before; at least one of both must be there."""
    if before is None and len(calls) == 1:
        ((received, sent, rows, tokens, padded),) = calls
        return Totals(1, tokens, rows, received, sent, padded)
    parts: list[Totals | Call] = [*calls] if before is None else [before, *calls]
    known = [one.sent for one in parts if one.sent is not None]
    return Totals(
        calls=len(calls) + (0 if before is None else before.calls),
        tokens=sum(one.tokens for one in parts),
        rows=sum(one.rows for one in parts),
        received=_sum([one.received for one in parts], 0),
        sent=_sum(known, 0) if len(known) == len(parts) else None,
        padded=any(one.padded for one in parts),
    )


class Taken(NamedTuple):
    """Calls of one step that are still to be added up, which the thread does that writes."""

    facts: LayerFacts
    step: int
    before: Totals | None
    calls: Sequence[Call]

    def load(self) -> Load:
        """Add up."""
        facts, sums = self.facts, total(self.before, self.calls)
        sent, ep = sums.sent, facts.layout.ep_size
        if sent is None:  # to itself, or with padding to everybody the same
            sent = np.full(ep, sums.rows // ep, dtype=np.int64)
            routed = sums.rows // ep * ep
        else:
            routed = int(_sum(sent))
        # A router that pads for quantised experts places more pairs than there are: nothing is dropped then.
        dropped = None if sums.padded else max(0, sums.tokens * facts.topk - routed)
        return Load(facts, self.step, sums.calls, sums.received, sent, routed, dropped, sums.padded)


class Sums:
    """Keeps calls until they are taken: where training runs, a call costs a place in a list.

    Who appends to calls looks at their number.
    """

    MOST = 64  # calls; so many are added up at once, so that a step without end takes no more memory

    __slots__ = ("_before", "calls")

    def __init__(self) -> None:
        self._before: Totals | None = None
        self.calls: list[Call] = []

    def add_up(self) -> None:
        """Make one of the calls that are kept."""
        self._before, self.calls = total(self._before, self.calls), []

    def take(self, facts: LayerFacts, step: int) -> Taken:
        """Return the calls and begin anew."""
        taken = Taken(facts, step, self._before, self.calls)
        self._before, self.calls = None, []
        return taken

    @property
    def empty(self) -> bool:
        """Whether there is nothing to take."""
        return self._before is None and not self.calls
