"""Telemetry costs the device nothing: every kernel, copy, collective, record and wait is the same with it and without.

On the simulated Ascend runtime, whose ledger is exact.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from npu import layer
from npu.launch import run_ranks
from npu.observing import CALLS, EXPERTS, MODES, STREAMS
from oracle.plan import DROPLESS, PAD

pytestmark = [pytest.mark.simulated, pytest.mark.megatron]

EP = 2


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("observed")
    return run_ranks("observe", EP, folder, arguments={"ep": EP, "tp": 1, "folder": str(folder)})


def test_the_ledger_is_the_same(observed: list[dict[str, Any]]) -> None:
    for found in observed:
        assert len(found["counted"]) == len(MODES) * len(STREAMS)
        for name, (off, on) in found["counted"].items():
            assert on == off, name
            assert (len(off) > 3) is (PAD not in name), f"{name}: with padding there is nothing to count"


def test_what_was_written_meanwhile(observed: list[dict[str, Any]]) -> None:
    maps = layer.routing_maps(3, EP, EXPERTS, tokens=(layer.TOKENS, layer.TOKENS + 1))
    per_expert = [CALLS * sum(row[expert] for one in maps for row in one) for expert in range(EXPERTS)]
    local = EXPERTS // EP
    for rank, found in enumerate(observed):
        for stream in STREAMS:
            last = found["written"][f"{stream}, {DROPLESS}"][-1]
            assert last["tokens"] == per_expert[rank * local : (rank + 1) * local]
            assert (last["calls"], last["step"], last["dropped"]) == (CALLS, 10, 0)
