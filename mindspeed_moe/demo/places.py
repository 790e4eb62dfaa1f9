"""Where the demo's ranks run: what a device wants of a process before it joins the group."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from mindspeed_moe.devices.npu import use_npu_as_cuda


@dataclass(frozen=True)
class Place:
    """One device's ways.

    backend: of torch.distributed. enter: called in each process with its rank, before it joins the group.
    etp, steps: the defaults for the expert-tensor-parallel size and the training steps.
    """

    backend: str
    enter: Callable[[int], None]
    etp: int
    steps: int


def _cpu(rank: int) -> None:
    importlib.import_module("torch").set_num_threads(1)


def _npu(rank: int) -> None:
    _cpu(rank)
    use_npu_as_cuda(rank)


PLACES = {
    "cpu": Place("gloo", _cpu, etp=2, steps=200),
    "npu": Place("hccl", _npu, etp=1, steps=20),
}
