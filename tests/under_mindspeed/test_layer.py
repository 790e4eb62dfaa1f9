"""A MoE layer under MindSpeed's fused permute and sync wrapper, on the double: equal with and without the plugin."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindspeed_moe.contract import generation_of
from mindspeed_moe.contract.generations import HOOK
from mindspeed_moe.environment import probe_megatron
from under_mindspeed.launching import FUSED, together


@pytest.mark.megatron
@pytest.mark.parametrize("ranks", [1, 2])
def test_equal_to_mindspeed_alone(ranks: int, tmp_path: Path) -> None:
    if generation_of(str(probe_megatron().version)).adapter != HOOK:
        pytest.skip("MindSpeed for this release has no fused permute")
    # Sorting of chunks on the host is something that a cpu can do.
    for found in together("layer", ranks, tmp_path, *FUSED, double="no_triton"):
        assert found["different"] == {"plugin": [], "repatched": [], "disabled": []}
        owners = {"alone": "megatron", "plugin": "mindspeed_moe", "repatched": "mindspeed_moe", "disabled": "megatron"}
        assert found["owners"] == owners
        assert found["layers"] == 2 * 4  # two micro-batches in each run went through MindSpeed's own wrapper
        assert found["count"] >= 7
