"""One rank, on the simulated Ascend device or on the cpu: `python -m npu.worker TASK`, TASK made by npu.launch."""

from __future__ import annotations

import json
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed as dist

import mindspeed_moe
from npu import layer, mutations

EXPERTS = 8
LAYERS = 3
BUSY_KERNELS = 20
DELAY_US = 200.0
HOLD_US = 100_000.0  # long against the host's own work, so that what nobody waits for has not happened yet


def groups(ep: int, tp: int) -> None:
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(expert_model_parallel_size=ep, expert_tensor_parallel_size=tp)


def count_calls(rank: int, ep: int, tp: int, cases: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The ledger of one preprocess with its host half for each case: an implementation and choices inside it."""
    groups(ep, tp)
    return [_count(rank, ep, tp, **case) for case in cases]


def _count(rank: int, ep: int, tp: int, implementation: str, **preprocess: str) -> dict[str, Any]:
    mindspeed_moe.enable({"device": "npu", "dispatchers": {"alltoall": implementation}, "preprocess": preprocess})
    dispatcher = layer.make_dispatcher(EXPERTS)
    on_device = torch.tensor(layer.routing_maps(7, ep * tp, EXPERTS)[rank], dtype=torch.bool).npu()
    for _ in range(2):  # the first calls make groups and fill the allocators' caches
        layer.finish(dispatcher, dispatcher.preprocess(on_device))
    torch.npu.synchronize()
    from tests.ascend_sim import ledger

    with ledger.record() as counts:
        tokens_per_expert = dispatcher.preprocess(on_device)
        for point in layer.POINTS:
            tokens_per_expert = dispatcher._maybe_dtoh_and_synchronize(point, tokens_per_expert)
    torch.npu.synchronize()
    mindspeed_moe.disable()
    return {
        "kernels": counts.kernel_count,
        "kernel_names": counts.kernels,
        "collectives": counts.collective_count,
        "device_to_host": counts.copy_count("device_to_host"),
        "device_to_host_pinned": counts.copy_count("device_to_host", asynchronous=True, pinned=True),
        "other_copies": counts.copy_count() - counts.copy_count("device_to_host"),
        "event_records": counts.event_records,
        "event_synchronizations": counts.event_synchronizations,
        "stream_synchronizations": counts.stream_synchronizations,
        "device_synchronizations": counts.device_synchronizations,
        "device_allocations": sum(entry.count for entry in counts.device_allocations),
        "communicators": len(counts.communicators),
        "counts_on": tokens_per_expert.device.type,
    }


def mutate(rank: int, where: str, seeds: int, names: list[str]) -> dict[str, Any]:
    """For each mutation, and for the code as it is (name ""): the seeds in which something was noticed."""
    from tests.ascend_sim.schedule import set_schedule

    ep, tp, known = mutations.EP_TP[where]
    groups(ep, tp)
    mindspeed_moe.enable({"device": "npu", "dispatchers": {"alltoall": "packed"}})
    dispatchers = [layer.make_dispatcher(EXPERTS) for _ in range(LAYERS)]
    scenario(rank, ep, tp, dispatchers, seed=0)
    noticed: dict[str, dict[int, str]] = {}
    for name in names:
        noticed[name] = {}
        for seed in range(seeds):
            set_schedule(seed, delay_us=DELAY_US, hold_us=HOLD_US)
            with known[name]() if name else nullcontext():
                problem = scenario(rank, ep, tp, dispatchers, seed)
            torch.npu.synchronize()
            if problem:
                noticed[name][seed] = problem
    set_schedule(0, delay_us=0, hold_us=0)
    mindspeed_moe.disable()
    return noticed


def scenario(rank: int, ep: int, tp: int, dispatchers: list[Any], seed: int) -> str:
    """Several layers in flight on a busy device; returns the first thing that is wrong, or an empty string.

    Before the host half of the first layer the current stream is drained, or nothing is, or the whole device.
    """
    drains = (torch.npu.current_stream().synchronize, lambda: None, torch.npu.synchronize)
    from tests.ascend_sim import ledger

    with ledger.record() as counts:
        problems = []
        for turn, drain in enumerate(drains):
            maps = [
                layer.routing_maps(1000 * seed + 10 * turn + at, ep * tp, EXPERTS) for at in range(len(dispatchers))
            ]
            wanted = [layer.expected(one, ep, tp, EXPERTS, rank) for one in maps]
            busy = torch.zeros(1).npu()
            for _ in range(BUSY_KERNELS):
                busy += 1
            flying = [layer.start(dispatcher, one[rank]) for dispatcher, one in zip(dispatchers, maps, strict=True)]
            drain()
            for dispatcher, counts_of_call, plan in zip(dispatchers, flying, wanted, strict=True):
                problems.append(layer.difference(layer.finish(dispatcher, counts_of_call), plan))
    calls = len(drains) * len(dispatchers)
    pinned = counts.copy_count("device_to_host", asynchronous=True, pinned=True)
    if pinned < calls:
        problems.append(f"{pinned} asynchronous copies into pinned memory in {calls} calls")
    return next(filter(None, problems), "")


def outputs(rank: int, device: str, ep: int, tp: int, folder: str) -> list[str]:
    """A MoE layer and a GPT, forward and backward; every tensor goes to a file, its names come back."""
    from npu import models

    found = models.run(device, ep, tp)
    numpy.savez(Path(folder) / f"tensors{rank}.npz", **{name: one.cpu().numpy() for name, one in found.items()})
    return sorted(found)


JOBS = {"count_calls": count_calls, "mutate": mutate, "outputs": outputs}


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
