"""Every program of the cpu, on every rank of random groups, against the oracle."""

from __future__ import annotations

import random
from collections.abc import Collection
from functools import lru_cache
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mindspeed_moe.config import load_config
from mindspeed_moe.contract import GENERATIONS, Generation
from mindspeed_moe.dispatch_table import lookup, rows_of
from mindspeed_moe.preprocess import counts
from mindspeed_moe.preprocess.counts import COUNTS
from mindspeed_moe.preprocess.program import Program
from mindspeed_moe.programs import build
from one_process.cases import COUNTED, ROUTINGS, Case, as_tensor, cases, layouts, make_map
from one_process.checks import check
from one_process.group import Layout, preprocess_group
from oracle.plan import DROP, DROPLESS, PAD, ROUTER_PADDING

OLD, NEW = (one for one in GENERATIONS if one.name in ("hook_stream_wait", "hook_event_wait_graphs"))
POINTS = ("before_permutation_1", "before_ep_alltoall", "before_permutation_2", "before_finish")
EXAMPLES = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@lru_cache
def programs_of(generation: Generation) -> dict[str, Program]:
    """Every program that the table offers for the cpu, with every choice inside it."""
    found = {}
    for row in rows_of("cpu", "alltoall", generation.name):
        for count in row.counts:
            for exchange in row.exchange:
                config = load_config(
                    {
                        "dispatchers": {"alltoall": row.implementation},
                        "preprocess": {"counts": count, "exchange": exchange},
                    }
                )
                program = build(lookup("cpu", "alltoall", generation.name, config), generation, {})
                assert program is not None
                found[f"{row.implementation}, {count}, {exchange}"] = program
    return found


def test_every_choice_is_tried():
    assert len(programs_of(OLD)) == len(programs_of(NEW)) == 5


def run(program: Program, dispatchers: list[Any], maps: list[torch.Tensor]) -> list[Any]:
    """preprocess, then the hook at each of Megatron's points, on every rank; returns tokens per expert."""
    results = preprocess_group(program.preprocess, dispatchers, maps)
    for point in POINTS:
        results = [program.host_copies(one, point, counts) for one, counts in zip(dispatchers, results, strict=True)]
    return results


# Every choice once; how to count and how to exchange do not know of each other. All pairs: in the long run below.
EACH_ONCE = ("packed, byte_lanes, all_to_all", "packed, sum, all_gather", "reference, sum, all_gather")


def compare_programs(case: Case, names: Collection[str]) -> None:
    expected, maps = case.expected(), case.tensors()
    generation = NEW if case.mode == ROUTER_PADDING or case.transposed else OLD
    for name in names:
        program, dispatchers = programs_of(generation)[name], case.dispatchers()
        results = run(program, dispatchers, maps)
        for rank, (dispatcher, result, wanted) in enumerate(zip(dispatchers, results, expected, strict=True)):
            try:
                check(dispatcher, result, wanted)
            except AssertionError as error:
                raise AssertionError(f"{name}, rank {rank} of {case.layout}: {error}") from error


@settings(EXAMPLES, max_examples=1000)
@given(cases(COUNTED))
def test_against_the_oracle(case: Case):
    compare_programs(case, EACH_ONCE)


@pytest.mark.slow
@pytest.mark.megatron
@pytest.mark.timeout(3600)
@settings(EXAMPLES, max_examples=10_000)
@given(cases())
def test_every_mode_against_the_oracle_at_length(case: Case):
    pytest.importorskip("megatron.core.transformer.moe.moe_utils")  # says what the capacity is
    compare_programs(case, programs_of(NEW))


@pytest.mark.megatron
@settings(EXAMPLES, max_examples=300)
@given(cases((PAD,)))
def test_padding_against_the_oracle(case: Case):
    pytest.importorskip("megatron.core.transformer.moe.moe_utils")  # says what the capacity is
    compare_programs(case, programs_of(NEW))


@pytest.mark.megatron
@settings(EXAMPLES, max_examples=200)
@given(st.data())
def test_one_dispatcher_in_one_mode_after_another(data: st.DataObject):
    """Megatron switches padding on and off on live dispatchers: nothing of the last call may show through."""
    pytest.importorskip("megatron.core.transformer.moe.moe_utils")
    layout = data.draw(layouts())
    name = data.draw(st.sampled_from(sorted(programs_of(NEW))))
    program, dispatchers = programs_of(NEW)[name], None
    for case in data.draw(st.lists(cases(layout=layout), min_size=2, max_size=4)):
        dispatchers = dispatchers or case.dispatchers()
        for dispatcher in dispatchers:
            case.configure(dispatcher)
        results = run(program, dispatchers, case.tensors())
        for dispatcher, result, wanted in zip(dispatchers, results, case.expected(), strict=True):
            check(dispatcher, result, wanted)


# ------------------------------------------------------------------------------- what the strategies must reach


@settings(EXAMPLES, max_examples=15)
@example(Layout(2, 1, 8), "random", 283, False, DROPLESS, 1)  # both maps fold without a rest: torch's words alone
@given(
    st.sampled_from((Layout(2, 1, 8), Layout(1, 2, 4), Layout(1, 1, 5))),
    st.sampled_from(ROUTINGS),
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.sampled_from((DROPLESS, DROP)),
    st.sampled_from((1, 1, 2, 255)),
)
def test_a_map_big_enough_for_byte_lanes(
    layout: Layout, routing: str, seed: int, transposed: bool, mode: str, byte: int
):
    """The small maps above never reach the lanes; these do, up to one column full and all others empty."""
    rng = random.Random(seed)
    maps = tuple(make_map(rng, rng.randint(2800, 4500), layout.experts, 1, mode, routing) for _ in range(layout.ranks))
    case = Case(layout, 1, mode, None if mode == DROPLESS else 1.0, maps, transposed, byte)
    # Both ways through the lanes, torch's words and numpy's, fold the map.
    with mock.patch.object(counts, "_fold", wraps=counts._fold) as fold:
        compare_programs(case, programs_of(NEW))
    assert fold.called


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("experts", [1, 3, 8, 12, 20, 64, 257])
@pytest.mark.parametrize("tokens", [0, 1, 255, 256, 1023, 4099])
def test_counting(name: str, experts: int, tokens: int):
    """Sizes around the lanes' limits, columns full, empty and mixed; a sum is all there is to it."""
    rng = random.Random(experts * 10_000 + tokens)
    full = rng.randrange(experts)
    columns = [
        [expert == full or (expert % 3 != 1 and rng.random() < 0.5) for _ in range(tokens)] for expert in range(experts)
    ]
    routing_map = torch.tensor(columns, dtype=torch.bool).reshape(experts, tokens).t()
    expected = [sum(column) for column in columns]
    for one in (routing_map, routing_map.contiguous()):
        out = torch.full((experts,), -1, dtype=torch.int32)
        COUNTS[name](one, out)
        assert out.tolist() == expected


def test_the_check_can_fail():
    """A chunk table in group order instead of (tp, ep) order, splits of another rank, counts of other experts."""
    maps = tuple(make_map(random.Random(rank), 3 + rank, 4, 2, DROPLESS, "random") for rank in range(4))
    case = Case(Layout(2, 2, 4), 2, DROPLESS, None, maps, False)
    expected = case.expected()
    program = programs_of(NEW)["packed, sum, all_to_all"]
    dispatchers = case.dispatchers()
    results = run(program, dispatchers, case.tensors())
    check(dispatchers[0], results[0], expected[0])
    with pytest.raises(AssertionError, match="_splits"):
        check(dispatchers[0], results[0], expected[1])
    with pytest.raises(AssertionError):
        check(dispatchers[0], results[2], expected[0])
    table = dispatchers[0].num_global_tokens_per_local_expert
    dispatchers[0].num_global_tokens_per_local_expert = table.view(2, 2, 2).transpose(0, 1).reshape(4, 2)
    with pytest.raises(AssertionError, match="chunk table"):
        check(dispatchers[0], results[0], expected[0])


def test_a_strided_map_is_strided():
    strided = as_tensor(make_map(random.Random(0), 5, 4, 1, DROP, "random"), 4, True)
    assert not strided.is_contiguous()


@pytest.mark.parametrize("name", EACH_ONCE)
def test_a_first_call_in_inference_mode_leaves_nothing_that_training_cannot_use(name: str) -> None:
    """Evaluation before training: what is kept between calls must not be inference tensors."""
    program = programs_of(NEW)[name]
    layout = Layout(2, 1, 4)
    maps = tuple(make_map(random.Random(rank), 5, 4, 2, DROPLESS, "random") for rank in range(2))
    case = Case(layout, 2, DROPLESS, None, maps, False)
    dispatchers = case.dispatchers()
    for mode in (torch.inference_mode(True), torch.inference_mode(False)):
        with mode:
            results = run(program, dispatchers, case.tensors())
        for dispatcher, result, wanted in zip(dispatchers, results, case.expected(), strict=True):
            check(dispatcher, result, wanted)
