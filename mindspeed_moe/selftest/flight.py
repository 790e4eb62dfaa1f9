"""The same under load: many calls in flight on a busy device, late ranks, and everything compared again at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from mindspeed_moe.selftest.bare import finish, make, send_tags
from mindspeed_moe.selftest.bench import Bench, Problem
from mindspeed_moe.selftest.dispatchers import has_hook
from mindspeed_moe.selftest.layer import Pass, backward, checked_splits, problems_of, start
from mindspeed_moe.selftest.pinned import Copies
from mindspeed_moe.selftest.pressure import Pressure
from mindspeed_moe.selftest.steps import DROPLESS, PAD, Step
from mindspeed_moe.selftest.traffic import FACTOR

LAYERS = 2  # dispatchers that are in flight together
MICRO_BATCHES = 3
_WARM_UP = 2  # micro-batches whose forward comes before the first backward, as in a pipeline's schedule
_BYSTANDERS = 64  # tensors that are given memory which a call gave up
_GIVEN_UP, _AFTER, _ABANDONED = 90, 91, 92  # numbers of problems

# How the host waits between starting calls and finishing them.
_DRAINS: dict[str, Callable[[Any], object]] = {
    "the current stream was waited for": lambda streams: streams.current_stream().synchronize(),
    "nothing was waited for": lambda streams: None,
    "the device was waited for": lambda streams: streams.synchronize(),
}


def fly_bare(bench: Bench, step: Step) -> None:
    """Several stand-ins in flight, three times; calls given up; then rows by the splits of the last turn."""
    pressure = _pressure(bench)
    dispatchers = [make(bench, step) for _ in range(LAYERS)]
    for number in (*range(len(_DRAINS) * LAYERS), _GIVEN_UP, _AFTER, _ABANDONED):
        bench.problem(step, number)
    kept: list[tuple[str, Problem, dict[str, Any]]] = []
    with Copies.watching(step.contestant.implementation, bench.streams is not None) as copies:
        problems = list(_turns(bench, step, dispatchers, pressure, kept))
        if step.mode != PAD:
            problems += _given_up_on_one_rank(bench, step, dispatchers[0], kept)
        if step.mode == DROPLESS:
            problems += _abandoned(bench, step, dispatchers[0])
    problems += copies.problems()
    for at, problem, found in kept:  # autograd and the second sort in combine read them this late
        problems += [f"{at}, read again at the end: {one}" for one in problem.splits(found)]
    if bench.agree(problems):
        bench.place.at = "sending tags by the splits"
        told = [one for _, problem, found in kept[:LAYERS] for one in send_tags(bench, step, problem, found)]
        bench.agree(told)


def _turns(
    bench: Bench,
    step: Step,
    dispatchers: list[Any],
    pressure: Pressure,
    kept: list[tuple[str, Problem, dict[str, Any]]],
) -> Iterator[str]:
    for turn, (drained, drain) in enumerate(_DRAINS.items()):
        pressure.queue()
        flying = []
        for layer, dispatcher in enumerate(dispatchers):
            problem = bench.problem(step, turn * LAYERS + layer)
            bench.place.at = f"layer {layer}, turn {turn}, start"
            pressure.late()
            counts = dispatcher.preprocess(problem.routing_map())
            flying.append((dispatcher, problem, counts))
        # What is handed out before the wait is used on the current stream, as experts would. Releases without a hook
        # hand out everything at once, and read a split, which waits, before the experts are run.
        early = [counts.clone() if _on_device(counts) and has_hook(one) else None for one, _, counts in flying]
        if bench.streams is not None:
            drain(bench.streams)
        pressure.late()
        for layer, (dispatcher, problem, counts) in enumerate(flying):
            bench.place.at = at = f"layer {layer}, turn {turn}, finish when {drained}"
            problems, found = finish(bench, step, dispatcher, counts, problem)
            kept.append((at, problem, found))
            yield from (f"{at}: {one}" for one in problems)
            if early[layer] is not None:
                told = problem.splits({"tokens_per_local_expert": early[layer]})
                yield from (f"{at}: handed out before the wait: {one}" for one in told)


def _given_up_on_one_rank(
    bench: Bench, step: Step, dispatcher: Any, kept: list[tuple[str, Problem, dict[str, Any]]]
) -> list[str]:
    """An exception on one rank only: its peers still read the counts of the call that it has given up."""
    told = []
    for number, given_up in ((_GIVEN_UP, bench.index == 0), (_AFTER, False)):
        bench.place.at = at = "a call given up on one rank" if number == _GIVEN_UP else "the call after one given up"
        problem = bench.problem(step, number)
        counts = dispatcher.preprocess(problem.routing_map())
        if number == _AFTER and bench.streams is not None:
            bench.streams.current_stream().synchronize()
        if not given_up:
            problems, found = finish(bench, step, dispatcher, counts, problem)
            kept.append((at, problem, found))
            told += [f"{at}: {one}" for one in problems]
    return told


def _abandoned(bench: Bench, step: Step, dispatcher: Any) -> list[str]:
    """Padding is switched on between a call and its wait; memory that then comes free is given to others."""
    bench.place.at = "padding switched on between a call and its wait"
    bench.synchronize()
    problem, config = bench.problem(step, _ABANDONED), dispatcher.config
    dispatcher.preprocess(problem.routing_map())
    dispatcher.drop_and_pad = True
    dispatcher.moe_expert_capacity_factor = config.moe_expert_capacity_factor = FACTOR
    setattr(dispatcher, bench.maker.table(step.dispatcher), None)
    dispatcher.preprocess(problem.routing_map())
    dispatcher.drop_and_pad = False
    dispatcher.moe_expert_capacity_factor = config.moe_expert_capacity_factor = None
    size = step.layout.local_experts
    bystanders = [torch.full((size,), at, dtype=torch.int64, device=bench.device) for at in range(_BYSTANDERS)]
    if bench.streams is not None:
        bench.streams.current_stream().synchronize()  # they are written first, and what is still under way after them
    bench.synchronize()
    found = torch.stack(bystanders).cpu().tolist()
    if found == [[at] * size for at in range(_BYSTANDERS)]:
        return []
    return ["memory of a call that was given up was written to after it had been given to others"]


def fly_layers(bench: Bench, step: Step) -> None:
    """Micro-batches through several layers in a pipeline's order: warm-up, then one forward, one backward."""
    pressure = _pressure(bench)
    for number in range(MICRO_BATCHES * LAYERS):
        bench.problem(step, number)
    layers = [bench.maker.dispatcher(step.layout, step.dispatcher, step.mode) for _ in range(LAYERS)]
    flying: dict[int, list[Pass]] = {}
    done: list[tuple[str, Pass]] = []

    def backward_of(micro_batch: int) -> None:
        for layer, one in reversed(list(enumerate(flying.pop(micro_batch)))):
            at = f"layer {layer}, micro-batch {micro_batch}"
            pressure.late()
            backward(bench, one, f"{at}, backward")
            done.append((at, one))

    with checked_splits(bench):
        for micro_batch in range(MICRO_BATCHES):
            pressure.queue()
            begun = []
            for layer, dispatcher in enumerate(layers):
                pressure.late()
                problem = bench.problem(step, micro_batch * LAYERS + layer)
                at = f"layer {layer}, micro-batch {micro_batch}, forward"
                begun.append(start(bench, step, dispatcher, problem, at))
            flying[micro_batch] = [finish() for finish in begun]
            if micro_batch >= _WARM_UP:
                backward_of(micro_batch - _WARM_UP)
        for micro_batch in sorted(flying):
            backward_of(micro_batch)
    bench.place.at = "comparing"
    bench.agree([f"{at}: {told}" for at, one in done for told in problems_of(one)])


def _pressure(bench: Bench) -> Pressure:
    assert bench.pressure is not None, "steps under load run under pressure"
    return bench.pressure


def _on_device(counts: Any) -> bool:
    return isinstance(counts, torch.Tensor) and counts.device.type != "cpu"
