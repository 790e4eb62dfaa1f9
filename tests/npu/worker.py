"""One rank, on the simulated Ascend device or on the cpu: `python -m npu.worker TASK`, TASK made by npu.launch."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy
import torch
import torch.distributed as dist

from npu import (
    counting,
    extended,
    mutated_layers,
    mutating,
    observing,
    profiling,
    remade,
    selftesting,
    strangers,
    verifying,
)
from soak import training


def outputs(rank: int, device: str, ep: int, tp: int, folder: str) -> list[str]:
    """A MoE layer and a GPT, forward and backward; every tensor goes to a file, its names come back."""
    from npu import models

    found = models.run(device, ep, tp)
    numpy.savez(Path(folder) / f"tensors{rank}.npz", **{name: one.cpu().numpy() for name, one in found.items()})
    return sorted(found)


JOBS = {
    "count_calls": counting.count_calls,
    "count_communicators": counting.count_communicators,
    **extended.JOBS,
    "mutate": mutating.mutate,
    **mutated_layers.JOBS,
    **observing.JOBS,
    "outputs": outputs,
    "profile": profiling.profile,
    **remade.JOBS,
    **selftesting.JOBS,
    "soak": training.soak,
    **strangers.JOBS,
    **verifying.JOBS,
}


def _join_npu(rank: int) -> str:
    import torch_npu
    from torch_npu.contrib import transfer_to_npu  # noqa: F401

    torch_npu.npu.set_device(rank)
    return "hccl"


def _join_cpu(rank: int) -> str:
    return "gloo"


BACKENDS = {"npu": _join_npu, "cpu": _join_cpu}


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    task = json.loads(sys.argv[1])
    rank, folder = task["rank"], Path(task["folder"])
    backend = BACKENDS[task["device"]](rank)
    dist.init_process_group(
        backend, init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=task["world_size"]
    )
    result = JOBS[task["job"]](rank, **task["arguments"])
    (folder / f"rank{rank}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
