"""Schedules and switches that use live dispatchers in special ways give stock's results, bit for bit."""

from __future__ import annotations

import importlib

import pytest

from distributed.launcher import RankPool, World
from distributed.layers import PREPROCESS, Layer
from distributed.modes import differences

pytestmark = [pytest.mark.megatron, pytest.mark.proves(device="cpu")]
GRID = ((1, 2), (2, 2), (1, 4))  # TP x EP


def require_equal(ranks: RankPool, layer: Layer, job: str) -> None:
    for rank, found in enumerate(ranks.run(differences, layer, job, world=World(layer.ep, layer.tp))):
        assert found == {name: [] for name in (*PREPROCESS, "control")}, f"rank {rank}"


@pytest.mark.parametrize("mode", ["dropless", "drop"])
@pytest.mark.parametrize(("tp", "ep"), GRID)
def test_stages_apart(ranks: RankPool, tp: int, ep: int, mode: str) -> None:
    """overlap_moe_expert_parallel_comm, where the release has stages."""
    from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher

    if not hasattr(MoEAlltoAllTokenDispatcher, "token_dispatch"):
        pytest.skip("this release has no stages")
    require_equal(ranks, Layer(ep, tp, 2 * ep, 2, mode), "stages")


@pytest.mark.parametrize(("tp", "ep"), GRID)
def test_padding_switched_on_and_off(ranks: RankPool, tp: int, ep: int) -> None:
    utils = importlib.import_module("megatron.core.inference.utils")
    if not hasattr(utils, "set_decode_expert_padding"):
        pytest.skip("inference of this release switches no padding")
    require_equal(ranks, Layer(ep, tp, 2 * ep, 2), "padding")
