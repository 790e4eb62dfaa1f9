"""The plugin's splits under bare collectives: rows that say where they come from, counted off by hand.

Preprocess is called on a stand-in for Megatron's dispatcher; torch's own all_to_all_single moves the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mindspeed_moe.bench.points import POINTS
from mindspeed_moe.dispatch_table import STOCK
from mindspeed_moe.errors import MindSpeedMoEError
from mindspeed_moe.preprocess.attributes import BEFORE_EP_ALLTOALL, BEFORE_PERMUTATION_2
from mindspeed_moe.selftest.bench import Bench, Problem
from mindspeed_moe.selftest.differences import difference
from mindspeed_moe.selftest.dispatchers import SPLITS, ep_group, pass_point, read, tp_group
from mindspeed_moe.selftest.steps import PAD, SEQ, Step
from mindspeed_moe.selftest.traffic import capacity_of

# What Megatron reads right behind each of its points; everything else behind the last one.
READ_BEHIND = {BEFORE_EP_ALLTOALL: ("input_splits", "output_splits"), BEFORE_PERMUTATION_2: ("output_splits_tp",)}
_COLUMNS = 3  # of a tag: index in the group, token, expert


def run_bare(bench: Bench, step: Step) -> None:
    """One call of preprocess, then the rows themselves. Problems go to `bench.agree`."""
    problem = bench.problem(step)
    dispatcher = make(bench, step)
    bench.place.at = "preprocess"
    counts = dispatcher.preprocess(problem.routing_map())
    problems, handed_out = finish(bench, step, dispatcher, counts, problem)
    # Collectives with wrong splits could hang: nobody sends before all splits are known to be right.
    if bench.agree(problems):
        bench.place.at = "sending tags by the splits"
        bench.agree(list(send_tags(bench, step, problem, handed_out)))


def run_refused(bench: Bench, step: Step) -> None:
    """A combination that the package documents to refuse: every rank must be refused, with that message."""
    dispatcher = make(bench, step)
    bench.place.at = "preprocess, which is to refuse"
    try:
        dispatcher.preprocess(bench.problem(step).routing_map())
    except MindSpeedMoEError as error:
        refused = step.refusal in str(error)
        bench.agree([] if refused else [f"the refusal says {str(error)!r}, expected {step.refusal!r} in it"])
        return
    bench.agree([f"preprocess ran; expected it to be refused with {step.refusal!r}"])


def make(bench: Bench, step: Step) -> Any:
    """Return a stand-in; for stock, which relies on its constructor's work, Megatron's dispatcher itself."""
    build = bench.maker.dispatcher if step.contestant.implementation == STOCK else bench.maker.stand_in
    return build(step.layout, step.dispatcher, step.mode)


def finish(
    bench: Bench, step: Step, dispatcher: Any, counts: Any, problem: Problem
) -> tuple[list[str], dict[str, Any]]:
    """Pass Megatron's points and read behind each what Megatron reads there.

    Returns problems, and what was handed out by name.
    """
    problems: list[str] = []
    for point in POINTS:
        counts = pass_point(dispatcher, point, counts)
        early = {
            name: getattr(dispatcher, name) for name in READ_BEHIND.get(point, ()) if name in SPLITS[step.dispatcher]
        }
        problems += [f"behind {point}: {one}" for one in problem.splits(early)]
    found = read(dispatcher, counts, bench.maker.table(step.dispatcher), step)
    return problems or problem.splits(found), found


def send_tags(bench: Bench, step: Step, problem: Problem, found: dict[str, Any]) -> Iterator[str]:
    """Send a tag for every row as its token would go; yields what is wrong with those that arrive."""
    layout, seq = step.layout, step.dispatcher == SEQ
    tp = 1 if seq else layout.tp
    mine = _tags(bench, step, problem)
    rows = mine.to(bench.device)
    sent, received, over_tp = found["input_splits"], found["output_splits"], found.get("output_splits_tp")
    if layout.ep > 1:
        rows = _exchange(rows, _list(sent), _list(received), ep_group())
    if tp > 1:
        # Every rank gives all it has to each of its TP peers.
        parts = _list(over_tp) if over_tp is not None else [len(rows)] * tp
        rows = _exchange(rows.repeat(tp, 1), [len(rows)] * tp, parts, tp_group())
    arrived = rows.cpu().numpy()
    if layout.local_experts > 1:
        table = np.asarray(found["chunk_table"]).reshape(tp * layout.ep, layout.local_experts)
        arrived = _sorted_by_expert(arrived, table)
    first = bench.index // layout.tp * layout.local_experts
    numbers = problem.expected.splits.tokens_per_local_expert
    experts = [first + at for at, number in enumerate(numbers) for _ in range(number)]
    wanted = [(*tag, expert) for tag, expert in zip(problem.expected.tags, experts, strict=True)]
    told = difference("tags (index, token, expert) of the rows that arrive", arrived.tolist(), wanted)
    if told:
        yield told


def _tags(bench: Bench, step: Step, problem: Problem) -> torch.Tensor:
    """Return [rows, _COLUMNS] int64 in the order of the first permutation: by expert, then by token."""
    pairs = np.argwhere(problem.expected.routing_map.T)  # expert, token
    held = max(len(problem.mine.hidden), 1)
    first = bench.index - bench.index % step.layout.tp
    seq = step.dispatcher == SEQ
    tags = [
        (first + token // held, token % held, expert) if seq else (bench.index, token, expert)
        for expert, token in pairs.tolist()
    ]
    if step.mode == PAD:
        assert len(tags) == capacity_of(len(problem.mine.routing_map), step.layout) * step.layout.experts
    return torch.tensor(tags, dtype=torch.int64).view(-1, _COLUMNS)


def _exchange(rows: torch.Tensor, sent: list[int] | None, received: list[int] | None, group: Any) -> torch.Tensor:
    length = len(rows) if received is None else sum(received)
    output = torch.empty(length, rows.shape[1], dtype=rows.dtype, device=rows.device)
    dist.all_to_all_single(output, rows, received, sent, group=group)
    return output


def _sorted_by_expert(rows: Any, table: Any) -> Any:
    """Chunks arrive by sender, and by expert within; put those of one expert beside each other."""
    ends = np.cumsum(table.ravel())
    chunks = np.split(rows, ends[:-1])
    local = table.shape[1]
    return np.concatenate([chunks[sender * local + at] for at in range(local) for sender in range(len(table))])


def _list(splits: Any) -> list[int] | None:
    return None if splits is None else [int(one) for one in splits]
