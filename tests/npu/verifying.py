"""The job that runs seeded mistakes under `verify: always`, in the order of a training step: layer after layer."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import mindspeed_moe
from mindspeed_moe.errors import VerificationError
from mindspeed_moe.verify.verification import FIRST_CALLS, Verification
from npu import layer, mutations
from npu.mutating import BUSY_KERNELS, DELAY_US, EXPERTS, HOLD_US

LAYERS = 2
STEPS = 3


def verify(rank: int, where: str, names: dict[str, list[str]], folder: str) -> dict[str, dict[str, Any]]:
    """For each stream and mutation ("" is the code as it is): on which step a rank refused, and what this one said."""
    from tests.ascend_sim.schedule import set_schedule

    # A rank that refuses ends; here it goes on to the end of the step, because its collectives are waited for.
    Verification.raise_alarm = lambda self: self._alarm.listen()  # type: ignore[method-assign]
    ep, tp, known = mutations.EP_TP[where]
    layer.groups(ep, tp)
    found: dict[str, dict[str, Any]] = {}
    for stream, of_stream in names.items():
        found[stream] = {}
        for name in of_stream:
            # Which memory the next call gets must not depend on when garbage happens to be collected.
            gc.collect()
            gc.disable()
            torch.npu.empty_cache()
            set_schedule(0, delay_us=DELAY_US, hold_us=HOLD_US)
            with known[stream][name]() if name else nullcontext():
                preprocess = {"stream": stream, "exchange": "all_to_all", "tokens_per_expert": "device"}
                dumps = Path(folder) / f"{stream}-{name}"
                mindspeed_moe.enable(
                    {"device": "npu", "verify": "always", "dumps": str(dumps), "preprocess": preprocess}
                )
                found[stream][name] = _train(ep, tp, rank)
                torch.npu.synchronize()
                mindspeed_moe.disable()
            gc.enable()
    set_schedule(0, delay_us=0, hold_us=0)
    return found


def _train(ep: int, tp: int, rank: int) -> dict[str, Any]:
    """Steps of several layers; ends on all ranks with the first step in which one of them refuses.

    missed: what was wrong in an earlier step; read at its end, so that nobody waits for the device before.
    """
    ranks = ep * tp
    dispatchers = [layer.make_dispatcher(EXPERTS) for _ in range(LAYERS)]
    # Made before: bringing a map to the device waits for it, and would hide what is read too early.
    given = [[layer.routing_maps(100 * step + at, ranks, EXPERTS) for at in range(LAYERS)] for step in range(STEPS)]
    maps = [[_on_npu(one[rank]) for one in of_step] for of_step in given]
    more = [[layer.routing_maps(1000 + 10 * step + at, ranks, EXPERTS) for at in range(2)] for step in range(STEPS)]
    given_up = [[(one, _on_npu(one[rank])) for one in of_step] for of_step in more]
    missed = overlooked = ""
    kept = []  # as autograd keeps splits until backward
    for step in range(STEPS):
        busy = torch.zeros(1).npu()
        for _ in range(BUSY_KERNELS):
            busy += 1
        message, started = "", []
        for at, dispatcher in enumerate(dispatchers):
            try:
                started.append((at, dispatcher, dispatcher.preprocess(maps[step][at])))
            except VerificationError as error:
                message = message or str(error)
        ended = []
        for at, dispatcher, counts in started:
            try:
                ended.append((at, dispatcher, layer.pass_points(dispatcher, counts)))
                kept.append(dict(vars(dispatcher)))
            except VerificationError as error:
                message = message or str(error)
        refused = _any_rank(step, rank, ranks, bool(message))
        if not refused:
            for at, dispatcher, counts in ended:
                wanted = layer.expected(given[step][at], ep, tp, EXPERTS, rank)
                overlooked = overlooked or layer.difference(layer.read(dispatcher, counts), wanted)
            missed = missed or overlooked
            message, overlooked = _give_up_on_one_rank(rank, ep, tp, dispatchers[0], given_up[step], kept)
            refused = _any_rank(step, rank, ranks, bool(message))
        if refused:
            return {"step": step, "message": message, "missed": missed}
        missed = missed or overlooked
    return {"step": None, "message": "", "missed": missed}


def _give_up_on_one_rank(
    rank: int, ep: int, tp: int, dispatcher: Any, maps: list[tuple[Any, torch.Tensor]], kept: list[Any]
) -> tuple[str, str]:
    """An exception on rank 0 only, which goes on with the next call: its peers still read the counts of that one.

    Returns what verification said, or "", and what it overlooked. A rank that refuses takes part in the next call too.
    """
    message = overlooked = ""
    for number, (of_all, routing_map) in enumerate(maps):
        try:
            counts = dispatcher.preprocess(routing_map)
            if number == 0 and rank == 0:
                continue
            if number == 1:
                torch.npu.current_stream().synchronize()
            counts = layer.pass_points(dispatcher, counts)
            kept.append(dict(vars(dispatcher)))
            if number == 1:
                wanted = layer.expected(of_all, ep, tp, EXPERTS, rank)
                overlooked = layer.difference(layer.read(dispatcher, counts), wanted)
        except VerificationError as error:
            message = message or str(error)
    return message, overlooked


def _on_npu(routing_map: list[list[bool]]) -> torch.Tensor:
    return torch.tensor(routing_map, dtype=torch.bool).npu()


_turns = 0


def _any_rank(step: int, rank: int, ranks: int, refused: bool) -> bool:
    """Return on every rank whether one of them has refused; through the store, for the device may be at fault."""
    global _turns
    _turns += 1
    store = dist.distributed_c10d._get_default_store()
    store.set(f"verify/{_turns}/{rank}", str(int(refused)))
    return any(store.get(f"verify/{_turns}/{other}") == b"1" for other in range(ranks))


def verify_cost(rank: int) -> dict[str, dict[str, Any]]:
    """What a call costs without and with verification, and once `first` is over: preprocess, and Megatron's points."""
    from tests.ascend_sim import ledger

    layer.groups(2, 1)
    routing_map = _on_npu(layer.routing_maps(0, 2, EXPERTS)[rank])
    found = {}
    for verify in ("off", "always", "first"):
        preprocess = {"stream": "current", "exchange": "all_to_all", "tokens_per_expert": "device"}
        mindspeed_moe.enable({"device": "npu", "verify": verify, "preprocess": preprocess})
        dispatcher = layer.make_dispatcher(EXPERTS)
        for _ in range(FIRST_CALLS):  # then `first` is over, and a record that `always` has kept comes free
            layer.pass_points(dispatcher, dispatcher.preprocess(routing_map))
        torch.npu.synchronize()
        gc.collect()
        with ledger.record() as started:
            counts = dispatcher.preprocess(routing_map)
        with ledger.record() as ended:
            layer.pass_points(dispatcher, counts)
        torch.npu.synchronize()
        found[verify] = {"preprocess": _counted(started), "points": _counted(ended)}
        mindspeed_moe.disable()
    return found


def _counted(counts: Any) -> dict[str, Any]:
    return {
        "kernels": counts.kernels,
        "collectives": [one.operation for one in counts.collectives for _ in range(one.count)],
        "asynchronous copies to pinned memory": counts.copy_count("device_to_host", asynchronous=True, pinned=True),
        "all copies": counts.copy_count(),
        "records": counts.event_records,
        "waits for events": counts.event_synchronizations,
        "waits for streams": counts.stream_synchronizations + counts.device_synchronizations,
        "waits between streams": counts.event_waits,
    }


JOBS = {"verify": verify, "verify_cost": verify_cost}
