"""Jobs under `verify`: layers whose results must be stock's, and mistakes that must end them."""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

import mindspeed_moe.verify
from distributed.bad_input import Outcome, outcome_of
from distributed.layers import Layer, build_layer, enabled, routing_map_of, run_layer, settings
from distributed.modes import in_stages, switched
from mindspeed_moe.errors import VerificationError
from mindspeed_moe.verify.alarm import _PERIOD_S
from npu.layer import pass_points

RUNS: dict[str, Callable[[Layer, Mapping[str, Any]], Any]] = {
    "layer": run_layer,
    "stages": in_stages,
    "padding": switched,
}
IMPLEMENTATION = "packed, {}, byte_lanes"


def same_as_stock(layer: Layer, run: str, verify: Any, exchanges: tuple[str, ...]) -> dict[str, Any]:
    """Run a layer under stock, and under packed with verification; returns this rank's findings, by exchange.

    differences: tensors that are not bit-identical. random: whether all random states are. compared: how often each
    value was compared. calls: of preprocess. told: what a launch script hears of calls that were compared. extra:
    collectives that stock's kind of run has not, in order.
    """
    plain, _ = _run(layer, run, settings("stock", layer.dispatcher))
    found = {}
    for exchange in exchanges:
        config = settings(IMPLEMENTATION.format(exchange), layer.dispatcher)
        unverified, expected_order = _run(layer, run, config)
        with counted() as compared, calls() as made:
            verified, order = _run(layer, run, {**config, "verify": verify})
        told = mindspeed_moe.verify.compared()
        assert told is not None
        assert unverified["tensors"].keys() == verified["tensors"].keys() == plain["tensors"].keys()
        found[exchange] = {
            "differences": [
                name for name, one in plain["tensors"].items() if not torch.equal(one, verified["tensors"][name])
            ],
            "random": plain["random"] == verified["random"],
            "compared": dict(compared),
            "calls": made[0],
            "told": asdict(told),
            "order": order,
            "without": expected_order,
        }
    return found


def _run(layer: Layer, run: str, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    with collectives() as order:
        found = RUNS[run](layer, config)
    return {"tensors": found.get("tensors", found), "random": random_states()}, order


def random_states() -> dict[str, list[int]]:
    """Every random state that training may depend on."""
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    states = {name: one.tolist() for name, one in get_cuda_rng_tracker().get_states().items()}
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [int(one) for one in np.random.get_state()[1]],  # what training scripts seed
        "python": list(random.getstate()[1]),
        **states,
    }


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """How often each value was compared."""
    from mindspeed_moe.verify.record import Record

    names: Counter[str] = Counter()
    judge = Record.judge

    def count(self: Record, name: str, found: Any, wanted: Any) -> Any:
        names[name] += 1
        return judge(self, name, found, wanted)

    with mock.patch.object(Record, "judge", count):
        yield names


@contextlib.contextmanager
def calls() -> Iterator[list[int]]:
    """How many calls of preprocess there were."""
    from mindspeed_moe.verify.verified import Verified

    made = [0]
    preprocess = Verified.preprocess

    def count(self: Verified, dispatcher: Any, routing_map: torch.Tensor) -> Any:
        made[0] += 1
        return preprocess(self, dispatcher, routing_map)

    with mock.patch.object(Verified, "preprocess", count):
        yield made


@contextlib.contextmanager
def collectives() -> Iterator[list[str]]:
    """Every collective of this rank, in order, as torch's dispatcher is asked for it."""
    order: list[str] = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        yield order
    events = [one for one in profile.events() if one.name.startswith("c10d::")]
    order += [one.name for one in sorted(events, key=lambda one: one.time_range.start)]


# ------------------------------------------------------------------------------------------------------ mistakes


def wrong_peer() -> Any:
    """What a rank received is taken for its neighbour's."""
    from mindspeed_moe.preprocess.exchange import AllToAll

    run = AllToAll.run

    def shifted(self: AllToAll, views: Any, group: Any) -> None:
        run(self, views, group)
        views.written.copy_(views.written.roll(self._shape[2]))

    return mock.patch.object(AllToAll, "run", shifted)


def reused_buffer() -> Any:
    """Splits that backward still needs are written over by the next micro-batch."""
    from mindspeed_moe.preprocess import packed

    split_plan, kept = packed.split_plan, {}

    def plan(layout: Any, rows: Any, known: int | None) -> Any:
        made = split_plan(layout, rows, known)
        mine = kept.setdefault(layout, made.input_splits)
        mine[:] = made.input_splits
        return made._replace(input_splits=mine)

    return mock.patch.object(packed, "split_plan", plan)


def wrong_number_of_rows() -> Any:
    from mindspeed_moe.preprocess.attributes import Attributes

    known = Attributes.known_out_tokens

    def one_more(self: Attributes, dispatcher: Any, routing_map: torch.Tensor) -> int | None:
        rows = known(self, dispatcher, routing_map)
        return rows if rows is None or "Shadow" in type(dispatcher).__name__ else rows + 1

    return mock.patch.object(Attributes, "known_out_tokens", one_more)


def counts_too_large() -> Any:
    """What a rank makes of counts that are not there yet may be anything; the program itself gives up then."""
    from mindspeed_moe.preprocess.exchange import AllToAll

    reader = AllToAll.reader

    def huge(self: AllToAll, words: Any) -> Any:
        read = reader(self, words)
        return lambda: read() + 2**30

    return mock.patch.object(AllToAll, "reader", huge)


def mistakes() -> dict[str, Callable[[], Any]]:
    from npu import mutations

    own = (wrong_peer, reused_buffer, wrong_number_of_rows, counts_too_large)
    return {**{one.__name__: one for one in own}, **mutations.IN_A_TP_EP_GROUP}


STEPS, MICRO_BATCHES, LAYERS = 2, 2, 2


def make_a_mistake(layer: Layer, mistake: str, dumps: str, verify: Any) -> Outcome:
    """What dispatchers do in some steps, with a mistake on every rank; a rank that sees none goes on as they all do."""
    config = settings(IMPLEMENTATION.format("all_to_all"), layer.dispatcher)
    with mistakes()[mistake](), enabled({**config, "verify": verify, "dumps": dumps}):
        return outcome_of(lambda: _dispatch(layer))


def go_on_after_it(layer: Layer, dumps: str) -> tuple[list[Outcome], int]:
    """Somebody catches the error, and calls the layer again; returns what came of it, and this rank's dumps."""
    config = settings(IMPLEMENTATION.format("all_to_all"), layer.dispatcher)
    with enabled({**config, "verify": "first", "dumps": dumps}):
        dispatcher = build_layer(layer).token_dispatcher
        routing_map = routing_map_of(layer)
        with wrong_number_of_rows():
            first = outcome_of(lambda: pass_points(dispatcher, dispatcher.preprocess(routing_map)))
        again = [outcome_of(lambda: dispatcher.preprocess(routing_map)) for _ in range(3)]
    return [first, *again], len(list(Path(dumps).glob(f"*-rank{dist.get_rank():05d}.npz")))


def _dispatch(layer: Layer) -> None:
    modules = [build_layer(layer) for _ in range(LAYERS)]
    for number, module in enumerate(modules, 1):
        module.set_layer_number(number)
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    generator = torch.Generator().manual_seed(dist.get_rank())
    kept = []
    for _ in range(STEPS):
        for _ in range(MICRO_BATCHES):
            for module in modules:
                dispatcher = module.token_dispatcher
                chosen = torch.rand(24, layer.experts, generator=generator).topk(layer.topk, dim=1).indices
                routing_map = torch.zeros(24, layer.experts, dtype=torch.bool).scatter_(1, chosen, True)
                error = None
                try:
                    counts = dispatcher.preprocess(routing_map)
                    pass_points(dispatcher, counts)
                except VerificationError as raised:
                    error = raised
                kept.append(dict(vars(dispatcher)))  # as autograd keeps splits until backward
                if any_rank(error is not None):
                    dispatcher.preprocess(routing_map)  # on its way to its next call a rank hears of it
        optimizer.step()


_turns = itertools.count()


def any_rank(refused: bool) -> bool:
    """Return on every rank whether one of them has refused; and on ranks that have not, once they have been told."""
    store, turn = dist.distributed_c10d._get_default_store(), next(_turns)
    store.set(f"verified/{turn}/{dist.get_rank()}", str(int(refused)))
    found = any(store.get(f"verified/{turn}/{rank}") == b"1" for rank in range(dist.get_world_size()))
    if found and not refused:
        time.sleep(2 * _PERIOD_S)
    return found
