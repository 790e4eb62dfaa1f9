"""Every cell of the dispatch table, and what a lookup answers: a decision with the reasons of all that lost."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any, get_args

import pytest

from mindspeed_moe import programs
from mindspeed_moe.config import Config, Dispatchers, Preprocess, load_config
from mindspeed_moe.contract import GENERATIONS
from mindspeed_moe.contract.generations import WITH_LEGACY
from mindspeed_moe.dispatch_table import (
    CHOICES,
    DEVICES,
    DISPATCHERS,
    ROWS,
    STOCK,
    Claim,
    Decision,
    Gap,
    gap_of,
    lookup,
    rows_of,
)
from mindspeed_moe.errors import UnsupportedError
from mindspeed_moe.patches import DISPATCHER_PATCHES
from mindspeed_moe.preprocess.counts import COUNTS
from mindspeed_moe.preprocess.exchange import EXCHANGES
from mindspeed_moe.preprocess.sites import Sites

NAMES = [generation.name for generation in GENERATIONS]
CELLS = list(product(DEVICES, DISPATCHERS, NAMES))
FILLED = [cell for cell in CELLS if rows_of(*cell)]
EMPTY = [cell for cell in CELLS if not rows_of(*cell)]


def asking(dispatcher: str, implementation: str, **choices: str) -> Config:
    return load_config({"dispatchers": {dispatcher: implementation}, "preprocess": choices})


def refused(cell: tuple[str, str, str], config: Config) -> str:
    with pytest.raises(UnsupportedError) as caught:
        lookup(*cell, config)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ the data


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_has_rows_or_a_reason(cell: tuple[str, str, str]) -> None:
    if not rows_of(*cell):
        assert len(gap_of(*cell).reason) > 20


def test_every_dispatcher_that_a_release_has_is_covered() -> None:
    for device, dispatcher, generation in CELLS:
        there = dispatcher == "alltoall" or generation in WITH_LEGACY
        names = [row.implementation for row in rows_of(device, dispatcher, generation)]
        assert names == (["packed", "reference"] if there else [])


def test_every_row_stands_in_a_cell() -> None:
    assert all((row.device, row.dispatcher, row.generation) in CELLS for row in ROWS)


def test_no_row_stands_twice() -> None:
    seen = Counter((row.device, row.dispatcher, row.generation, row.implementation) for row in ROWS)
    assert [key for key, times in seen.items() if times > 1] == []


def test_every_row_names_a_program_that_exists() -> None:
    assert {row.program for row in ROWS} == set(programs.BUILDERS), "rows and builders name the same programs"


def test_every_row_has_patches_for_its_generation() -> None:
    for row in ROWS:
        specs = DISPATCHER_PATCHES[row.dispatcher]
        assert [spec for spec in specs if spec.is_for(row.generation)], row


def test_every_row_says_how_it_is_known_to_be_right() -> None:
    assert all(len(row.evidence) > 10 for row in ROWS)
    on_cuda = {(row.dispatcher, row.generation): row.evidence for row in ROWS if row.device == "cuda"}
    assert "never on several GPUs" in on_cuda.pop(("alltoall", "hook_event_wait_graphs"))
    assert all(evidence.startswith("not measured: ") for evidence in on_cuda.values())


def test_a_claim_in_words() -> None:
    assert str(Claim("", ("0.12.1",), ("0.12.0",))) == "tested on every run with 0.12.1, on demand with 0.12.0"
    assert str(Claim("", ("0.12.1",), (), ("0.12.4",))) == (
        "tested on every run with 0.12.1, by hand, from a checkout, with 0.12.4"
    )
    assert str(Claim("simulated", (), ("0.13.1", "0.14.0"))) == "simulated; tested on demand with 0.13.1, 0.14.0"
    assert str(Claim("not measured")) == "not measured"


def test_every_choice_is_one_that_exists_and_that_the_configuration_knows() -> None:
    for row in ROWS:
        assert set(row.counts) <= set(COUNTS)
        assert set(row.exchange) <= set(EXCHANGES)
        for choice in CHOICES:
            offered = getattr(row, choice)
            assert offered, row
            assert len(set(offered)) == len(offered), row
            assert set(offered) <= set(get_args(Preprocess.model_fields[choice].annotation)), row


def test_every_implementation_is_one_that_the_configuration_knows() -> None:
    for row in ROWS:
        assert row.implementation in get_args(Dispatchers.model_fields[row.dispatcher].annotation)


def test_every_dispatcher_is_one_that_the_configuration_knows() -> None:
    assert tuple(Dispatchers.model_fields) == DISPATCHERS


# ------------------------------------------------------------------------------------------------ the lookup


def check_reasons(decision: Decision) -> None:
    """The winner has a reason, and so has every other candidate of the cell; each is named once."""
    names = [name for name, _ in decision.rejected]
    cell = (decision.device, decision.dispatcher, decision.generation)
    candidates = [row.implementation for row in rows_of(*cell)] + [STOCK]
    assert len(set(names)) == len(names)
    assert set(candidates) - {decision.implementation} <= set(names)
    assert decision.implementation not in names
    assert all(reason.strip() for _, reason in decision.rejected)
    assert decision.reason.strip()


@pytest.mark.parametrize("cell", FILLED)
def test_auto_takes_the_first_row_of_a_filled_cell(cell: tuple[str, str, str]) -> None:
    decision = lookup(*cell, Config())
    first = rows_of(*cell)[0]
    assert (decision.device, decision.dispatcher, decision.generation) == cell
    assert decision.row is first
    assert decision.implementation == first.implementation == "packed"
    assert (decision.counts, decision.exchange) == (first.counts[0], first.exchange[0])
    assert decision.exchange_group == "auto", "settled where the layout is known"
    assert decision.tokens_per_expert == ("host" if cell[0] == "cpu" else "auto"), "settled where the experts are known"
    check_reasons(decision)
    assert {name for name, _ in decision.rejected} == {"reference", "stock"}


@pytest.mark.parametrize("cell", EMPTY)
def test_auto_in_an_empty_cell_is_stock_with_the_reason(cell: tuple[str, str, str]) -> None:
    decision = lookup(*cell, Config())
    assert (decision.implementation, decision.row) == (STOCK, None)
    assert {getattr(decision, choice) for choice in CHOICES} == {""}
    assert gap_of(*cell).reason in (decision.reason, *(reason for _, reason in decision.rejected))
    check_reasons(decision)


@pytest.mark.parametrize("cell", CELLS)
def test_stock_can_always_be_had(cell: tuple[str, str, str]) -> None:
    decision = lookup(*cell, asking(cell[1], "stock"))
    assert (decision.implementation, decision.row, decision.reason) == (STOCK, None, "asked for")
    check_reasons(decision)


@pytest.mark.parametrize("cell", FILLED)
def test_an_implementation_that_is_asked_for_is_taken(cell: tuple[str, str, str]) -> None:
    for row in rows_of(*cell):
        decision = lookup(*cell, asking(cell[1], row.implementation))
        assert (decision.row, decision.reason) == (row, "asked for")
        check_reasons(decision)


@pytest.mark.parametrize("implementation", ["packed", "reference"])
@pytest.mark.parametrize("cell", EMPTY)
def test_an_implementation_that_no_row_offers_is_refused(cell: tuple[str, str, str], implementation: str) -> None:
    message = refused(cell, asking(cell[1], implementation))
    device, dispatcher, generation = cell
    assert message.startswith(f"dispatchers.{dispatcher}: {implementation!r} cannot be had for device {device}, ")
    assert generation in message
    assert gap_of(*cell).reason in message
    assert message.endswith("allowed: auto, stock")


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("cell", FILLED)
def test_every_offered_choice_can_be_made(cell: tuple[str, str, str], choice: str) -> None:
    for row in rows_of(*cell):
        for value in getattr(row, choice):
            decision = lookup(*cell, asking(cell[1], row.implementation, **{choice: value}))
            assert decision.row is row
            assert getattr(decision, choice) == value


@pytest.mark.parametrize("cell", FILLED)
def test_a_choice_that_the_asked_implementation_lacks_is_refused(cell: tuple[str, str, str]) -> None:
    refusals = 0
    for row, choice in product(rows_of(*cell), CHOICES):
        for value in get_args(Preprocess.model_fields[choice].annotation):
            if value == "auto" or value in getattr(row, choice):
                continue
            message = refused(cell, asking(cell[1], row.implementation, **{choice: value}))
            assert f"preprocess.{choice}: {value!r} is not offered, only {', '.join(getattr(row, choice))}" in message
            refusals += 1
    assert refusals, "the test must have refused something"


@pytest.mark.parametrize("cell", FILLED)
def test_auto_goes_on_to_the_row_that_offers_the_choice(cell: tuple[str, str, str]) -> None:
    decision = lookup(*cell, asking(cell[1], "auto", exchange="all_to_all"))
    assert decision.implementation == "packed"
    assert decision.exchange == "all_to_all"


def test_auto_takes_a_later_row_when_the_first_lacks_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from mindspeed_moe import dispatch_table

    packed, reference = rows_of("cpu", "alltoall", "hook_stream_wait")
    rows = (replace(packed, exchange=("all_to_all",)), reference)
    monkeypatch.setattr(dispatch_table, "ROWS", rows)
    decision = lookup("cpu", "alltoall", "hook_stream_wait", asking("alltoall", "auto", exchange="all_gather"))
    assert decision.row is reference
    assert dict(decision.rejected) == {
        "packed": "preprocess.exchange: 'all_gather' is not offered, only all_to_all",
        "stock": "reference stands before it",
    }


@pytest.mark.parametrize("cell", FILLED)
def test_auto_is_refused_when_no_row_offers_the_choice(
    cell: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Falling back to stock would accept the choice without effect."""
    from dataclasses import replace

    from mindspeed_moe import dispatch_table

    rows = tuple(replace(row, counts=("sum",)) for row in rows_of(*cell))
    monkeypatch.setattr(dispatch_table, "ROWS", rows)
    message = refused(cell, asking(cell[1], "auto", counts="byte_lanes"))
    assert "preprocess.counts: 'byte_lanes' is not offered, only sum" in message


@pytest.mark.parametrize("choice", [{"counts": "sum"}, {"exchange": "all_gather"}, {"tokens_per_expert": "host"}])
def test_a_choice_is_not_ignored_where_auto_would_mean_stock(
    choice: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mindspeed_moe import dispatch_table

    monkeypatch.setattr(dispatch_table, "ROWS", ())
    monkeypatch.setattr(dispatch_table, "GAPS", (Gap("*", "alltoall", "*", "no adapter for this contract"),))
    message = refused(("cpu", "alltoall", "hook_stream_wait"), asking("alltoall", "auto", **choice))
    assert "(packed: no adapter for this contract; reference: no adapter for this contract)" in message


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.device}-{row.generation}-{row.implementation}")
def test_every_row_can_be_built(row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    # torch_npu need not be installed to put a program together.
    monkeypatch.setattr(programs, "npu_streams", SimpleNamespace, raising=False)
    if hasattr(programs, "STREAMS"):
        monkeypatch.setitem(programs.STREAMS, "npu", SimpleNamespace)
    generation = next(one for one in GENERATIONS if one.name == row.generation)
    config = asking(row.dispatcher, row.implementation)
    decision = lookup(row.device, row.dispatcher, row.generation, config)
    program = programs.build(decision, generation, {})
    assert program is not None
    assert callable(program.preprocess)
    assert callable(program.host_copies)
    assert isinstance(program.sites, Sites)


def test_stock_has_no_program() -> None:
    decision = lookup("cpu", "alltoall", "hook_stream_wait", asking("alltoall", "stock"))
    assert programs.build(decision, GENERATIONS[2], {}) is None
