"""Somebody else's code between our parts: the rows of a table in docs/reliability.md, on the cpu and late devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from npu.launch import run_ranks
from npu.strangers import SITUATIONS

DEVICES = [
    pytest.param("cpu", marks=pytest.mark.megatron),
    pytest.param("npu", marks=[pytest.mark.simulated, pytest.mark.megatron]),
]
OVER = (  # somebody's wrapper calls ours: it stays where it is, and we come and go beneath it
    "wrapped_in_a_closure",
    "wrapped_by_functools",
    "wrapped_through_an_attribute",
    "the_hook_wrapped",
)
# Where nobody could get it right, and None would mean equal parts: what the reader of the splits is told.
REFUSED = {
    "copied_in_the_middle_of_a_call": "was copied between preprocess and before_permutation_1",
    "switched_off_in_the_middle_of_a_call": "switched off between preprocess and the first reader of its splits",
    "splits_set_by_somebody": "somebody has set input_splits or output_splits of a MoEAlltoAllTokenDispatcher",
}
IN_THE_MIDDLE_ON_THE_CPU = {"copied_in_the_middle_of_a_call": 8, "switched_off_in_the_middle_of_a_call": 8}

Found = dict[str, Any]


@pytest.fixture(scope="module", params=DEVICES)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Found]]:
    device = request.param
    folder: Path = tmp_path_factory.mktemp(device)
    return device, run_ranks("strangers", 2, folder, device=device, arguments={"device": device})


def test_every_call_gives_what_stock_gives(found: tuple[str, list[Found]]) -> None:
    for rank in found[1]:
        assert rank.keys() == SITUATIONS.keys()
        for name, one in rank.items():
            assert one["different"] == [], name
            assert one["compared"] >= 2 or name in REFUSED, name


def test_a_wrapper_stays_and_is_named_and_the_plugin_comes_back_beneath_it(found: tuple[str, list[Found]]) -> None:
    for rank in found[1]:
        for name in OVER:
            (told,) = rank[name]["told"]
            assert "was patched over by npu.strangers." in told
            assert told.endswith("; left as it is")
            assert rank[name]["again"] == "packed"


def test_nothing_of_ours_is_on_a_dispatcher_between_calls(found: tuple[str, list[Found]]) -> None:
    for rank in found[1]:
        assert rank["copied_between_calls"]["kept on a dispatcher"] == []


@pytest.mark.megatron
def test_the_document_has_a_row_for_each_situation_and_no_other() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [
        line.split("|")[-2].strip().strip("`")
        for line in text.split("| what holds | test |")[1].splitlines()[2:]
        if line.startswith("|")
    ]
    assert rows == list(SITUATIONS)


def test_what_cannot_be_right_is_refused(found: tuple[str, list[Found]]) -> None:
    device, ranks = found
    for rank in ranks:
        for name, told in REFUSED.items():
            if device == "npu" or name == "copied_in_the_middle_of_a_call":
                assert told in rank[name]["refused"], name
            else:  # nothing is on its way there: everything stands when preprocess returns, and theirs comes after it
                assert rank[name]["splits"][0] == 8, name
