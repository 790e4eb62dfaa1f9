"""The job that counts what calls cost with telemetry and without, and what telemetry then records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

import mindspeed_moe
from mindspeed_moe.telemetry import set_step
from npu import layer
from oracle.plan import DROP, DROPLESS, PAD

EXPERTS = 8
MODES = (DROPLESS, DROP, PAD)
STREAMS = ("current", "side")
CALLS = 3


def observe(rank: int, ep: int, tp: int, folder: str) -> dict[str, Any]:
    """For each stream and mode the ledger of CALLS calls, off and on; and the lines of the rank's files."""
    layer.groups(ep, tp)
    counted: dict[str, Any] = {}
    written: dict[str, Any] = {}
    for stream in STREAMS:
        for mode in MODES:
            name = f"{stream}, {mode}"
            where = Path(folder) / name
            counted[name] = [_count(rank, ep, tp, mode, stream, telemetry) for telemetry in (None, where)]
            lines = (where / f"rank{rank:05d}.000001.jsonl").read_text().splitlines()
            written[name] = [json.loads(line) for line in lines]
    return {"counted": counted, "written": written}


def _count(rank: int, ep: int, tp: int, mode: str, stream: str, folder: Path | None) -> list[str]:
    from tests.ascend_sim import ledger

    telemetry = {"enabled": folder is not None, "folder": str(folder or "nowhere")}
    mindspeed_moe.enable({"device": "npu", "telemetry": telemetry, "preprocess": {"stream": stream}})
    dispatcher = layer.make_dispatcher(EXPERTS, mode=mode)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.0)
    maps = layer.routing_maps(3, ep * tp, EXPERTS, tokens=(layer.TOKENS, layer.TOKENS + 1))
    routing_map = torch.tensor(maps[rank], dtype=torch.bool).npu()
    _call(dispatcher, routing_map)  # makes slots
    torch.npu.synchronize()
    optimizer.step()
    set_step(10)
    with ledger.record() as counts:
        for _ in range(CALLS):
            _call(dispatcher, routing_map)
        optimizer.step()
    mindspeed_moe.disable()
    # How often a slot asks for its event depends on timing, here as there.
    return [line for line in counts.table().splitlines() if "event queries" not in line]


def _call(dispatcher: Any, routing_map: torch.Tensor) -> None:
    layer.pass_points(dispatcher, dispatcher.preprocess(routing_map))


JOBS = {"observe": observe}
