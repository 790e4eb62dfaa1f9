"""A MoE layer under MindSpeed's fused permute and sync wrapper, on the double: equal with and without the plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mindspeed_moe.contract import generation_of
from mindspeed_moe.contract.generations import HOOK
from mindspeed_moe.environment import probe_megatron
from under_mindspeed.launching import FUSED, search_path


@pytest.mark.megatron
@pytest.mark.parametrize("ranks", [1, 2])
def test_equal_to_mindspeed_alone(ranks: int, tmp_path: Path) -> None:
    if generation_of(str(probe_megatron().version)).adapter != HOOK:
        pytest.skip("MindSpeed for this release has no fused permute")
    environment = {
        **os.environ,
        "PYTHONPATH": search_path(),
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        "OMP_NUM_THREADS": "1",
        "MINDSPEED_DOUBLE": "no_triton",  # sorting of chunks on the host, which a cpu can do
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "under_mindspeed.layer", str(rank), str(ranks)]
            + [str(tmp_path / "rendezvous"), "--", *FUSED],
            env=environment,
            cwd=tempfile.gettempdir(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    for process in processes:
        out, err = process.communicate(timeout=1800)
        assert process.returncode == 0, err
        found = json.loads(out.splitlines()[-1])
        assert found["different"] == {"plugin": [], "repatched": [], "disabled": []}
        owners = {"alone": "megatron", "plugin": "mindspeed_moe", "repatched": "mindspeed_moe", "disabled": "megatron"}
        assert found["owners"] == owners
        assert found["layers"] == 2 * 4  # two micro-batches in each run went through MindSpeed's own wrapper
        assert found["count"] >= 7
