"""The load of one layer's experts on one rank, added up over micro-batches, and the lines that it becomes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mindspeed_moe.preprocess.layout import ExpertLayout

Counts = NDArray[np.int64]

_sum = np.add.reduce


@dataclass(frozen=True)
class LayerFacts:
    """What stays the same of a layer. layer: its number. group: global ranks of the TPxEP group, in group order.

    row_bytes: of one row in the all-to-all of tokens. numbered: by Megatron; else by the layers' first calls. drops:
    whether a capacity bounds what experts take. launch: this rank, and how many there are; None where nobody says.
    """

    layer: int
    layout: ExpertLayout
    topk: int
    group: tuple[int, ...]
    row_bytes: int
    numbered: bool = True
    drops: bool = True
    launch: tuple[int, int] | None = None

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
            "numbered": self.numbered,
        }


class Load(NamedTuple):
    """The sums of some calls. tokens: [L] rows that each own expert received. sent: [EP] rows sent to each EP peer.

    received: all rows that own experts received. most: of one expert. routed: all rows that were sent. dropped:
    token-expert pairs that found no place; None where the host does not know. padded: with padding to capacity rows are
    counted, whatever is in them.
    """

    facts: LayerFacts
    step: int
    calls: int
    tokens: Counts
    received: int
    most: int
    sent: Counts
    routed: int
    dropped: int | None
    padded: bool

    def line(self) -> dict[str, Any]:
        """Return the record; `tokens` and `sent_bytes` are arrays."""
        tokens, received = self.tokens, self.received
        return {
            "kind": "load",
            "step": self.step,
            "layer": self.facts.layer,
            "calls": self.calls,
            "tokens": tokens,
            "imbalance": round(self.most * len(tokens) / received, 4) if received else 1.0,
            "routed": self.routed,
            "dropped": self.dropped,
            "sent_bytes": self.sent * self.facts.row_bytes,
            "padded": self.padded,
        }


class Call(NamedTuple):
    """One call: what is kept of what it published, T, and whether every expert received its capacity.

    received: [L], an array or a tensor on the host. sent: [EP]; None for a rank without peers, or with padding. rows:
    that are sent with padding; not used without it.
    """

    received: ArrayLike
    sent: Counts | None
    rows: int
    tokens: int
    padded: bool


class Totals(NamedTuple):
    """The sums of some calls.

    tokens: T of all. rows, received [L], sent [EP]: as those of a call.
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
        return Totals(1, tokens, rows, np.asarray(received), sent, padded)
    parts: list[Totals | Call] = [*calls] if before is None else [before, *calls]
    known = [one.sent for one in parts if one.sent is not None]
    return Totals(
        calls=len(calls) + (0 if before is None else before.calls),
        tokens=sum(one.tokens for one in parts),
        rows=sum(one.rows for one in parts),
        received=_sum([np.asarray(one.received) for one in parts], 0),
        sent=_sum(known, 0) if len(known) == len(parts) else None,
        padded=any(one.padded for one in parts),
    )


class Taken(NamedTuple):
    """Calls of one layer and step that are still to be added up, which the thread does that writes."""

    facts: LayerFacts
    step: int
    before: Totals | None
    calls: Sequence[Call]


def loads(taken: Sequence[Taken]) -> list[Load]:
    """Add up what was taken of one layer or more; numpy is asked once for all of them, which costs less."""
    totals = [total(one.before, one.calls) for one in taken]
    tokens = [one.received for one in totals]
    received = _of_each(np.add, tokens)
    most = _of_each(np.maximum, tokens)
    sent = [
        _sent(one.facts.layout.ep_size, sums, rows) for one, sums, rows in zip(taken, totals, received, strict=True)
    ]
    routed = _of_each(np.add, sent)
    return [
        Load(
            facts=one.facts,
            step=one.step,
            calls=sums.calls,
            tokens=sums.received,
            received=received[at],
            most=most[at],
            sent=sent[at],
            routed=routed[at],
            dropped=_dropped(one.facts, sums, routed[at]),
            padded=sums.padded,
        )
        for at, (one, sums) in enumerate(zip(taken, totals, strict=True))
    ]


def _of_each(function: np.ufunc, parts: Sequence[Counts]) -> list[int]:
    """Reduce each of some arrays [n], n > 0, to a number."""
    starts = [0, *itertools.accumulate(len(one) for one in parts[:-1])]
    reduced: list[int] = function.reduceat(np.concatenate(parts), starts).tolist()
    return reduced


def _sent(ep: int, sums: Totals, received: int) -> Counts:
    """Return rows sent to each peer, [EP]; with padding to everybody the same, and without peers to itself."""
    if sums.sent is not None:
        return sums.sent
    return np.full(ep, (sums.rows if sums.padded else received) // ep, dtype=np.int64)


def _dropped(facts: LayerFacts, sums: Totals, routed: int) -> int | None:
    """Return pairs without a place.

    A router that pads for quantised experts has more places than pairs. Without capacity every pair has one, and a
    router that replays may choose fewer experts than top-k.
    """
    if sums.padded:
        return None
    return max(0, sums.tokens * facts.topk - routed) if facts.drops else 0


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
