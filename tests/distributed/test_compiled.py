"""torch.compile around a layer: what stands in Megatron's place stays out of the compiler."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from distributed.compiled import COMPILED, compiled, stock_compiles
from distributed.launcher import RankPool, World
from distributed.layers import ALLTOALL, SEQ, Layer, has_sequence_dispatcher

pytestmark = [pytest.mark.megatron, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[RankPool]:
    pool = RankPool(2)
    yield pool
    pool.close()


@pytest.mark.parametrize("dispatcher", [ALLTOALL, SEQ])
@pytest.mark.parametrize("ep", [1, 2])
def test_a_compiled_layer_gives_what_it_gives(two_ranks: RankPool, ep: int, dispatcher: str) -> None:
    if dispatcher == SEQ and not has_sequence_dispatcher():
        pytest.skip("this release has no alltoall_seq")
    layer = Layer(ep, 1, 8, 2, tokens=((2048,),), dispatcher=dispatcher)
    fails = two_ranks.run(stock_compiles, layer, world=World(ep, 1))[0]
    if fails:
        pytest.skip(f"this torch does not compile this release of Megatron, without the plugin either: {fails}")
    for rank, found in enumerate(two_ranks.run(compiled, layer, world=World(ep, 1))):
        assert found == {name: [True] * 2 for name in COMPILED}, f"rank {rank}"
