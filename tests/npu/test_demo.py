"""The demo on the simulated npu, beside the cpu."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.simulated, pytest.mark.megatron]

ROOT = Path(__file__).resolve().parents[2]


def test_losses_on_the_simulated_npu_are_those_of_the_cpu(tmp_path: Path) -> None:
    options = ["--device=npu", "--simulated", "--steps=2", "--implementations=stock,packed", f"--out={tmp_path}"]
    command = [sys.executable, "-m", "mindspeed_moe", "demo", *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "simulated npu" in ended.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["simulated"]
    assert summary["bit_identical"]
    names = {f"{name}, {where}" for name in ("stock", "packed") for where in ("cpu", "simulated npu")}
    assert set(summary["implementations"]) == names
    for name in ("stock", "packed"):
        assert summary["largest_relative_difference"][name] <= 1e-6
        run = summary["implementations"][f"{name}, simulated npu"]
        assert len(run["losses"]) == 2
        assert run["losses"][1] < run["losses"][0]
        assert "preprocess" not in run, "a simulation says nothing about times"


def test_simulated_goes_with_the_npu_only(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mindspeed_moe", "demo", "--simulated", f"--out={tmp_path}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800)
    assert ended.returncode == 2
    assert "--device npu" in ended.stderr
