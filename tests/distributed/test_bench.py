"""The bench with real gloo processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from helpers_process import python
from mindspeed_moe.bench import ranks
from mindspeed_moe.bench.shapes import Shape
from mindspeed_moe.errors import BenchError

BLOCKS = ("counting", "exchange", "unpacking", "profiler", "empty", "unpacking_telemetry", "telemetry_16_layers")


def megatron_path() -> tuple[Path, ...]:
    return tuple(Path(one) for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one)


@pytest.mark.megatron
@pytest.mark.once
def test_two_ranks_in_lock_step():
    size = "--experts 8 --tokens 50 --topk 2 --mode dropless,drop --rounds 3"
    arguments = f"-m mindspeed_moe bench --ranks 2 --verify {size} --json"
    done = python(*arguments.split(), path=megatron_path(), timeout=1800)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert [one["shape"] for one in data["results"]] == [
        {"experts": 8, "ep": 2, "tp": 1, "tokens": 50, "topk": 2, "mode": mode} for mode in ("dropless", "drop")
    ]
    for one in data["results"]:
        assert one["processes"] == 2
        assert list(one["implementations"]) == [
            "stock",
            "reference",
            "packed",
            "packed, verify: first",
            "packed, verify: always",
        ]
        assert list(one["packed_blocks"]) == list(BLOCKS)


def test_what_a_rank_says_reaches_the_caller(monkeypatch, tmp_path):
    """Spawned processes have the path of their parent, where another Megatron comes first."""
    core = tmp_path / "megatron" / "core"
    core.mkdir(parents=True)
    (core / "package_info.py").write_text("MAJOR = 9\nMINOR = 8\nPATCH = 7\nPRE_RELEASE = ''\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BenchError, match=r"^rank [01]: megatron-core 9\.8\.7 is newer than the releases"):
        ranks.measure_on_ranks([Shape(8, 2, 1, 5, 2, "dropless")], 2, 1, seed=0, threads=1)
