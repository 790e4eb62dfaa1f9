"""The load of one layer's experts on one rank, added up over micro-batches, and the lines that it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mindspeed_moe.preprocess.layout import ExpertLayout
from mindspeed_moe.preprocess.splits import SplitPlan

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


class Calls(NamedTuple):
    """What is kept of calls: one entry a call, or the sums of several. Arrays belong to nobody but their readers.

    received: [L] each. sent: [EP] each; None for a rank without peers, or with padding. rows, tokens: of all calls.
    """

    number: int
    tokens: int
    rows: int
    received: list[Counts]
    sent: list[Counts | None]
    padded: bool

    def folded(self) -> Calls:
        """Return the same, added up."""
        known = [one for one in self.sent if one is not None]
        sent = _sum(known, 0) if len(known) == len(self.sent) else None
        return self._replace(received=[_sum(self.received, 0)], sent=[sent])


class Taken(NamedTuple):
    """Calls that are still to be added up, which the thread does that writes."""

    facts: LayerFacts
    step: int
    calls: Calls

    def load(self) -> Load:
        """Add up."""
        calls, ep = self.calls.folded(), self.facts.layout.ep_size
        sent = calls.sent[0]
        if sent is None:  # to itself, or with padding to everybody the same
            sent = np.full(ep, calls.rows // ep, dtype=np.int64)
        routed = int(_sum(sent))
        # A router that pads for quantised experts places more pairs than there are: nothing is dropped then.
        dropped = None if calls.padded else max(0, calls.tokens * self.facts.topk - routed)
        return Load(self.facts, self.step, calls.number, calls.received[0], sent, routed, dropped, calls.padded)


class Sums:
    """Keeps calls until they are taken: where training runs, a call costs little more than places in lists."""

    FOLDED_AT = 64  # calls; so many are added up at once, so that a step without end takes no more memory

    __slots__ = ("_count", "_padded", "_received", "_rows", "_sent", "_tokens")

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._count = self._tokens = self._rows = 0
        self._padded = False
        self._received: list[Counts] = []
        self._sent: list[Counts | None] = []

    def add(self, plan: SplitPlan, tokens: int, padded: bool) -> None:
        """Add a call of T = `tokens`. padded: every expert received its capacity, and nothing tells what was in it."""
        self._count += 1
        self._tokens += tokens
        self._rows += plan.num_out_tokens
        self._padded = self._padded or padded
        self._received.append(plan.tokens_per_local_expert)
        self._sent.append(plan.input_splits)
        if len(self._received) == self.FOLDED_AT:
            calls = self._calls().folded()
            self._received, self._sent = calls.received, calls.sent

    def take(self, facts: LayerFacts, step: int) -> Taken:
        """Return the calls and begin anew."""
        taken = Taken(facts, step, self._calls())
        self._begin()
        return taken

    def _calls(self) -> Calls:
        return Calls(self._count, self._tokens, self._rows, self._received, self._sent, self._padded)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to take."""
        return not self._count
