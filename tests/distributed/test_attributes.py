"""The dispatcher's attributes after preprocess and its wait equal stock's: values, and forms that consumers need."""

from __future__ import annotations

import pytest

from distributed.launcher import RankPool, World
from distributed.layers import (
    ALLTOALL,
    PREPROCESS,
    SEQ,
    Layer,
    attributes_of_all,
    has_sequence_dispatcher,
    router_padding,
    waits_in_a_hook,
)
from distributed.test_parity import GRID

pytestmark = [pytest.mark.megatron, pytest.mark.proves(device="cpu")]


@pytest.mark.parametrize("mode", ["dropless", "drop", "pad", "router padding"])
@pytest.mark.parametrize("local_experts", [1, 3])
@pytest.mark.parametrize(("tp", "ep"), GRID)
@pytest.mark.parametrize("dispatcher", [ALLTOALL, SEQ])
def test_attributes(ranks: RankPool, dispatcher: str, tp: int, ep: int, local_experts: int, mode: str):
    if mode == "router padding" and not router_padding():
        pytest.skip("this release has no router padding")
    if dispatcher == SEQ and not has_sequence_dispatcher():
        pytest.skip("this release has no alltoall_seq")
    tokens = ((7, 0),) * 4 if mode == "pad" else ((7, 0), (4, 0), (0, 0), (12, 0))
    experts = ep * local_experts
    layer = Layer(ep, tp, experts, min(2, experts), mode, tokens, dispatcher=dispatcher)
    for rank, found in enumerate(ranks.run(attributes_of_all, layer, world=World(ep, tp))):
        expected = found.pop("stock")
        assert found.keys() == PREPROCESS.keys()
        for name, one in found.items():
            wanted = dict(expected)
            if not waits_in_a_hook(dispatcher) and name.startswith("packed") and mode != "pad":
                # The attributes wait for themselves: Megatron is kept from waiting for the whole stream.
                wanted["cuda_sync_point"] = ("str", "no_sync")
            assert one == wanted, f"{name} on rank {rank}"
