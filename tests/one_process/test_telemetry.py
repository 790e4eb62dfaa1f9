"""What telemetry records of random groups, against sums in plain Python over the routing maps of all ranks."""

from __future__ import annotations

import gc
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from mindspeed_moe import lifetime
from mindspeed_moe.config import load_config
from mindspeed_moe.contract import GENERATIONS
from mindspeed_moe.dispatch_table import lookup
from mindspeed_moe.preprocess.experts import ExpertsOf
from mindspeed_moe.preprocess.program import Program
from mindspeed_moe.preprocess.steps import Steps
from mindspeed_moe.programs import Watched, build
from mindspeed_moe.telemetry import collector as collector_module
from mindspeed_moe.telemetry.collector import Collector
from mindspeed_moe.telemetry.load import Load, Sums, Taken, loads
from one_process.cases import COUNTED, Case, cases
from one_process.group import Layout, preprocess_group
from oracle.plan import DROP, DROPLESS, PAD, ROUTER_PADDING

GENERATION = GENERATIONS[-1]
EXAMPLES = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
ROW = 2 * 16  # bytes of a row: hidden size 16 in bfloat16


class Kept:
    """Stands for the outlet: keeps what is put."""

    def __init__(self) -> None:
        self.loads: list[Load] = []
        self.opened = False

    def open(self) -> None:
        self.opened = True

    def put(self, taken: list[Taken]) -> None:
        self.loads += loads(taken)

    def close(self) -> None:
        """Everything is there."""


def observed(interval: int = 1) -> tuple[Program, Steps, Kept]:
    kept, steps = Kept(), Steps()
    collector = Collector(steps, kept, interval)  # type: ignore[arg-type]
    decision = lookup("cpu", "alltoall", GENERATION.name, load_config({"dispatchers": {"alltoall": "packed"}}))
    program = build(decision, GENERATION, {}, experts=ExpertsOf(), watched=Watched(collector=collector))
    assert program is not None
    return program, steps, kept


def step_on(steps: Steps) -> None:
    """An optimizer has stepped."""
    steps._stepped(None, (), {})


def prepared(case: Case) -> list[Any]:
    dispatchers = case.dispatchers()
    for one in dispatchers:
        one.config.hidden_size, one.config.params_dtype = 16, torch.bfloat16
    return dispatchers


def call(program: Program, dispatchers: list[Any], maps: list[torch.Tensor]) -> None:
    """One micro-batch. A group's first pass ends in its collective, before anything is published."""
    if len(dispatchers) > 1 and not dispatchers[0].drop_and_pad:
        preprocess_group(program.preprocess, dispatchers, maps)
        return
    for dispatcher, routing_map in zip(dispatchers, maps, strict=True):  # there is no collective
        program.preprocess(dispatcher, routing_map)


def lines(case: Case, calls: int = 1) -> list[dict[str, Any]]:
    """One training step of `calls` micro-batches on every rank; returns the records in rank order."""
    program, steps, kept = observed()
    dispatchers, maps = prepared(case), case.tensors()
    for _ in range(calls):
        call(program, dispatchers, maps)
    with mock.patch.object(collector_module.dist, "get_process_group_ranks", lambda group: range(group.size())):
        step_on(steps)
    return [one.line() for one in kept.loads]


def expected(case: Case, rank: int, calls: int) -> dict[str, Any]:
    """By counting in the maps: which pairs go to which rank's experts, and who owns them."""
    layout, local = case.layout, case.layout.local_experts
    ep_rank = rank // layout.tp
    own = range(ep_rank * local, (ep_rank + 1) * local)
    tokens = [calls * sum(row[expert] for one in case.maps for row in one) for expert in own]
    sent = [
        calls * sum(row[expert] for row in case.maps[rank] for expert in range(peer * local, (peer + 1) * local))
        for peer in range(layout.ep)
    ]
    pairs = calls * len(case.maps[rank]) * case.topk
    return {
        "tokens": tokens,
        "sent_bytes": [rows * ROW for rows in sent],
        "routed": sum(sent),
        "dropped": max(0, pairs - sum(sent)),
        "imbalance": max(tokens) / (sum(tokens) / local) if sum(tokens) else 1.0,
        "calls": calls,
        "padded": False,
        "step": 0,
        "kind": "load",
    }


@EXAMPLES
@given(cases(COUNTED))
def test_records_are_what_the_maps_say(case: Case):
    for calls in (1, 3):
        found = lines(case, calls)
        assert len(found) == case.layout.ranks
        for rank, line in enumerate(found):
            plain = {name: one.tolist() if hasattr(one, "tolist") else one for name, one in line.items()}
            del plain["layer"]
            wanted = expected(case, rank, calls)
            assert plain.pop("imbalance") == pytest.approx(wanted.pop("imbalance"), abs=1e-4)  # it is rounded
            assert plain == wanted


# Two ranks, four experts, top-2; rank 0 has two tokens, of whose four pairs one was dropped; rank 1 has one token.
DROPPED = Case(
    layout=Layout(2, 1, 4),
    topk=2,
    mode=DROP,
    factor=1.0,
    maps=(((True, True, False, False), (True, False, False, False)), ((False, False, True, True),)),
    transposed=False,
)


def test_an_example_by_hand():
    first, second = lines(DROPPED)
    assert first["tokens"].tolist() == [2, 1]  # experts 0 and 1
    assert second["tokens"].tolist() == [1, 1]  # experts 2 and 3
    assert first["sent_bytes"].tolist() == [3 * ROW, 0]
    assert second["sent_bytes"].tolist() == [0, 2 * ROW]
    assert (first["routed"], first["dropped"]) == (3, 1)
    assert (second["routed"], second["dropped"]) == (2, 0)
    assert first["imbalance"] == 1.3333  # 2 / 1.5
    assert second["imbalance"] == 1.0


def test_calls_without_gradients_are_not_counted():
    program, steps, kept = observed()
    dispatchers, maps = prepared(DROPPED), DROPPED.tensors()
    with torch.no_grad():  # evaluation, and the first pass of recomputation
        call(program, dispatchers, maps)
    step_on(steps)
    assert kept.loads == []


def test_an_interval_adds_steps_up():
    program, steps, kept = observed(interval=3)
    dispatchers, maps = prepared(DROPPED), DROPPED.tensors()
    with mock.patch.object(collector_module.dist, "get_process_group_ranks", lambda group: range(group.size())):
        for _ in range(7):
            call(program, dispatchers, maps)
            step_on(steps)
    assert [(one.step, one.calls, one.tokens.tolist()) for one in kept.loads[::2]] == [(2, 3, [6, 3]), (5, 3, [6, 3])]


@pytest.mark.megatron
def test_with_padding_rows_are_told_and_what_is_in_them_is_not():
    pytest.importorskip("megatron.core.transformer.moe.moe_utils")  # says what the capacity is
    maps = ((True, False), (False, True), (True, False), (True, False))
    case = Case(Layout(2, 1, 2), 1, PAD, 1.0, (maps, maps), False)
    for line in lines(case):
        # Four tokens on two experts with factor 1: a capacity of two, from each of two ranks.
        assert line["tokens"].tolist() == [4]
        assert line["sent_bytes"].tolist() == [2 * ROW, 2 * ROW]
        assert line["padded"] is True
        assert line["dropped"] is None


def test_many_calls_are_added_up_on_the_way(monkeypatch: pytest.MonkeyPatch):
    """A step without end, as under an optimizer that is not torch's, takes no more memory."""
    monkeypatch.setattr(Sums, "MOST", 3)
    first, second = lines(DROPPED, calls=10)
    assert (first["calls"], first["tokens"].tolist(), first["dropped"]) == (10, [20, 10], 10)
    assert second["sent_bytes"].tolist() == [0, 10 * 2 * ROW]


def test_nothing_that_fails_in_it_reaches_training(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mindspeed_moe.log._said", set())
    program, steps, kept = observed()
    dispatchers, maps = DROPPED.dispatchers(), DROPPED.tensors()  # their configuration has no hidden size
    call(program, dispatchers, maps)
    step_on(steps)
    assert kept.loads == []
    (record,) = caplog.records
    assert "telemetry: records are missing" in record.getMessage()
    assert "training goes on" in record.getMessage()


def test_what_is_left_of_an_interval_comes_with_the_end():
    program, steps, kept = observed(interval=100)
    dispatchers, maps = prepared(DROPPED), DROPPED.tensors()
    for _ in range(3):
        call(program, dispatchers, maps)
        step_on(steps)
    assert kept.loads == []
    assert kept.opened, "the end of the interpreter is too late to start a thread (3.12 on)"
    with mock.patch.object(collector_module.dist, "get_process_group_ranks", lambda group: range(group.size())):
        lifetime.end()
    assert [(one.step, one.calls) for one in kept.loads] == [(2, 3), (2, 3)]
    call(program, dispatchers, maps)  # by somebody who has patched over us
    step_on(steps)
    lifetime.end()
    assert len(kept.loads) == 2


def test_a_layer_keeps_its_number_in_new_groups():
    program, steps, kept = observed()
    (dispatcher,) = prepared(Case(Layout(1, 1, 2), 1, DROPLESS, None, (((True, False),),), False))
    routing_map = torch.tensor([[True, False]])
    for _ in range(2):
        program.preprocess(dispatcher, routing_map)
        step_on(steps)
        program.sites._sites.clear()  # as when its process group is replaced
    assert [(one.facts.layer, one.calls) for one in kept.loads] == [(0, 1), (0, 1)]


def test_a_layer_that_is_gone_leaves_its_number():
    program, steps, kept = observed()
    case = Case(Layout(1, 1, 2), 1, DROPLESS, None, (((True, False),),), False)

    class Layer:
        layer_number = 7

    layer = Layer()
    for _ in range(2):
        (dispatcher,) = prepared(case)
        program.sites.experts.note(dispatcher, object(), layer)
        program.preprocess(dispatcher, case.tensors()[0])
        step_on(steps)
        del dispatcher
        gc.collect()
    assert [one.facts.layer for one in kept.loads] == [7, 7]


def test_layers_have_numbers_of_their_own():
    program, steps, kept = observed()
    alone = Case(Layout(1, 1, 2), 1, DROPLESS, None, (((True, False),),), False)
    dispatchers = [prepared(alone)[0] for _ in range(3)]

    class Layer:
        layer_number = 7

    layers = [Layer(), Layer()]
    for dispatcher, layer in zip(dispatchers, layers, strict=False):
        program.sites.experts.note(dispatcher, object(), layer)
    for dispatcher in dispatchers:
        program.preprocess(dispatcher, alone.tensors()[0])
    step_on(steps)
    # Two layers of one number, as a second model has; and one whose number nobody has told, by its place.
    assert [one.facts.layer for one in kept.loads] == [7, 1007, 2]
    assert [one.facts.numbered for one in kept.loads] == [True, True, False]


def test_router_padding_drops_nothing():
    rows = ((True, True, True, False), (True, True, False, False))
    case = Case(Layout(1, 1, 4), 2, ROUTER_PADDING, None, (rows,), False)
    (line,) = lines(case)
    assert (line["routed"], line["dropped"]) == (5, 0)
