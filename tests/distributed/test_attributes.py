"""The dispatcher's attributes after preprocess and its hooks equal stock's: values, and forms that consumers need."""

from __future__ import annotations

import pytest

from distributed.launcher import RankPool, World
from distributed.layers import PLUGIN, Layer, attributes_of_all
from distributed.test_parity import GRID, has_router_padding

pytestmark = pytest.mark.megatron


@pytest.mark.parametrize("mode", ["dropless", "drop", "pad", "router padding"])
@pytest.mark.parametrize("local_experts", [1, 3])
@pytest.mark.parametrize(("tp", "ep"), GRID)
def test_attributes(ranks: RankPool, tp: int, ep: int, local_experts: int, mode: str):
    if mode == "router padding" and not has_router_padding():
        pytest.skip("this release has no router padding")
    tokens = ((7, 0),) * 4 if mode == "pad" else ((7, 0), (4, 0), (0, 0), (12, 0))
    experts = ep * local_experts
    layer = Layer(ep, tp, experts, min(2, experts), mode, tokens)
    for rank, found in enumerate(ranks.run(attributes_of_all, layer, world=World(ep, tp))):
        expected = found.pop("stock")
        assert len(found) == len(PLUGIN)
        for name, one in found.items():
            assert one == expected, f"{name} on rank {rank}"
