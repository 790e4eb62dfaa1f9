"""The only module that imports torch_npu."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NpuState:
    """Whether an NPU can be used, its SoC name, and the problem if not."""

    usable: bool
    soc: str = ""
    problem: str = ""


def torch_npu_installed() -> bool:
    """Whether torch_npu can be found; does not import it."""
    try:
        return importlib.util.find_spec("torch_npu") is not None
    except ValueError:  # a module that somebody put there by hand has no spec
        return True


def torch_npu_state() -> NpuState:
    """Import torch_npu, if it is installed, and ask it for a device. Raises nothing: a broken one is a state."""
    if not torch_npu_installed():
        return NpuState(False, problem="torch_npu is not installed")
    try:
        torch_npu = importlib.import_module("torch_npu")
        if not torch_npu.npu.is_available():
            return NpuState(False, problem="torch_npu is installed but finds no device")
        return NpuState(True, soc=str(torch_npu.npu.get_device_name(0)))
    except Exception as error:  # missing CANN surfaces as ImportError, OSError or RuntimeError, by release
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return NpuState(False, problem=f"torch_npu is broken: {reason}")


def use_npu_as_cuda(device: int) -> None:
    """Choose an NPU for this process and let torch.cuda mean torch.npu, as every MindSpeed launch does."""
    importlib.import_module("torch_npu.contrib.transfer_to_npu")
    importlib.import_module("torch_npu").npu.set_device(device)


def small_hccl_buffer() -> Any:
    """Return options of a process group that takes 1 MB for each direction, in place of HCCL_BUFFSIZE (200 MB)."""
    options = importlib.import_module("torch_npu._C._distributed_c10d").ProcessGroupHCCL.Options()
    options.hccl_config = {"hccl_buffer_size": 1}
    return options


def npu_streams() -> Any:
    """Return torch_npu's counterpart of torch.cuda: streams and events under the same names."""
    return importlib.import_module("torch_npu").npu
