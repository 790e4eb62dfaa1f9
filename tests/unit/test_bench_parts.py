"""Replaced names, stand-in collectives, the equality check, the description of the machine, the report."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mindspeed_moe.bench import contestants
from mindspeed_moe.bench.blocks import read_once
from mindspeed_moe.bench.contestants import VERIFIED
from mindspeed_moe.bench.equality import outcome_of, require_equal
from mindspeed_moe.bench.machine import cpu_model
from mindspeed_moe.bench.measure import Result
from mindspeed_moe.bench.places import replaced
from mindspeed_moe.bench.report import Report
from mindspeed_moe.bench.shapes import Shape
from mindspeed_moe.bench.simulation import CheckingCollectives, PreparedCollectives, SimulatedGroup
from mindspeed_moe.bench.timing import Spread
from mindspeed_moe.errors import BenchError
from mindspeed_moe.tables import render

# ------------------------------------------------------------------------------------------ replaced names


def test_replaced_names_come_back():
    owner = SimpleNamespace(kept="kept", old="old")
    with replaced([(owner, "old", "new"), (owner, "added", "added"), (owner, "old", "newer")]):
        assert vars(owner) == {"kept": "kept", "old": "newer", "added": "added"}
    assert vars(owner) == {"kept": "kept", "old": "old"}


def test_replaced_names_come_back_after_an_error():
    class Picky:
        __slots__ = ()

    owner = SimpleNamespace(old="old")
    with pytest.raises(TypeError), replaced([(owner, "old", "new"), (Picky(), "anything", 1)]):
        pytest.fail("must not be reached")
    assert vars(owner) == {"old": "old"}
    with pytest.raises(ZeroDivisionError), replaced([(owner, "old", "new")]):
        raise ZeroDivisionError
    assert vars(owner) == {"old": "old"}


# ------------------------------------------------------------------------------------------- collectives

SHAPE = Shape(4, 2, 2, 9, 2, "dropless")
COUNTS = np.arange(100, 116, dtype=np.int64).reshape(2, 2, 4)  # [EP, TP, E]
LAYOUT = SHAPE.layout(3)  # EP rank 1, TP rank 1: owns the experts 2 and 3, counts 112 to 115


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("kind", [PreparedCollectives, CheckingCollectives])
def test_prepared_collectives(kind, dtype):
    collectives = kind(COUNTS, LAYOUT)
    gathered = torch.zeros(16, dtype=dtype)
    assert collectives.all_gather_into_tensor(gathered, torch.tensor([112, 113, 114, 115], dtype=dtype)) is None
    assert gathered.tolist() == list(range(100, 116))
    received = torch.zeros(8, dtype=dtype)
    sent = torch.tensor([112, 113, 112, 113, 114, 115, 114, 115], dtype=dtype)  # twice for each EP rank
    assert collectives.all_to_all_single(received, sent, group=None) is None
    assert received.tolist() == [102, 103, 106, 107, 110, 111, 114, 115]


def test_sending_something_else_is_found_out():
    collectives = CheckingCollectives(COUNTS, LAYOUT)
    with pytest.raises(BenchError, match="all_gather_into_tensor"):
        collectives.all_gather_into_tensor(torch.zeros(16).int(), torch.tensor([112, 113, 114, 116]))
    once = torch.tensor([112, 113, 114, 115])
    with pytest.raises(BenchError, match="all_to_all_single"):
        collectives.all_to_all_single(torch.zeros(8).int(), once.repeat(2))


def test_simulated_groups():
    group = SimulatedGroup(32, 5)
    assert (group.size(), group.rank()) == (32, 5)


# ------------------------------------------------------------------------------------------------ equality


def left_by(**changes):
    splits = {"input_splits": np.array([3, 1]), "output_splits": np.array([2, 2]), "output_splits_tp": np.array([4])}
    dispatcher = SimpleNamespace(
        **{**splits, "table": torch.tensor([[1, 1], [0, 2]]), "num_out_tokens": 4, "capacity": None, **changes}
    )
    return outcome_of(dispatcher, torch.tensor([1, 3]), "table")


def test_equal_outcomes_pass():
    require_equal({"stock": left_by(), "reference": left_by(num_out_tokens=torch.tensor(4)), "packed": left_by()})


def test_an_outcome_without_a_table():
    dispatcher = SimpleNamespace(
        input_splits=None, output_splits=None, output_splits_tp=None, num_out_tokens=4, capacity=None
    )
    assert outcome_of(dispatcher, torch.tensor([4]), "table")["table"] is None


@pytest.mark.parametrize(
    "change",
    [
        {"input_splits": np.array([1, 3])},
        {"input_splits": None},
        {"output_splits": np.array([2, 2], dtype=np.int32)},
        {"output_splits": torch.tensor([2, 2])},
        {"output_splits_tp": np.array([5])},
        {"table": torch.tensor([1, 1, 0, 2])},
        {"table": torch.tensor([[1, 1], [0, 3]])},
        {"num_out_tokens": 5},
        {"capacity": 2},
    ],
)
def test_any_difference_is_an_error_that_names_it(change):
    with pytest.raises(BenchError, match=f"packed leaves {next(iter(change))}") as told:
        require_equal({"stock": left_by(), "reference": left_by(), "packed": left_by(**change)})
    assert "reference" not in str(told.value)


def test_different_counts_are_an_error():
    other = {**left_by(), "tokens_per_expert": ("tensor of int64", [2, 2])}
    with pytest.raises(BenchError, match="reference leaves tokens_per_expert"):
        require_equal({"stock": left_by(), "reference": other})


def test_long_values_are_cut_in_the_message():
    with pytest.raises(BenchError) as told:
        require_equal({"stock": left_by(), "packed": left_by(input_splits=np.arange(10_000))})
    assert len(str(told.value)) < 1000


# ------------------------------------------------------------------------------------- machine and report


def test_the_processors_name(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz: fast\n\nprocessor\t: 1\nmodel name\t: Other\n")
    assert cpu_model(file) == "Some CPU @ 2 GHz: fast"
    file.write_text("processor\t: 0\n")
    assert cpu_model(file) == cpu_model(tmp_path / "missing") != ""


@pytest.mark.parametrize(("tokens", "experts"), [(5, 3), (1, 1), (16, 8)])
def test_reading_once_reads_everything(tokens, experts):
    routing_map = torch.rand(tokens, experts) < 0.5
    words, rest = read_once(routing_map)()
    ones = sum(words >> shift & 0xFF for shift in range(0, 64, 8)) + int(rest)
    assert ones == sum(map(sum, routing_map.tolist()))


def result(**changes):
    values = {
        "shape": SHAPE,
        "processes": 1,
        "rounds": 7,
        "seed": 3,
        "implementations": {"stock": Spread(8, 10, 12), "reference": Spread(4, 8, 9), "packed": Spread(3, 4, 5)},
        "packed_blocks": {"counting": Spread(1, 2, 3)},
        "read_map": Spread(0.5, 1, 2),
    }
    return Result(**{**values, **changes})


def test_report_as_json():
    report = Report({"torch": "x", "threads": 1}, [result()], ["why not"])
    data = json.loads(json.dumps(report.to_dict()))
    assert data == {
        "machine": {"torch": "x", "threads": 1},
        "unit": "us",
        "results": [
            {
                "shape": {"experts": 4, "ep": 2, "tp": 2, "tokens": 9, "topk": 2, "mode": "dropless"},
                "processes": 1,
                "rounds": 7,
                "seed": 3,
                "implementations": {
                    "stock": {"p20": 8, "p50": 10, "p80": 12, "ratio_to_stock": 1.0},
                    "reference": {"p20": 4, "p50": 8, "p80": 9, "ratio_to_stock": 1.25},
                    "packed": {"p20": 3, "p50": 4, "p80": 5, "ratio_to_stock": 2.5},
                },
                "packed_blocks": {"counting": {"p20": 1, "p50": 2, "p80": 3}},
                "read_map_once": {"p20": 0.5, "p50": 1, "p80": 2},
            }
        ],
        "left_out": ["why not"],
    }


def test_report_of_one_shape_as_a_table():
    text = render(*Report({"threads": 1, "load": 0.123}, [result()], []).parts())
    assert "threads 1, load 0.12" in text
    assert "E=4 EP=2 TP=2 T=9 top-2 dropless; simulated group; 7 rounds" in text
    assert [line.split() for line in text.splitlines() if line.lstrip().startswith(("stock", "packed"))] == [
        ["stock", "8.0", "10.0", "12.0", "1.00"],
        ["packed", "3.0", "4.0", "5.0", "2.50"],
        ["packed:", "counting", "1.0", "2.0", "3.0"],
    ]
    assert "reading the map once" in text


def test_report_of_a_sweep_as_a_table():
    real = [result(processes=4), result(processes=4, shape=Shape(8, 4, 1, 9, 2, "pad"), packed_blocks={})]
    text = render(*Report({}, real, ["E=9 is odd"]).parts())
    assert "4 gloo processes, seen from rank 0; 7 rounds" in text
    assert "E=8 EP=4 TP=1 T=9 top-2 pad" in text
    assert text.count("4.0 (2.50)") == 2
    assert "left out: E=9 is odd" in text


def test_verified_contestants_are_packed_under_verification():
    asked = {name: contestants._asked("cpu", name, {"counts": "sum"}) for name in (contestants.PACKED, *VERIFIED)}
    assert {name: one.verify for name, one in asked.items()} == {
        "packed": "off",
        "packed, verify: first": "first",
        "packed, verify: always": "always",
    }
    assert {(one.dispatchers.alltoall, one.preprocess.counts) for one in asked.values()} == {("packed", "sum")}
