"""The job that runs seeded mistakes: a scenario in which each of them must show, on late and busy devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch

import mindspeed_moe
from npu import layer, mutations
from oracle.plan import RankPlan

EXPERTS = 8
LAYERS = 3
BUSY_KERNELS = 20
BYSTANDERS = 32
DELAY_US = 200.0
HOLD_US = 100_000.0  # long against the host's own work, so that what nobody waits for has not happened yet


def mutate(rank: int, where: str, seeds: int, names: dict[str, list[str]]) -> dict[str, Any]:
    """For each stream and mutation, and for the code as it is (name ""): the seeds in which something was noticed."""
    from tests.ascend_sim.schedule import set_schedule

    ep, tp, known = mutations.EP_TP[where]
    layer.groups(ep, tp)
    noticed: dict[str, dict[str, dict[int, str]]] = {}
    for stream, of_stream in names.items():
        noticed[stream] = {}
        for name in of_stream:
            found = noticed[stream][name] = {}
            with known[stream][name]() if name else nullcontext():
                preprocess = {"stream": stream, "exchange": "all_to_all", "tokens_per_expert": "device"}
                mindspeed_moe.enable({"device": "npu", "preprocess": preprocess})
                dispatchers = [layer.make_dispatcher(EXPERTS) for _ in range(LAYERS)]
                for seed in range(-1, seeds):  # the first makes slots
                    set_schedule(max(seed, 0), delay_us=DELAY_US, hold_us=HOLD_US)
                    problem = scenario(rank, ep, tp, dispatchers, seed)
                    torch.npu.synchronize()
                    if problem and seed >= 0:
                        found[seed] = problem
                mindspeed_moe.disable()
    set_schedule(0, delay_us=0, hold_us=0)
    return noticed


def scenario(rank: int, ep: int, tp: int, dispatchers: list[Any], seed: int) -> str:
    """Several layers in flight on a busy device; returns the first thing that is wrong, or an empty string."""
    from tests.ascend_sim import ledger

    maps = _maps(seed, ep * tp)
    wanted = {key: layer.expected(one, ep, tp, EXPERTS, rank) for key, one in maps.items()}
    with ledger.record() as counts:
        problems = list(_problems(rank, dispatchers, {key: one[rank] for key, one in maps.items()}, wanted))
    calls = len(maps)  # one is given up on rank 0, but its copy is made all the same
    pinned = counts.copy_count("device_to_host", asynchronous=True, pinned=True)
    if pinned < calls:
        problems.append(f"{pinned} asynchronous copies into pinned memory in {calls} calls")
    return next(filter(None, problems), "")


DRAINS = ("current stream", "nothing", "device")
GIVEN_UP, AFTER, ABANDONED = "given up", "after it", "abandoned for padding"


def _maps(seed: int, ranks: int) -> dict[Any, Any]:
    """A routing map a rank for every call of a scenario, all different."""
    keys = [(turn, at) for turn in range(len(DRAINS)) for at in range(LAYERS)] + [GIVEN_UP, AFTER, ABANDONED]
    return {key: layer.routing_maps(1000 * (seed + 1) + number, ranks, EXPERTS) for number, key in enumerate(keys)}


def _problems(rank: int, dispatchers: list[Any], maps: dict[Any, Any], wanted: dict[Any, RankPlan]) -> Iterator[str]:
    kept: list[tuple[dict[str, Any], RankPlan]] = []
    for turn, drain in enumerate(DRAINS):
        _keep_busy()
        flying = [layer.start(dispatcher, maps[turn, at]) for at, dispatcher in enumerate(dispatchers)]
        # What is handed out before the wait is used on the current stream, as experts would.
        early = [None if one is None else one.clone() for one in flying]
        _drain(drain)
        for at, (dispatcher, counts) in enumerate(zip(dispatchers, flying, strict=True)):
            plan = wanted[turn, at]
            yield from _finish(dispatcher, counts, plan, kept)
            if early[at] is not None and early[at].tolist() != plan.tokens_per_local_expert:
                yield "counts that were handed out before the wait were not there yet"
    yield from _given_up_on_one_rank(rank, dispatchers[0], maps, wanted, kept)
    yield from _abandoned(dispatchers[0], maps[ABANDONED])
    for found, plan in kept:  # autograd and the second sort in combine read them this late
        yield layer.difference({name: layer.plain(value) for name, value in found.items()}, plan)


def _finish(dispatcher: Any, counts: Any, plan: RankPlan, kept: list[Any]) -> Iterator[str]:
    """Pass Megatron's points; at each, read what is read right behind it."""
    for point, names in READ_BEHIND.items():
        counts = dispatcher._maybe_dtoh_and_synchronize(point, counts)
        found = {name: getattr(dispatcher, name) for name in names}
        yield layer.difference({name: layer.plain(value) for name, value in found.items()}, plan)
        kept.append((found, plan))
    found = {"chunk_table": dispatcher.num_global_tokens_per_local_expert, "tokens_per_local_expert": counts}
    yield layer.difference({name: layer.plain(value) for name, value in found.items()}, plan)
    kept.append((found, plan))


READ_BEHIND = {
    "before_permutation_1": (),
    "before_ep_alltoall": ("input_splits", "output_splits"),
    "before_permutation_2": ("output_splits_tp",),
    "before_finish": (),
}


def _given_up_on_one_rank(
    rank: int, dispatcher: Any, maps: dict[Any, Any], wanted: dict[Any, RankPlan], kept: list[Any]
) -> Iterator[str]:
    """An exception on rank 0 only: its peers still read the counts of the call that it has given up."""
    counts = layer.start(dispatcher, maps[GIVEN_UP])
    if rank > 0:
        yield from _finish(dispatcher, counts, wanted[GIVEN_UP], kept)
    counts = layer.start(dispatcher, maps[AFTER])
    torch.npu.current_stream().synchronize()
    yield from _finish(dispatcher, counts, wanted[AFTER], kept)
    torch.npu.synchronize()


def _abandoned(dispatcher: Any, routing_map: Any) -> Iterator[str]:
    """Padding is switched on between a call and its wait; memory that then comes free is given to others."""
    layer.start(dispatcher, routing_map)
    dispatcher.drop_and_pad, dispatcher.moe_expert_capacity_factor = True, layer.FACTOR
    dispatcher.num_global_tokens_per_local_expert = None
    layer.start(dispatcher, routing_map)
    dispatcher.drop_and_pad, dispatcher.moe_expert_capacity_factor = False, None
    bystanders = [torch.full((EXPERTS,), at, dtype=torch.int64, device="npu") for at in range(BYSTANDERS)]
    torch.npu.current_stream().synchronize()
    torch.npu.synchronize()
    for at, one in enumerate(bystanders):
        if one.tolist() != [at] * EXPERTS:
            yield "memory of a call that was given up was written to after it had been given to others"


def _keep_busy() -> None:
    busy = torch.zeros(1).npu()
    for _ in range(BUSY_KERNELS):
        busy += 1


def _drain(what: str) -> None:
    if what == "device":
        torch.npu.synchronize()
    elif what == "current stream":
        torch.npu.current_stream().synchronize()
