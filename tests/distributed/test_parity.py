"""Outputs, input gradients and weight gradients of a whole MoE layer equal stock Megatron's, bit for bit.

On four processes: TP x EP (TP is expert tensor parallelism), every mode, one and several local experts, two
micro-batches in flight.
"""

from __future__ import annotations

from typing import Any

import pytest

from distributed.launcher import RankPool, World
from distributed.layers import SEQ, Layer, compare_with_stock, has_sequence_dispatcher, router_padding
from mindspeed_moe.preprocess import counts

pytestmark = [pytest.mark.megatron, pytest.mark.proves(device="cpu")]

GRID = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 4))  # TP x EP
UNEQUAL = ((5, 9), (12, 3), (8, 8), (1, 6))


def require_parity(ranks: RankPool, layer: Layer) -> list[dict[str, Any]]:
    """AssertionError unless every rank finds every implementation equal to stock; returns the ranks' findings."""
    found = ranks.run(compare_with_stock, layer, world=World(layer.ep, layer.tp))
    for rank, one in enumerate(found):
        assert one["control"] == [], f"rank {rank}: stock is not even equal to itself: {one['control']}"
    differences = {rank: one["differences"] for rank, one in enumerate(found) if one["differences"]}
    assert differences == {}
    # two outputs, two input gradients, the router's weight, and experts' weights
    assert all(one["compared"] >= 6 for one in found)
    assert all(one["norm"] > 0 for one in found)
    # else a token at the wrong rank would give the same output there
    assert len({str(one["experts"]) for one in found}) == len(found), "ranks have the same experts"
    return found


@pytest.mark.parametrize("mode", ["dropless", "drop", "pad", "router padding"])
@pytest.mark.parametrize("local_experts", [1, 4])
@pytest.mark.parametrize(("tp", "ep"), GRID)
def test_layer(ranks: RankPool, tp: int, ep: int, local_experts: int, mode: str):
    if mode == "router padding" and not router_padding():
        pytest.skip("this release has no router padding")
    experts = ep * local_experts
    topk = 2 if experts > 2 else 1
    tokens = ((16, 24),) * 4 if mode == "router padding" else ((8, 5),) * 4
    found = require_parity(ranks, Layer(ep, tp, experts, topk, mode, tokens))
    rows = [one["rows"] for one in found]
    if mode == "dropless":
        assert all(out == known for out, known in rows)
    elif experts > 1:  # the mode was really on: what comes out is not T * topk
        assert any(out != known for out, known in rows)


@pytest.mark.parametrize("mode", ["dropless", "drop"])
@pytest.mark.parametrize("ep", [2, 4])
def test_ranks_with_different_numbers_of_tokens(ranks: RankPool, ep: int, mode: str):
    require_parity(ranks, Layer(ep, 1, 2 * ep, 2, mode, UNEQUAL))


@pytest.mark.parametrize("ep", [2, 4])
def test_ranks_without_tokens(ranks: RankPool, ep: int):
    """One micro-batch, the other, or both are empty on a rank; with EP = 2 one whole group has none."""
    tokens = ((5, 0), (0, 3), (0, 0), (0, 0))
    found = ranks.run(compare_with_stock, Layer(ep, 1, 8, 2, tokens=tokens, router="given"), world=World(ep, 1))
    assert [one["differences"] for one in found] == [{}] * 4
    assert [one["rows"] for one in found] == [(0, 0), (12, 12), (0, 0), (0, 0)]


@pytest.mark.parametrize(("tp", "ep"), GRID)
def test_all_tokens_on_one_expert(ranks: RankPool, tp: int, ep: int):
    require_parity(ranks, Layer(ep, tp, 4, 1, tokens=((8, 5),) * 4, router="one expert"))


@pytest.mark.parametrize(("topk", "router"), [(2, "megatron"), (1, "one expert")])
def test_maps_big_enough_for_byte_lanes(ranks: RankPool, topk: int, router: str):
    layer = Layer(2, 2, 8, topk, tokens=((1200, 1250),) * 4, router=router)
    assert 1200 * layer.batch * (layer.experts + counts._START_OF_ROW) > counts._BYTE_LANES_PAY
    require_parity(ranks, layer)


@pytest.mark.parametrize(("tp", "ep"), [(1, 4), (2, 2)])
def test_recomputation(ranks: RankPool, tp: int, ep: int):
    """The layer, preprocess included, runs again in backward, after another micro-batch's forward."""
    require_parity(ranks, Layer(ep, tp, 8, 2, "dropless", UNEQUAL if tp == 1 else ((8, 5),) * 4, recompute=True))


@pytest.mark.parametrize(("tp", "ep"), [(1, 2), (2, 2)])
def test_shared_experts_overlapped(ranks: RankPool, tp: int, ep: int):
    """Shared experts launch collectives of their own between preprocess and the first wait."""
    require_parity(ranks, Layer(ep, tp, 8, 2, overlap=True))


@pytest.mark.proves(dispatcher=SEQ)
@pytest.mark.parametrize("mode", ["dropless", "drop", "pad"])
@pytest.mark.parametrize("local_experts", [1, 4])
@pytest.mark.parametrize(("tp", "ep"), GRID)
def test_sequence_dispatcher(ranks: RankPool, tp: int, ep: int, local_experts: int, mode: str):
    """alltoall_seq, where the release still has it."""
    if not has_sequence_dispatcher():
        pytest.skip("this release has no alltoall_seq")
    if mode == "pad" and tp > 1 and local_experts > 1:
        pytest.skip("stock itself fails: its chunk table has E * TP entries for E chunks")
    experts = ep * local_experts
    layer = Layer(ep, tp, experts, 2 if experts > 2 else 1, mode, ((8, 5),) * 4, dispatcher=SEQ)
    rows = [one["rows"] for one in require_parity(ranks, layer)]
    if experts > 1:
        assert all(out == known * tp for out, known in rows) == (mode == "dropless")


@pytest.mark.proves(dispatcher=SEQ)
@pytest.mark.parametrize(("tp", "ep"), [(1, 4), (2, 2)])
def test_sequence_dispatcher_recomputed(ranks: RankPool, tp: int, ep: int):
    if not has_sequence_dispatcher():
        pytest.skip("this release has no alltoall_seq")
    require_parity(ranks, Layer(ep, tp, 8, 2, tokens=((8, 5),) * 4, recompute=True, dispatcher=SEQ))
