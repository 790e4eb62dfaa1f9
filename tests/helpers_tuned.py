"""A tuned file as data: two ranks on a cpu."""

from __future__ import annotations

from typing import Any

DATA: dict[str, Any] = {
    "mindspeed_moe_tuned": 1,
    "machine": {"device": "cpu", "name": "Turbo, 2 cores", "cpu": "Turbo, 2 cores", "world_size": 2},
    "versions": {"mindspeed_moe": "0.1.0", "megatron_core": "0.16.1", "torch": "2.13.0", "torch_npu": ""},
    "shape": {"experts": 8, "ep": 2, "tp": 1, "tokens": 64, "topk": 2},
    "choices": {"counts": "sum", "exchange": "all_gather"},
    "reason": "counts sum, exchange all_gather: 10.0 us, defaults: 12.0 us, gain 1.5 to 2.5 us",
    "settled": True,
    "rounds": 120,
    "timings_us": {"defaults": {"p20": 11.0, "p50": 12.0, "p80": 13.0}},
    "costs_us": {"kernel": 5.0, "collective": 20, "copy": 3.5, "record": 0, "wait": 0},
}
