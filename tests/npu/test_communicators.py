"""Communicators and bytes on the wire, counted on the simulated Ascend runtime."""

from __future__ import annotations

import pytest

from npu.floor import COMMUNICATORS, EXCHANGES, PACKED, Case
from npu.measured import Measured, calls
from oracle.plan import DROPLESS

pytestmark = [pytest.mark.simulated, pytest.mark.megatron]

RANKS = 8
E = 16
WORD = 4
LAYOUTS = ((1, 2), (1, 4), (1, 8), (2, 2), (2, 4))  # TP x EP
WIRE = [
    Case(tp, ep, E // ep, DROPLESS, PACKED, "device", exchange, "current")
    for tp, ep in LAYOUTS
    for exchange in EXCHANGES
]


@pytest.mark.parametrize("name", COMMUNICATORS)
def test_communicators_and_their_memory(measured: Measured, name: str) -> None:
    for rank, found in enumerate(measured.communicators[name]):
        assert found == COMMUNICATORS[name], f"rank {rank}"


def test_one_communicator_less_than_stock() -> None:
    assert len(COMMUNICATORS["packed, auto"]) == len(COMMUNICATORS["stock"]) - 1


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, set[int]]:
    """Return by case the bytes that the collective of one call writes on a rank."""
    found = calls(WIRE, RANKS, tmp_path_factory.mktemp("wire"))
    for case, ranks in found.items():
        assert not any(rank["wrong"] for rank in ranks), case
        assert all(rank["cost"]["collectives"] == 1 for rank in ranks), case
    return {case: {rank["cost"]["wire"] for rank in ranks} for case, ranks in found.items()}


def test_bytes_of_all_to_all_do_not_depend_on_ep(wire: dict[Case, set[int]]) -> None:
    for case, found in wire.items():
        if case.exchange == "all_to_all":
            assert found == {case.tp * E * WORD}, case


def test_bytes_of_all_gather_grow_with_ep(wire: dict[Case, set[int]]) -> None:
    for case, found in wire.items():
        if case.exchange == "all_gather":
            assert found == {case.tp * case.ep * E * WORD}, case
