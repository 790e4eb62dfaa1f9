"""What a measurement was taken on: versions, processor, threads."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy
import torch

from mindspeed_moe.bench.devices import CPU
from mindspeed_moe.environment import Environment
from mindspeed_moe.files import read_text
from mindspeed_moe.planning import plugin_version

_CPUINFO = Path("/proc/cpuinfo")


def describe_machine(environment: Environment, threads: int, device: str = CPU) -> dict[str, Any]:
    """Return versions and machine as plain data.

    threads: those that torch uses in each process. load: the system's average over the last minute, this process
    included: timings taken beside other work are no good.
    """
    return {
        **_device_facts(environment, device),
        "mindspeed_moe": plugin_version(),
        "megatron_core": environment.megatron_core.version,
        "python": environment.python,
        "torch": environment.torch.version,
        "numpy": numpy.__version__,
        "cpu": cpu_model(_CPUINFO),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "load": os.getloadavg()[0],
    }


def is_simulated(environment: Environment) -> bool:
    """Return whether the accelerator is the simulated runtime, which tells by a variable."""
    return "ASCEND_SIM" in environment.variables


def _device_facts(environment: Environment, device: str) -> dict[str, Any]:
    if device == CPU:
        return {}
    simulated = "simulated " if is_simulated(environment) else ""
    facts: dict[str, Any] = {"device": f"{simulated}{device}: {environment.devices[device]}"}
    if device == "cuda":
        facts["cuda"] = torch.version.cuda
        nccl: Any = torch.cuda.nccl
        facts["nccl"] = ".".join(map(str, nccl.version()))
    else:
        facts["torch_npu"] = environment.torch_npu.version
    return facts


def cpu_model(cpuinfo: Path) -> str:
    """Return the processor's model name, or the architecture where the system does not tell."""
    if cpuinfo.is_file():
        for line in read_text(cpuinfo, errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
