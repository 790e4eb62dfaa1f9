"""`mindspeed-moe bench --device npu --simulated`: counts, and no times."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.simulated, pytest.mark.megatron]

ROOT = Path(__file__).resolve().parents[2]


def test_a_ledger_of_every_implementation() -> None:
    options = "--device npu --simulated --experts 8 --ep 2 --tokens 30 --topk 2 --mode dropless,pad --json"
    command = [sys.executable, "-m", "mindspeed_moe", "bench", *options.split()]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800)
    assert ended.returncode == 0, ended.stderr
    data = json.loads(ended.stdout)
    assert data["unit"] is None
    assert data["machine"]["device"].startswith("simulated npu")
    dropless, pad = (one["ledger"] for one in data["results"])
    assert all(one["simulated"] for one in data["results"])
    for rows in (dropless, pad):
        assert list(rows) == ["stock", "reference", "packed"]
    counts = {name: {row["what"]: row["count"] for row in rows} for name, rows in dropless.items()}
    assert counts["packed"]["kernels"] < counts["stock"]["kernels"]
    copies = {name: sum(row["count"] for row in rows if "to host" in row["what"]) for name, rows in dropless.items()}
    assert copies["packed"] == 1 < copies["stock"]
    assert {name: len(rows) for name, rows in pad.items()} == dict.fromkeys(pad, 0), "all follows from the capacity"
