"""Ranks that own whole experts, on the npu: what a call may cost, the jobs that count it, and seeded mistakes."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from mindspeed_moe.devices.accelerator import Accelerator
from mindspeed_moe.devices.npu import npu_streams
from mindspeed_moe.preprocess.extended import ExtendedLayout, ExtendedPlan
from mindspeed_moe.preprocess.extended_async import ExtendedCall, ExtendedPreprocess
from npu.counting import cost_of
from npu.floor import EXCHANGES, RECORDS_OF_A_COLLECTIVE, Cost
from npu.layer import TOPK, routing_maps
from oracle.extended import Extended, plans

WARM_UP = 3
DELAY_US, HOLD_US = 200.0, 50_000.0  # long against the host's own work: what nobody waits for has not happened yet


@dataclass(frozen=True)
class Case:
    """One measurement. in_order: whether owners hold neighbours in order. on_device: where the experts read."""

    ranks: int
    local: int
    in_order: bool
    exchange: str
    on_device: bool

    @property
    def owned(self) -> list[list[int]]:
        experts = list(range(self.ranks * self.local))
        if not self.in_order:
            random.Random(1).shuffle(experts)
        return [experts[first : first + self.local] for first in range(0, len(experts), self.local)]

    @property
    def floor(self) -> Cost:
        """One count; one kernel that puts counts in the order of owners, unless the host can; one sum for experts."""
        gathers, experts = self.exchange == "all_gather", self.ranks * self.local
        put_in_order = not self.in_order and (self.on_device or not gathers)
        wire = 4 * experts * (self.ranks if gathers else 1)
        return Cost(
            kernels=1 + put_in_order + self.on_device,
            collectives=1,
            copies=1,
            records=RECORDS_OF_A_COLLECTIVE + 1,
            event_waits=1,
            copied=wire if gathers else wire + 4 * experts,
            wire=wire,
        )


def cases(ranks: int) -> list[Case]:
    return [
        Case(ranks, local, in_order, exchange, on_device)
        for local in (1, 3)
        for in_order in (True, False)
        for exchange in EXCHANGES
        for on_device in (False, True)
    ]


# ------------------------------------------------------------------------------------------------------------- jobs


def count_extended(rank: int, ranks: int) -> list[dict[str, Any]]:
    """For each case: the ledger of one call and of two at once, and whether their plans are right."""
    return [asdict_of(_count(rank, case)) for case in cases(ranks)]


def _count(rank: int, case: Case) -> tuple[Cost, Cost, list[str]]:
    from tests.ascend_sim import ledger

    preprocess = _make(rank, case)
    batches = [_Batch(rank, case, seed) for seed in range(2)]
    for _ in range(WARM_UP):
        _in_flight(preprocess, batches)
        torch.npu.synchronize()
    gc.collect()
    wrong = []
    with ledger.record() as one:
        plan = preprocess.start(batches[0].routing_map, TOPK).wait()
    wrong += batches[0].difference(plan)
    with ledger.record() as two:
        found = _in_flight(preprocess, batches)
    for batch, plan in zip(batches, found, strict=True):
        wrong += batch.difference(plan)
    for counts in (one, two):
        if counts.copy_count() != counts.copy_count("device_to_host", asynchronous=True, pinned=True):
            wrong.append(f"copies that make the host wait: {counts.table()}")
    return cost_of(one, case.ranks), cost_of(two, case.ranks), wrong


def asdict_of(found: tuple[Cost, Cost, list[str]]) -> dict[str, Any]:
    one, two, wrong = found
    return {"one": asdict(one), "two": asdict(two), "wrong": wrong}


def mutate_extended(rank: int, ranks: int, seeds: int) -> dict[str, list[int]]:
    """For each mutation, and for the code as it is (""): the seeds in which two calls in flight came out wrong."""
    from tests.ascend_sim.schedule import set_schedule

    noticed: dict[str, list[int]] = {}
    for name, mutation in MUTATIONS.items():
        noticed[name] = []
        with mutation():
            preprocess = _make(rank, Case(ranks, 3, in_order=False, exchange="all_to_all", on_device=True))
            for seed in range(-1, seeds):  # the first makes slots
                set_schedule(max(seed, 0), delay_us=DELAY_US, hold_us=HOLD_US)
                batches = [_Batch(rank, _case_of(preprocess), 2 * seed + at + 2) for at in range(2)]
                found = _in_flight(preprocess, batches)
                wrong = [one for batch, plan in zip(batches, found, strict=True) for one in batch.difference(plan)]
                torch.npu.synchronize()
                if wrong and seed >= 0:
                    noticed[name].append(seed)
    set_schedule(0, delay_us=0, hold_us=0)
    return noticed


JOBS: dict[str, Callable[..., Any]] = {"count_extended": count_extended, "mutate_extended": mutate_extended}


def _make(rank: int, case: Case) -> ExtendedPreprocess:
    return ExtendedPreprocess(
        ExtendedLayout(case.owned, rank),
        dist.group.WORLD,
        device="npu",
        accelerator=Accelerator(npu_streams()),
        exchange=case.exchange,
        counts_on_device=case.on_device,
    )


def _case_of(preprocess: ExtendedPreprocess) -> Case:
    layout = preprocess.layout
    return Case(layout.group_size, layout.num_local_experts, False, "", False)


class _Batch:
    """One micro-batch: this rank's routing map on the device, and the plan that the oracle wants."""

    def __init__(self, rank: int, case: Case, seed: int) -> None:
        maps = routing_maps(seed, case.ranks, case.ranks * case.local)
        self.routing_map = torch.tensor(maps[rank], dtype=torch.bool).npu()
        self.wanted: Extended = plans(case.owned, maps, TOPK)[rank]

    def difference(self, plan: ExtendedPlan) -> list[str]:
        found = {name: getattr(plan, name) for name in asdict(self.wanted)} | {"counts": plan.counts}
        wanted = asdict(self.wanted) | {"counts": self.wanted.tokens_per_local_expert}
        lists = {name: value if isinstance(value, int) else value.tolist() for name, value in found.items()}
        return [f"{name}: {lists[name]}, expected {wanted[name]}" for name in lists if lists[name] != wanted[name]]


def _in_flight(preprocess: ExtendedPreprocess, batches: list[_Batch]) -> list[ExtendedPlan]:
    calls = [preprocess.start(batch.routing_map, TOPK) for batch in batches]
    return [call.wait() for call in calls]


# ------------------------------------------------------------------------------------------------- seeded mistakes


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _slot_used_again_before_its_copy() -> Iterator[None]:
    start = ExtendedPreprocess.start

    def hasty(self: ExtendedPreprocess, routing_map: torch.Tensor, topk: int | None = None) -> ExtendedCall:
        call = start(self, routing_map, topk)
        assert self._ring is not None
        assert call._slot is not None
        self._ring.free(call._slot)
        return call

    with mock.patch.object(ExtendedPreprocess, "start", hasty):
        yield


@contextmanager
def _no_wait() -> Iterator[None]:
    event = Accelerator.event

    class Patient:
        """An event that is recorded, and that nobody waits for."""

        def __init__(self, real: Any) -> None:
            self.record, self.query = real.record, real.query

        def synchronize(self) -> None:
            """Return at once."""

    with mock.patch.object(Accelerator, "event", lambda self: Patient(event(self))):
        yield


@contextmanager
def _another_order_of_owners() -> Iterator[None]:
    order = ExtendedLayout.order.func
    with mock.patch.object(ExtendedLayout, "order", property(lambda self: order(self)[::-1])):
        yield


MUTATIONS = {
    "": _as_it_is,
    "a slot is used again before its copy": _slot_used_again_before_its_copy,
    "nobody waits for the copy": _no_wait,
    "another order of owners": _another_order_of_owners,
}
