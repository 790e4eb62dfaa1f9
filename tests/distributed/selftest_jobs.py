"""Jobs that run selftest's own steps on gloo ranks, on code with a mistake seeded into it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from mindspeed_moe.contract import generation_of
from mindspeed_moe.preprocess import counts
from mindspeed_moe.preprocess.attributes import Attributes
from mindspeed_moe.preprocess.exchange import AllGather, AllToAll
from mindspeed_moe.preprocess.groups import Groups
from mindspeed_moe.selftest.dispatchers import Maker
from mindspeed_moe.selftest.launch import facts_of
from mindspeed_moe.selftest.place import Place
from mindspeed_moe.selftest.run import Runner
from mindspeed_moe.selftest.steps import plan_steps
from mindspeed_moe.selftest.verdicts import Verdicts
from npu.mutations import collective_on_the_wrong_group, send_order_swapped


def received_order_swapped() -> Any:
    reader_of = AllGather.reader

    def reader(self: AllGather, words: Any) -> Any:
        layout = self.layout
        swapped = words.copy()

        def read() -> Any:
            every = words.reshape(layout.ep_size, layout.tp_size, -1)
            swapped[:] = every.swapaxes(0, 1).ravel()
            return rows()

        rows = reader_of(self, swapped)
        return read

    return mock.patch.object(AllGather, "reader", reader)


def rows_of_a_buffer_handed_out() -> Any:
    """What is read into is used again by the next call, while others still keep it."""
    reader_of = AllToAll.reader

    def reader(self: AllToAll, words: Any) -> Any:
        fresh = reader_of(self, words)
        kept = fresh()

        def read() -> Any:
            kept[:] = fresh()
            return kept

        return read

    return mock.patch.object(AllToAll, "reader", reader)


def last_token_not_counted() -> Any:
    def count(routing_map: torch.Tensor, out: torch.Tensor | None = None, entries: int | None = None) -> torch.Tensor:
        return counts.count_by_sum(routing_map[:-1], out)

    return mock.patch.dict(counts.COUNTS, {"sum": count})


def dropped_tokens_taken_for_sent() -> Any:
    def known(self: Attributes, dispatcher: Any, routing_map: torch.Tensor) -> int:
        return int(routing_map.shape[0] * dispatcher.config.moe_router_topk)

    return mock.patch.object(Attributes, "known_out_tokens", known)


def _published(change: Callable[[Any], Any]) -> Any:
    publish = Attributes.publish

    def changed(self: Attributes, dispatcher: Any, site: Any, plan: Any, **options: Any) -> Any:
        return publish(self, dispatcher, site, change(plan), **options)

    return mock.patch.object(Attributes, "publish", changed)


def splits_exchanged() -> Any:
    return _published(lambda plan: plan._replace(input_splits=plan.output_splits, output_splits=plan.input_splits))


def splits_over_tp_reversed() -> Any:
    return _published(lambda plan: plan._replace(output_splits_tp=plan.output_splits_tp[::-1].copy()))


def chunk_table_in_group_order() -> Any:
    def change(plan: Any) -> Any:
        table = plan.chunk_table
        return plan._replace(chunk_table=table.reshape(2, 2, -1).swapaxes(0, 1).reshape(table.shape).copy())

    return _published(change)


def tokens_of_the_other_expert() -> Any:
    def change(plan: Any) -> Any:
        return plan._replace(tokens_per_local_expert=plan.tokens_per_local_expert[::-1].copy())

    return _published(change)


def refusal_forgotten() -> Any:
    return mock.patch.object(Groups, "choose", lambda self, full, ep, layout, *, overlapped: full)


def tokens_put_back_one_late() -> Any:
    """A mistake that is not in the splits: Megatron's own unpermute leaves tokens at the wrong places."""
    from megatron.core.transformer.moe import token_dispatcher

    unpermute = token_dispatcher.unpermute

    def late(*arguments: Any, **named: Any) -> torch.Tensor:
        return unpermute(*arguments, **named).roll(1, 0)

    return mock.patch.object(token_dispatcher, "unpermute", late)


_PACKED = "packed (counts sum, exchange all_to_all, exchange_group tp_ep"
_GATHERS = "packed (counts sum, exchange all_gather, exchange_group tp_ep"
_IN_2_2 = "EP 2, TP 2, L 2; alltoall; dropless; "

# mutation -> the steps that are run on it, and what must be told of them
MUTATIONS: dict[str, tuple[Callable[[], Any], tuple[str, ...], str]] = {
    one.__name__: (one, only, told)
    for one, only, told in (
        (send_order_swapped, (_IN_2_2 + _PACKED, "bare", "idle"), "output_splits"),
        (collective_on_the_wrong_group, (_IN_2_2 + _PACKED, "bare", "idle"), "output_splits_tp"),
        (received_order_swapped, (_IN_2_2 + _GATHERS, "bare", "idle"), "input_splits"),
        (rows_of_a_buffer_handed_out, ("EP 2, TP 1, L 2; alltoall; dropless; packed", "load"), "read again at the end"),
        (last_token_not_counted, ("EP 4, TP 1, L 1; alltoall; drop; " + _PACKED, "idle"), "input_splits"),
        (dropped_tokens_taken_for_sent, ("EP 2, TP 1, L 1; alltoall; drop; packed", "idle"), "num_out_tokens"),
        (splits_exchanged, ("EP 4, TP 1, L 2; alltoall; dropless; packed", "idle"), "input_splits"),
        (splits_over_tp_reversed, (_IN_2_2 + _PACKED, "idle"), "output_splits_tp"),
        (chunk_table_in_group_order, (_IN_2_2 + _PACKED, "idle"), "chunk_table"),
        (tokens_of_the_other_expert, (_IN_2_2 + _PACKED, "idle"), "tokens_per_local_expert"),
        (refusal_forgotten, (_IN_2_2, "exchange_group ep", "idle"), "expected it to be refused"),
        (tokens_put_back_one_late, (_IN_2_2 + "stock", "idle"), "output[0, 0]"),
    )
}


def run(only: tuple[str, ...], mutation: str = "") -> list[tuple[str, str, list[str]]]:
    """Return name, state and problems of every step whose name holds these words."""
    import megatron.core

    rank, ranks = dist.get_rank(), dist.get_world_size()
    generation = generation_of(megatron.core.__version__)
    facts = facts_of(generation, "cpu", ranks)
    steps, _ = plan_steps(facts, lambda name: all(part in name for part in only))
    assert steps, only
    store = dist.distributed_c10d._get_default_store()
    verdicts = Verdicts(store, rank, ranks, timedelta(seconds=60))
    verdicts._turn = 1_000_000 * store.add(f"runs of {rank}", 1)  # the store outlives a job
    maker = Maker(generation, "cpu")
    runner = Runner(maker, verdicts, Place(), lambda name: None, rank=rank, seed=0, simulated=False)
    with MUTATIONS[mutation][0]() if mutation else nullcontext():
        outcomes = list(runner.run(steps))
    return [(str(one.step), one.state, [str(problem) for problem in one.problems]) for one in outcomes]
