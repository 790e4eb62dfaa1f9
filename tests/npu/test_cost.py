"""What one preprocess with its host half costs, counted exactly on the simulated Ascend runtime. No times."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple, fields, replace

import pytest

from distributed.layers import ALLTOALL, SEQ, has_sequence_dispatcher
from npu.floor import (
    EVENT,
    EXPERTS,
    FUSED,
    IMPLEMENTATIONS,
    LAYOUTS,
    MODES,
    PACKED,
    REFERENCE,
    SEED,
    SEED_COST,
    SEQ_LAYOUTS,
    STOCK,
    STOCK_COST,
    Case,
    Cost,
    cases,
    floor,
)
from npu.layer import modes, way_of_waiting
from npu.measured import Measured
from oracle.plan import DROPLESS, PAD

pytestmark = [pytest.mark.simulated, pytest.mark.megatron, pytest.mark.proves(device="npu")]

# TP x EP and the dispatcher.
PLACES = [(*layout, ALLTOALL) for layout in LAYOUTS] + [(*layout, SEQ) for layout in SEQ_LAYOUTS]
every_layout = pytest.mark.parametrize(
    ("tp", "ep", "dispatcher"), PLACES, ids=["{}x{}-{}".format(*place) for place in PLACES]
)
every_mode = pytest.mark.parametrize("mode", MODES)


def of(tp: int, ep: int, dispatcher: str, mode: str, implementation: str) -> list[Case]:
    """L > 1 and L = 1, counts on both sides, both exchanges."""
    if dispatcher == SEQ and not has_sequence_dispatcher():
        pytest.skip("this release has no alltoall_seq")
    if mode not in modes(dispatcher):
        pytest.skip(f"{dispatcher} of this release has no mode {mode}")
    found = [
        case
        for case in cases(modes(dispatcher), dispatcher)
        if (case.tp, case.ep, case.dispatcher, case.mode, case.implementation)
        == (tp, ep, dispatcher, mode, implementation)
    ]
    assert {case.local for case in found} == set(EXPERTS)
    return found


@pytest.mark.proves(implementation=PACKED)
@every_mode
@every_layout
def test_packed_costs_the_floor_exactly(measured: Measured, tp: int, ep: int, dispatcher: str, mode: str) -> None:
    problems = [
        f"{case}: {wrong} ({found['kernels']})"
        for case in of(tp, ep, dispatcher, mode, PACKED)
        for cost, found in zip(measured.costs(case), measured.calls[case], strict=True)
        if (wrong := cost.difference(floor(case)))
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.proves(device="")  # it runs nothing
def test_the_floor_is_the_one_that_was_promised() -> None:
    """The table of floors, held against the few numbers that the design names: a looser row would show here."""
    for case in (one for one in cases() if one.implementation == PACKED):
        cost = floor(case)
        assert cost.stream_synchronizations == cost.device_synchronizations == 0
        assert cost.device_allocations == cost.host_allocations == cost.communicators == 0
        if case.mode == PAD:
            assert cost == Cost(), "padding needs nothing"
        elif case.tp * case.ep == 1:
            reads = case.counts == "host" or not (case.mode == FUSED or (case.mode == DROPLESS and case.local == 1))
            assert astuple(cost)[:5] == (1, 0, reads, reads, reads), case
        else:
            most = 2 + (case.tp > 1) + (case.mode == FUSED and case.local > 1)
            assert cost.kernels <= most, case
            assert astuple(cost)[1:5] == (1, 1, 5 if case.stream == "side" else 4, 1), case
    assert floor(Case(1, 2, 4, DROPLESS, PACKED, "host", "all_to_all", "current")).kernels == 1, (
        "host counts save a kernel"
    )


@every_mode
@every_layout
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_was_counted_was_right(
    measured: Measured, tp: int, ep: int, dispatcher: str, mode: str, implementation: str
) -> None:
    for case in of(tp, ep, dispatcher, mode, implementation):
        for rank, found in enumerate(measured.calls[case]):
            assert not found["wrong"], f"rank {rank}, {case}: {found['wrong']}"


@pytest.mark.proves(implementation=PACKED)
@every_mode
@every_layout
def test_nothing_else_happens(measured: Measured, tp: int, ep: int, dispatcher: str, mode: str) -> None:
    for case in of(tp, ep, dispatcher, mode, PACKED):
        for cost, found in zip(measured.costs(case), measured.calls[case], strict=True):
            assert found["pageable_or_blocking"] == 0, f"{case}: a copy is pageable or blocks"
            assert found["other_copies"] == found["fills"] == 0, case
            assert found["made"] == 2 * cost.collectives, f"{case}: torch_npu makes two events a collective, we none"


@pytest.mark.proves(implementation=PACKED)
@every_mode
@every_layout
def test_packed_never_costs_more_than_stock_or_the_seed(
    measured: Measured, tp: int, ep: int, dispatcher: str, mode: str
) -> None:
    """In no column, with what each does where the experts read their counts; but for what the exchange chosen moves."""
    seed = {(case.local, case.counts): cost(measured, case) for case in of(tp, ep, dispatcher, mode, REFERENCE)}
    stock = {case.local: cost(measured, case) for case in of(tp, ep, dispatcher, mode, STOCK)}
    for case in of(tp, ep, dispatcher, mode, PACKED):
        mine = cost(measured, case)
        others = [seed[case.local, case.counts]] + ([stock[case.local]] if case.counts == "host" else [])
        for other in others:
            for one in fields(Cost):
                # Sent and received counts are copied in one piece, more bytes in fewer copies.
                if one.name not in ("event_waits", "records", "stream_synchronizations", "copied"):
                    assert getattr(mine, one.name) <= getattr(other, one.name), (case, one.name)
            # The seed waits for the whole stream where packed waits for an event, which it must record.
            waits, theirs = (one.event_waits + one.stream_synchronizations for one in (mine, other))
            assert waits <= theirs, case
            assert mine.records <= other.records + other.stream_synchronizations, case


def cost(measured: Measured, case: Case) -> Cost:
    """What a call costs, the same on each rank.

    Pinned memory counts for packed only: stock and the seed take it from a cache that allocates whenever it cannot
    tell yet that earlier copies are done, which varies from run to run.
    """
    found = measured.costs(case)
    steady = [replace(one, host_allocations=0) for one in found]
    assert all(one == steady[0] for one in steady), (case, found)
    return found[0] if case.implementation == PACKED else steady[0]


def counted(found: Cost) -> tuple[int, ...]:
    """Kernels, collectives, copies, event records, event waits, stream synchronisations."""
    return (*astuple(found)[:5], found.stream_synchronizations)


@pytest.mark.proves(implementation=REFERENCE)
def test_the_seed_costs_what_the_prototype_found(measured: Measured) -> None:
    """The same in every release, which is what `reference` is for."""
    assert counted(cost(measured, SEED)) == SEED_COST


@pytest.mark.proves(implementation=STOCK)
def test_stock_costs_what_was_found(measured: Measured) -> None:
    assert counted(cost(measured, replace(SEED, implementation=STOCK, counts=""))) == STOCK_COST[way_of_waiting()]


# implementation, where the experts read their counts (stock always leaves them on the host), exchange, stream
RECORDED = (
    (STOCK, "", "", ""),
    (REFERENCE, "device", "", ""),
    (PACKED, "device", "all_to_all", "current"),
    (PACKED, "host", "all_to_all", "current"),
)
COLUMNS = ("kernels", "collectives", "copies", "records", "event_waits", "stream_synchronizations")


@pytest.mark.proves(device="")
def test_the_ledger_for_the_evidence(measured: Measured, record_testsuite_property: Callable[[str, str], None]) -> None:
    """One dropless call, EP = 2, TP = 1, L = 4: goes into the JUnit file, from which ci/evidence.py takes it."""
    for dispatcher in (ALLTOALL, SEQ) if has_sequence_dispatcher() else (ALLTOALL,):
        for implementation, counts, exchange, stream in RECORDED:
            case = Case(1, 2, 4, DROPLESS, implementation, counts, exchange, stream, dispatcher=dispatcher)
            found = cost(measured, case)
            named = {"dispatcher": dispatcher, "implementation": implementation, "tokens_per_expert": counts or "host"}
            ledger = {**named, **{name: getattr(found, name) for name in COLUMNS}}
            record_testsuite_property("ledger", json.dumps(ledger))
            assert ledger["collectives"] == 1


def test_no_release_waits_for_the_whole_stream_any_more(measured: Measured) -> None:
    """0.10 to 0.12 do, and so does the seed; packed never."""
    waits = {STOCK: set(), REFERENCE: set(), PACKED: set()}  # type: dict[str, set[int]]
    for case, found in measured.calls.items():
        if case.mode != PAD:
            waits[case.implementation] |= {one["cost"]["stream_synchronizations"] for one in found}
    assert waits[PACKED] == {0}
    assert waits[REFERENCE] == {1}
    assert min(waits[STOCK]) == (0 if way_of_waiting() == EVENT else 1)


def test_counts_are_where_the_experts_look(measured: Measured) -> None:
    where = {"device": "npu", "host": "cpu", "": "cpu"}
    for case, found in measured.calls.items():
        wanted = "cpu" if case.mode == PAD else where[case.counts]
        assert {rank["counts_on"] for rank in found} == {wanted}, case
