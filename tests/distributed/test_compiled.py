"""torch.compile around a layer: what stands in Megatron's place stays out of the compiler."""

from __future__ import annotations

import pytest

from distributed.compiled import compiled
from distributed.launcher import RankPool, World
from distributed.layers import ALLTOALL, PREPROCESS, SEQ, Layer, has_sequence_dispatcher

pytestmark = [pytest.mark.megatron, pytest.mark.timeout(600)]


@pytest.mark.parametrize("dispatcher", [ALLTOALL, SEQ])
@pytest.mark.parametrize("ep", [1, 2])
def test_a_compiled_layer_gives_what_it_gives(ranks: RankPool, ep: int, dispatcher: str) -> None:
    if dispatcher == SEQ and not has_sequence_dispatcher():
        pytest.skip("this release has no alltoall_seq")
    layer = Layer(ep, 1, 8, 2, tokens=((2048, 2100),), dispatcher=dispatcher)
    for rank, found in enumerate(ranks.run(compiled, layer, world=World(ep, 1))):
        assert found == {name: [True] * 4 for name in ("stock", *PREPROCESS)}, f"rank {rank}"
