"""`mindspeed-moe tune` on two ranks of the simulated npu: every candidate runs, and nothing is chosen by its times."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.simulated, pytest.mark.megatron]

ROOT = Path(__file__).resolve().parents[2]


def test_all_candidates_run_and_no_file_is_written(tmp_path: Path) -> None:
    out = tmp_path / "tuned.yaml"
    simulated = [sys.executable, "-m", "tests.ascend_sim", "--delay-us=0", "--npus=2"]
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    tune = ["-m", "mindspeed_moe", "tune", "--device=npu", "--experts=8", "--tp=2", "--tokens=32", f"--out={out}"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    ended = subprocess.run(
        [*simulated, *launcher, *tune],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    told = " ".join(ended.stdout.split())
    # counts x exchange x (tp_ep, dedicated) x stream
    assert "no file is written; all 16 candidates ran and leave the same as stock" in told
    assert not list(tmp_path.iterdir())
