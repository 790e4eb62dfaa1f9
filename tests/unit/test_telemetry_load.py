"""Layers of one step are added up together: each gets its own numbers, whatever stands beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mindspeed_moe.preprocess.layout import ExpertLayout
from mindspeed_moe.telemetry.load import Call, LayerFacts, Sums, Taken, loads

ROW = 32


def taken(layer: int, ep: int, local: int, calls: list[Call], topk: int = 2) -> Taken:
    sums = Sums()
    sums.calls.extend(calls)
    facts = LayerFacts(layer, ExpertLayout(ep * local, ep, 1, 0, 0), topk, tuple(range(ep)), ROW)
    return sums.take(facts, step=5)


def plain(line: dict[str, Any]) -> dict[str, Any]:
    return {name: one.tolist() if isinstance(one, np.ndarray) else one for name, one in line.items()}


def test_three_layers_by_hand():
    with_peers = taken(1, ep=2, local=2, calls=[Call(np.array([3, 1]), np.array([2, 4]), 6, 4, False)])
    alone = taken(2, ep=1, local=3, calls=[Call(np.array([0, 5, 1]), None, 6, 3, False)] * 2)
    padded = taken(3, ep=2, local=1, calls=[Call(np.array([8]), None, 8, 4, True)])
    shown = [plain(one.line()) for one in loads([with_peers, alone, padded])]
    same = {"kind": "load", "step": 5}
    assert shown == [
        # 3 / 2; four tokens are eight pairs, of which six were sent.
        {**same, "layer": 1, "calls": 1, "tokens": [3, 1], "imbalance": 1.5, "routed": 6, "dropped": 2,
         "sent_bytes": [2 * ROW, 4 * ROW], "padded": False},
        {**same, "layer": 2, "calls": 2, "tokens": [0, 10, 2], "imbalance": 2.5, "routed": 12, "dropped": 0,
         "sent_bytes": [12 * ROW], "padded": False},
        {**same, "layer": 3, "calls": 1, "tokens": [8], "imbalance": 1.0, "routed": 8, "dropped": None,
         "sent_bytes": [4 * ROW, 4 * ROW], "padded": True},
    ]  # fmt: skip


@st.composite
def layers(draw: st.DrawFn) -> list[Taken]:
    found = []
    for layer in range(draw(st.integers(1, 5))):
        ep, local, padded = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.booleans())
        counts = st.integers(0, 9)
        calls = [
            Call(
                np.array(draw(st.lists(counts, min_size=local, max_size=local))),
                None if padded or ep == 1 else np.array(draw(st.lists(counts, min_size=ep, max_size=ep))),
                ep * draw(counts),
                draw(counts),
                padded,
            )
            for _ in range(draw(st.integers(1, 3)))
        ]
        found.append(taken(layer, ep, local, calls))
    return found


@given(layers())
def test_a_layer_gets_what_it_gets_by_itself(together: list[Taken]):
    for one, load in zip(together, loads(together), strict=True):
        (by_itself,) = loads([one])
        assert plain(load.line()) == plain(by_itself.line())
        tokens = [sum(int(call.received[at]) for call in one.calls) for at in range(len(load.tokens))]
        assert load.tokens.tolist() == tokens
        assert (load.received, load.most) == (sum(tokens), max(tokens))
        assert load.routed == sum(load.sent.tolist())
