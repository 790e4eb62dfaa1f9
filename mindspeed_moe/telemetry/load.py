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


class Taken(NamedTuple):
    """Calls that are still to be added up, which the thread does that writes. tokens: of all calls, T together.

    plans: what was published; their arrays belong to nobody but their readers. padded: of any of them.
    """

    facts: LayerFacts
    step: int
    tokens: int
    plans: list[SplitPlan]
    padded: bool

    def load(self) -> Load:
        """Add up."""
        layout, plans = self.facts.layout, self.plans
        received = _sum([plan.tokens_per_local_expert for plan in plans], 0)
        if self.padded or plans[0].input_splits is None:
            # To itself, or with padding to everybody the same.
            rows = sum(plan.num_out_tokens for plan in plans)
            sent = np.full(layout.ep_size, rows // layout.ep_size, dtype=np.int64)
        else:
            sent = _sum([plan.input_splits for plan in plans if plan.input_splits is not None], 0)
        routed = int(_sum(sent))
        # A router that pads for quantised experts places more pairs than there are: nothing is dropped then.
        dropped = None if self.padded else max(0, self.tokens * self.facts.topk - routed)
        return Load(self.facts, self.step, len(plans), received, sent, routed, dropped, self.padded)


class Sums:
    """Keeps calls until they are taken: where training runs, a call costs little more than a place in a list.

    More than MOST calls in a step are not kept: later ones are counted in no record.
    """

    MOST = 4096  # micro-batches of all steps of an interval

    __slots__ = ("_padded", "_plans", "_tokens")

    def __init__(self) -> None:
        self._plans: list[SplitPlan] = []
        self._tokens, self._padded = 0, False

    def add(self, plan: SplitPlan, tokens: int, padded: bool) -> None:
        """Add a call of T = `tokens`. padded: every expert received its capacity, and nothing tells what was in it."""
        if len(self._plans) < self.MOST:
            self._plans.append(plan)
            self._tokens += tokens
            self._padded = padded

    def take(self, facts: LayerFacts, step: int) -> Taken:
        """Return the calls and begin anew."""
        taken = Taken(facts, step, self._tokens, self._plans, self._padded)
        self._plans, self._tokens = [], 0
        return taken

    @property
    def empty(self) -> bool:
        """Whether there is nothing to take."""
        return not self._plans
