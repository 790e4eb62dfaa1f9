"""Megatron on the simulated npu against the same on the CPU: a MoE layer and whole training steps of a GPT model.

Everything is equal bit for bit, in fp32 and in bf16: losses, gradients, gradient norms and the weights after the
optimizer's steps. torch_npu launches the operators that CPU torch runs, in the same order, each is computed by CPU
torch on one thread, and the CPU's process has one thread too.

One process trains on the CPU, one on the simulated npu. With a release of megatron-core on PYTHONPATH.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ascend_sim.tests.running import PROGRAMS, run

pytestmark = [
    pytest.mark.megatron,
    pytest.mark.skipif(importlib.util.find_spec("megatron") is None, reason="megatron-core is not on PYTHONPATH"),
]

RUNS = [
    ("moe", "adamw", "float32"),
    ("gpt", "adamw", "float32"),
    ("gpt", "sgd", "float32"),
    ("gpt", "adamw", "bfloat16"),
]


def _torch() -> Any:
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    import torch

    return torch


@functools.cache
def trained(device: str, what: str, optimizer: str, dtype: str, folder: Path, delay_us: float = 50) -> dict[str, Any]:
    """Losses, gradients, norms and weights of two steps on a device."""
    out = folder / f"{device}-{what}-{optimizer}-{dtype}-{delay_us}.pt"
    arguments = ["--device", device, "--what", what, "--optimizer", optimizer, "--dtype", dtype, "--out", str(out)]
    one_thread = {"OMP_NUM_THREADS": "1"}
    if device == "npu":
        ended = run("operators_megatron.py", *arguments, variables=one_thread, delay_us=delay_us)
    else:
        variables = {**os.environ, **one_thread, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
        command = [sys.executable, str(PROGRAMS / "operators_megatron.py"), *arguments]
        ended = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=1800, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    result: dict[str, Any] = _torch().load(out)
    return result


def _different(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The names of the tensors that are not equal bit for bit, with the largest relative difference."""
    assert found.keys() == expected.keys()
    different = []
    for name, tensor in found.items():
        assert bool(_torch().isfinite(tensor).all()), f"{name} is not finite"
        if not _torch().equal(tensor, expected[name]):
            distance = (tensor.double() - expected[name].double()).abs().max().item()
            different.append(f"{name}: {distance / expected[name].double().abs().max().item():.3g}")
    return different


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("megatron")


@pytest.mark.parametrize(("what", "optimizer", "dtype"), RUNS)
def test_equals_cpu(what: str, optimizer: str, dtype: str, folder: Path) -> None:
    found, expected = (trained(device, what, optimizer, dtype, folder) for device in ("npu", "cpu"))
    for kind in ("losses", "norms"):
        pair = ({f"step {step}": value for step, value in enumerate(result[kind])} for result in (found, expected))
        assert _different(*pair) == []
    for step in range(2):
        assert len(found["gradients"][step]) > 10
        assert _different(found["gradients"][step], expected["gradients"][step]) == []
    assert _different(found["weights"], expected["weights"]) == []


def test_delays_do_not_change_the_result(folder: Path) -> None:
    """Order between streams is what events enforce: later tasks give the same bits."""
    prompt, late = (trained("npu", "moe", "adamw", "float32", folder, delay_us) for delay_us in (0, 400))
    assert _different(late["weights"], prompt["weights"]) == []
