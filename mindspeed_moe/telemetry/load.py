"""The load of one layer's experts on one rank, added up over micro-batches, and the lines that it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mindspeed_moe.preprocess.layout import ExpertLayout
from mindspeed_moe.preprocess.splits import SplitPlan

Counts = NDArray[np.int64]

_COUNT = np.dtype(np.int64)
# Bound once: at these sizes looking a function up costs as much as the numbers.
_add, _zeros, _sum, _most = np.add, np.zeros, np.add.reduce, np.maximum.reduce


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


class Sums:
    """Adds up calls until they are taken. Nothing here costs more than a few microseconds.

    pairs: T * topk of the call under way; None when it is not counted.
    """

    __slots__ = ("_calls", "_layout", "_padded", "_pairs", "_sent", "_tokens", "pairs")

    def __init__(self, layout: ExpertLayout) -> None:
        self.pairs: int | None = None
        self._layout = layout
        self._begin()

    def _begin(self) -> None:
        self._calls, self._pairs, self._padded = 0, 0, False
        self._tokens = _zeros(self._layout.num_local_experts, _COUNT)
        self._sent = _zeros(self._layout.ep_size, _COUNT)

    def add(self, plan: SplitPlan) -> None:
        """Add a call whose counts are on the host."""
        pairs = self.pairs
        if pairs is None:
            return
        self.pairs = None
        self._calls += 1
        self._pairs += pairs
        _add(self._tokens, plan.tokens_per_local_expert, self._tokens)
        sent = plan.input_splits
        _add(self._sent, plan.num_out_tokens if sent is None else sent, self._sent)

    def add_padded(self, plan: SplitPlan) -> None:
        """Add a call with padding: every expert received its capacity, and nothing tells what was in it."""
        if self.pairs is None:
            return
        self.pairs = None
        self._calls += 1
        self._padded = True
        _add(self._tokens, plan.tokens_per_local_expert, self._tokens)
        self._sent += plan.num_out_tokens // len(self._sent)

    def take(self, facts: LayerFacts, step: int) -> Load | None:
        """Return the sums and begin anew; None when there was no call."""
        if not self._calls:
            return None
        routed = int(_sum(self._sent))
        # A router that pads for quantised experts places more pairs than there are: nothing is dropped then.
        dropped = None if self._padded else max(0, self._pairs - routed)
        load = Load(facts, step, self._calls, self._tokens, self._sent, routed, dropped, self._padded)
        self._begin()
        return load

    @property
    def empty(self) -> bool:
        """Whether there is nothing to take."""
        return not self._calls
