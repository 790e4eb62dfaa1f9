"""Ranks that own whole experts: exact ledgers on the simulated npu, and mistakes that are noticed there. No times."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from npu.extended import MUTATIONS, Case, cases
from npu.floor import Cost
from npu.launch import run_ranks

pytestmark = [pytest.mark.simulated, pytest.mark.megatron]

SEEDS = 10


def twice(cost: Cost) -> Cost:
    return Cost(**{one.name: 2 * getattr(cost, one.name) for one in fields(cost)})


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_call_costs_the_floor_exactly(ranks: int, tmp_path: Path) -> None:
    found = run_ranks("count_extended", ranks, tmp_path, arguments={"ranks": ranks})
    problems = []
    for rank, of_rank in enumerate(found):
        for case, measured in zip(cases(ranks), of_rank, strict=True):
            told = [
                *measured["wrong"],
                Cost(**measured["one"]).difference(case.floor),
                Cost(**measured["two"]).difference(twice(case.floor)),
            ]
            problems += [f"rank {rank}, {case}: {one}" for one in told if one]
    assert not problems, "\n".join(problems)


def test_the_floor_is_the_one_that_was_promised() -> None:
    kernels = {
        (case.in_order, case.exchange, case.on_device): case.floor.kernels for case in cases(2) if case.local == 3
    }
    assert kernels == {
        (True, "all_to_all", False): 1,
        (True, "all_to_all", True): 2,
        (True, "all_gather", False): 1,
        (True, "all_gather", True): 2,
        (False, "all_to_all", False): 2,
        (False, "all_to_all", True): 3,
        (False, "all_gather", False): 1,
        (False, "all_gather", True): 3,
    }
    for case in cases(4):
        cost = case.floor
        assert (cost.collectives, cost.copies, cost.records, cost.event_waits) == (1, 1, 4, 1)
        assert cost.stream_synchronizations == cost.device_synchronizations == 0
        assert cost.device_allocations == cost.host_allocations == cost.communicators == 0


def test_owners_of_the_cases_are_what_they_say() -> None:
    assert Case(2, 3, True, "", False).owned == [[0, 1, 2], [3, 4, 5]]
    for case in cases(2) + cases(4):
        flat = [expert for own in case.owned for expert in own]
        assert (flat == sorted(flat)) == case.in_order, f"{case} owns {case.owned}"


def test_mistakes_are_noticed_in_every_run_and_the_code_as_it_is_passes(tmp_path: Path) -> None:
    ranks = 2
    found = run_ranks("mutate_extended", ranks, tmp_path, arguments={"ranks": ranks, "seeds": SEEDS})
    for name in MUTATIONS:
        noticed = set().union(*(rank[name] for rank in found))
        assert noticed == (set(range(SEEDS)) if name else set()), name or "the code as it is"
