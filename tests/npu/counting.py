"""Jobs that count what calls cost, on every rank."""

from __future__ import annotations

import gc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import mindspeed_moe
from distributed.layers import HIDDEN, Layer, build_layer
from npu import layer
from npu.floor import GROUP_CASES, Case, Cost

WARM_UP = 3  # the first calls make groups and slots, and fill the allocators' caches
GROUP_LAYERS = 3


def count_calls(rank: int, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each case: the ledger of one call, and what is wrong with its results.

    The world may be larger than a layout; every group of it then does the same.
    """
    found = []
    layout = None
    layer.groups(ep=1, tp=1)  # imports what there is to import
    gc.freeze()  # which a collection would otherwise go through for every case
    for case in (Case(**one) for one in cases):
        if layout != (case.tp, case.ep):
            layout = (case.tp, case.ep)
            layer.groups(ep=case.ep, tp=case.tp)
        found.append(_count(case))
    return found


def _count(case: Case) -> dict[str, Any]:
    from tests.ascend_sim import ledger

    mindspeed_moe.enable(case.settings)
    dispatcher = layer.make_dispatcher(case.experts, mode=case.mode, dispatcher=case.dispatcher)
    maps, wanted = layer.problem(case)
    on_device = torch.tensor(maps, dtype=torch.bool).npu()
    for _ in range(WARM_UP):
        layer.finish(dispatcher, dispatcher.preprocess(on_device))
        torch.npu.synchronize()
    gc.collect()  # pinned memory of an earlier dispatcher is given back with a record of an event
    with ledger.record() as counts:
        tokens_per_expert = layer.pass_points(dispatcher, dispatcher.preprocess(on_device))
    torch.npu.synchronize()
    wrong = layer.difference(layer.read(dispatcher, tokens_per_expert), wanted)
    mindspeed_moe.disable()
    return {
        "cost": asdict(cost_of(counts, case.tp * case.ep)),
        "wrong": wrong,
        "kernels": counts.kernels,
        "operations": [entry.operation for entry in counts.collectives],
        "pageable_or_blocking": counts.copy_count("device_to_host")
        - counts.copy_count("device_to_host", asynchronous=True, pinned=True),
        "other_copies": counts.copy_count() - counts.copy_count("device_to_host"),
        "fills": sum(one.count for one in counts.memsets),
        "made": counts.streams_created + counts.events_created,
        "counts_on": tokens_per_expert.device.type,
    }


def cost_of(counts: Any, group_size: int) -> Cost:
    """Read a ledger. Collectives count by what they write on this rank: a gather writes a part from every rank."""
    return Cost(
        kernels=counts.kernel_count,
        collectives=counts.collective_count,
        copies=counts.copy_count("device_to_host"),
        records=counts.event_records,
        event_waits=counts.event_synchronizations,
        stream_synchronizations=counts.stream_synchronizations,
        device_synchronizations=counts.device_synchronizations,
        copied=counts.copy_bytes("device_to_host"),
        wire=sum(one.bytes * (group_size if "gather" in one.operation.lower() else 1) for one in counts.collectives),
        device_allocations=sum(one.count for one in counts.device_allocations),
        host_allocations=counts.host_allocations,
        communicators=len(counts.communicators),
    )


def count_communicators(rank: int, folder: str) -> dict[str, list[int]]:
    """For each of GROUP_CASES: the device memory of every communicator, in bytes, largest first.

    Counted from the beginning of a process group until a few layers have run forward and backward, EP = the world.
    Between two cases everything is destroyed. The last ones keep the plugin enabled, as a restart in a process would.
    """
    from megatron.core import parallel_state

    from tests.ascend_sim import ledger

    world = dist.get_world_size()
    found = {}
    enabled: dict[str, Any] = {}
    for number, (name, settings) in enumerate(GROUP_CASES.items()):
        if enabled != settings:
            mindspeed_moe.disable()
            mindspeed_moe.enable({"device": "npu", **settings})
            enabled = settings
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
        gc.collect()
        with ledger.record() as counts:
            dist.init_process_group(
                "hccl", init_method=f"file://{Path(folder) / f'rendezvous{number}'}", rank=rank, world_size=world
            )
            layer.groups(ep=world, tp=1)
            for _ in range(GROUP_LAYERS):
                module = build_layer(Layer(ep=world, tp=1, experts=8, topk=2)).npu()
                output, _ = module(torch.ones(4, 2, HIDDEN).npu().requires_grad_())
                output.sum().backward()
            torch.npu.synchronize()
        found[name] = sorted(counts.communicators.values(), reverse=True)
    mindspeed_moe.disable()
    return found
