"""From dumps to who was right: two ranks with EP = 2, four with EP = 2 and TP = 2, all numbers by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helpers_dumps import EP2, EP2_TP2, EP2_TP2_WANTED, EP2_WANTED, dump, of_all, routing_map, with_meta
from helpers_process import python
from mindspeed_moe import cli
from mindspeed_moe.errors import DumpError
from mindspeed_moe.preprocess.exchange import EXCHANGES, AllToAll
from mindspeed_moe.verify.dump import Dump, write_dump
from mindspeed_moe.verify.replay import replay
from oracle.plan import DROPLESS, plan_group

CASES = [(EP2, EP2_WANTED, 2, 1), (EP2_TP2, EP2_TP2_WANTED, 2, 2)]
either = pytest.mark.parametrize(("counts", "wanted", "ep", "tp"), CASES, ids=["EP2", "EP2xTP2"])
IMPLEMENTATIONS = [f"packed, {exchange}" for exchange in EXCHANGES]


def told(one: Any) -> str:
    return "" if one is None else str(one)


@either
def test_the_examples_are_what_the_oracle_says(counts: Any, wanted: Any, ep: int, tp: int) -> None:
    maps = [routing_map(one).tolist() for one in counts]
    for plan, one in zip(plan_group(maps, ep=ep, tp=tp, experts=4, topk=1, mode=DROPLESS), wanted, strict=True):
        assert plan.input_splits == one["input_splits"]
        assert plan.output_splits == one["output_splits"]
        assert plan.output_splits_tp == one["output_splits_tp"]
        assert plan.chunk_table == one["chunk table"]
        assert plan.tokens_per_local_expert == one["tokens_per_local_expert"]
        assert plan.num_out_tokens == one["num_out_tokens"]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@either
def test_dumps_without_a_difference_show_none(counts: Any, wanted: Any, ep: int, tp: int, implementation: str) -> None:
    found = replay(of_all(wanted, counts, ep=ep, tp=tp, implementation=implementation))
    assert not found.reproduced
    for one in found.findings:
        assert (one.recorded, one.against_maps, one.reference, one.code) == (None, None, None, None)
    assert found.counts_from == tuple(f"the routing map of rank {rank}" for rank in range(ep * tp))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("name", "wrong", "difference"),
    [
        ("num_out_tokens", 7, "num_out_tokens: found 7, expected 6"),
        ("num_out_tokens", None, "num_out_tokens: found None, expected 6"),
        ("input_splits", [9, 9], "input_splits[0]: found 9, expected {}"),
        ("output_splits", [3, 9], "output_splits[1]: found 9, expected {}"),
        ("output_splits", None, "output_splits: found None, expected shape [2]"),
        ("output_splits_tp", [0], "output_splits_tp[0]: found 0, expected {}"),
        ("chunk table", [[0, 0], [0, 0]], "chunk table[{}]: found 0, expected {}"),
        ("tokens_per_local_expert", [9, 9], "tokens_per_local_expert[0]: found 9, expected {}"),
    ],
)
def test_what_was_read_wrong_is_found_from_one_dump_and_from_all(
    rank: int, name: str, wrong: Any, difference: str
) -> None:
    first_wrong = {
        "input_splits": [3, 4],
        "output_splits": [4, 2],
        "output_splits_tp": [7, 5],
        "tokens_per_local_expert": [5, 1],
    }
    values = (first_wrong[name][rank],) if name in first_wrong else [("0, 0", 1), ("0, 1", 3)][rank]
    expected = difference.format(*values)
    every = of_all(EP2_WANTED, EP2)
    every[rank] = dump(rank, EP2, EP2_WANTED[rank], found={name: wrong})
    for dumps in ([every[rank]], every, every[::-1]):
        found = replay(dumps)
        assert found.reproduced
        assert [one.meta.rank for one in found.findings] == sorted(one.meta.rank for one in dumps)
        (one,) = (one for one in found.findings if one.meta.rank == rank)
        assert (told(one.recorded), told(one.against_maps)) == (expected, expected)
        assert (one.reference, one.code) == (None, None)
        assert all(other.recorded is None for other in found.findings if other is not one)


@pytest.mark.parametrize("rank", range(4))
def test_in_a_group_of_both_from_one_dump_and_from_all(rank: int) -> None:
    """Chunks in the order EP, TP where TP, EP belongs: rows 1 and 2 change their places."""
    rows = EP2_TP2_WANTED[rank]["chunk table"]
    swapped = [rows[0], rows[2], rows[1], rows[3]]
    every = of_all(EP2_TP2_WANTED, EP2_TP2, ep=2, tp=2)
    every[rank] = dump(rank, EP2_TP2, EP2_TP2_WANTED[rank], ep=2, tp=2, found={"chunk table": swapped})
    expected = f"chunk table[1, 0]: found {swapped[1][0]}, expected {rows[1][0]}"
    for dumps in ([every[rank]], every):
        (one,) = (one for one in replay(dumps).findings if one.meta.rank == rank)
        assert (told(one.recorded), told(one.against_maps), one.reference) == (expected, expected, None)


@pytest.mark.parametrize(("shape", "rank"), [((2, 2, 2), 0), ((8,), 3)])
def test_a_table_in_the_shape_of_another_release_is_the_same_table(shape: tuple[int, ...], rank: int) -> None:
    wanted = {**EP2_TP2_WANTED[rank]}
    table = np.array(wanted["chunk table"]).reshape(shape).tolist()
    found = replay([dump(rank, EP2_TP2, {**wanted, "chunk table": table}, ep=2, tp=2)])
    assert not found.reproduced


# ------------------------------------------------------------------------------------------------ who was right


def test_a_reference_that_was_wrong_is_told() -> None:
    """packed was right: what it left follows from the routing maps."""
    wrong = {**EP2_WANTED[0], "output_splits": [3, 5]}
    right = {"output_splits": [3, 4]}
    found = replay([dump(0, EP2, wrong, found=right), *of_all(EP2_WANTED, EP2)[1:]])
    one = found.findings[0]
    assert found.reproduced
    assert told(one.recorded) == "output_splits[1]: found 4, expected 5"
    assert one.against_maps is None
    assert told(one.reference) == "output_splits[1]: found 5, expected 4"


def test_what_the_reference_gathered_counts_only_where_no_map_is_there() -> None:
    """The reference got wrong counts from rank 1: from rank 0's dump alone it cannot be seen, from both it can."""
    gathered = (EP2[0], [5, 0, 1, 1])
    wrong = {**EP2_WANTED[0], "output_splits": [3, 5], "output_splits_tp": [8], "chunk table": [[1, 2], [5, 0]]}
    wrong["tokens_per_local_expert"] = [6, 2]
    own = dump(0, EP2, wrong, found=EP2_WANTED[0], gathered=gathered)
    alone, both = replay([own]), replay([own, dump(1, EP2, EP2_WANTED[1])])
    assert alone.counts_from == ("the routing map of rank 0", "what the reference gathered of rank 1")
    assert alone.findings[0].reference is None
    assert told(alone.findings[0].against_maps) == "output_splits[1]: found 4, expected 5"
    assert told(both.findings[0].reference) == "output_splits[1]: found 5, expected 4"
    assert both.findings[0].against_maps is None


def test_code_that_is_wrong_on_this_machine_too_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = AllToAll.reader

    def one_too_many(self: AllToAll, words: Any) -> Any:
        read = reader(self, words)
        return lambda: read() + 1

    every = of_all(EP2_WANTED, EP2)
    every[0] = dump(0, EP2, EP2_WANTED[0], found={"input_splits": [5, 5]})
    assert replay(every).findings[0].code is None
    monkeypatch.setattr(AllToAll, "reader", one_too_many)
    codes = [told(one.code) for one in replay(every).findings]
    assert codes[0].startswith(("num_out_tokens: found 10", "input_splits[0]: found 5"))
    assert all(codes)
    gathering = [with_meta(one, implementation="packed, all_gather") for one in every]
    assert replay(gathering).findings[0].code is None, "the exchange that the run had is the one that is tried"


def test_a_rank_without_peers() -> None:
    wanted = {"num_out_tokens": 6, "input_splits": None, "chunk table": [[1, 2, 0, 3]]}
    counts = ([1, 2, 0, 3],)
    assert not replay([dump(0, counts, wanted, ep=1)]).reproduced
    one = replay([dump(0, counts, wanted, ep=1, found={"chunk table": [[1, 2, 3, 0]]})]).findings[0]
    assert told(one.recorded) == told(one.against_maps) == "chunk table[0, 2]: found 3, expected 0"


def test_padding_is_compared_with_what_the_reference_said() -> None:
    """From a capacity of 3 everything follows, from the map nothing."""
    wanted = {"capacity": 3, "num_out_tokens": 12, "tokens_per_local_expert": [6, 6]}
    one = replay([dump(0, EP2, wanted, found={"num_out_tokens": 6})]).findings[0]
    assert told(one.recorded) == "num_out_tokens: found 6, expected 12"
    assert not replay([dump(0, EP2, wanted)]).reproduced


def test_memory_that_was_used_again_is_recorded() -> None:
    name = "output_splits that call 3 handed out"
    one = replay([dump(0, EP2, {**EP2_WANTED[0], name: [2, 2]}, found={name: [2, 8]})]).findings[0]
    assert told(one.recorded) == told(one.against_maps) == f"{name}[1]: found 8, expected 2"


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("key", "value"),
    [("call", 8), ("order", 3), ("run", "other"), ("num_experts", 8), ("group", [0, 1, 2, 3]), ("tp_size", 2)],
)
def test_dumps_of_different_calls_are_refused(key: str, value: Any) -> None:
    first, second = of_all(EP2_WANTED, EP2)
    with pytest.raises(DumpError, match=rf"the dumps of ranks 0 and 1 are not of one call: {key} .* and "):
        replay([first, with_meta(second, **{key: value})])


def test_two_dumps_of_one_rank_are_refused() -> None:
    with pytest.raises(DumpError, match=r"two dumps of one rank: \[0, 0\]"):
        replay(of_all(EP2_WANTED, EP2)[:1] * 2)


def test_nothing_is_refused() -> None:
    with pytest.raises(DumpError, match="no dumps"):
        replay([])


def test_a_rank_whose_counts_nobody_knows_is_named() -> None:
    own = of_all(EP2_WANTED, EP2)[0]
    with pytest.raises(DumpError, match="nothing tells the counts of rank 1: give its dump too"):
        replay([Dump(own.meta, own.routing_map, None, own.found, own.wanted)])


def test_counts_that_no_run_can_have_are_refused() -> None:
    huge = (EP2[0], [2**31 - 1] * 4)
    with pytest.raises(DumpError, match="counts of no run"):
        replay([dump(0, EP2, EP2_WANTED[0], gathered=huge)])


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: Any) -> SimpleNamespace:
        code = cli.main(["replay", *map(str, arguments)])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Dumps of both ranks; rank 1 read something wrong."""
    wrong = {"output_splits": [3, 9]}
    write_all(tmp_path / "dumps", [of_all(EP2_WANTED, EP2)[0], dump(1, EP2, EP2_WANTED[1], found=wrong)])
    return tmp_path / "dumps"


def write_all(folder: Path, dumps: Sequence[Dump]) -> None:
    for one in dumps:
        write_dump(folder / f"{one.meta.run}-call{one.meta.call}-rank{one.meta.rank}.npz", one)


def test_the_command_says_what_differed_and_who_was_right(run: Any, folder: Path) -> None:
    done = run(folder)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "the run said: verification failed on rank 1",
        "layer 3, call 7: E 4, EP 2 x TP 1, top-1, ranks [0, 1]; mindspeed_moe 0.1.0, megatron-core 0.16.1, "
        "torch 2.13.0",
        "counts: the routing map of rank 0; the routing map of rank 1",
        "rank 0: what was read is what follows from the routing maps",
        "rank 1: reproduced: output_splits[1]: found 9, expected 2; the routing maps say what the reference said; "
        "this version's code is right on these counts: look for a race, a wrong group or a fault of the machine",
    ]


def test_one_dump_is_enough(run: Any, folder: Path) -> None:
    done = run(next(folder.glob("*rank1.npz")))
    assert done.code == 0
    assert "counts: what the reference gathered of rank 0; the routing map of rank 1" in done.out
    assert "rank 1: reproduced: output_splits[1]: found 9, expected 2" in done.out


def test_a_dump_that_is_named_twice_is_one(run: Any, folder: Path) -> None:
    files = sorted(folder.iterdir())
    assert run(*files, folder, folder / ".." / folder.name).out == run(folder).out


def test_json_holds_the_same(run: Any, folder: Path) -> None:
    done = run("--json", folder)
    assert done.code == 0
    difference = {"attribute": "output_splits", "index": [1], "found": 9, "expected": 2}
    nothing = {"recorded": None, "against_maps": None, "reference": None, "code": None}
    assert json.loads(done.out) == {
        "calls": [
            {
                "layer": 3,
                "call": 7,
                "reproduced": True,
                "counts_from": ["the routing map of rank 0", "the routing map of rank 1"],
                "ranks": [
                    {"rank": 0, **nothing},
                    {"rank": 1, **nothing, "recorded": difference, "against_maps": difference},
                ],
            }
        ],
        "left_out": [],
    }


def test_without_a_difference_the_exit_code_is_1(run: Any, folder: Path) -> None:
    done = run(next(folder.glob("*rank0.npz")))
    assert (done.code, done.err) == (1, "")
    assert "reproduced" not in done.out


def test_a_folder_may_hold_dumps_of_several_calls_and_runs(run: Any, folder: Path) -> None:
    """The same call of the same layer, after a new start; and another call."""
    for change in ({"run": "d4e5f6"}, {"call": 8}):
        write_all(folder, [with_meta(one, **change) for one in of_all(EP2_WANTED, EP2)])
    done = run("--json", folder)
    assert done.code == 0, "one of them is reproduced"
    assert sorted((one["call"], one["reproduced"]) for one in json.loads(done.out)["calls"]) == [
        (7, False),
        (7, True),
        (8, False),
    ]


def test_unusable_dumps_end_with_2_and_one_message(run: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("no")
    for path, words in (("empty", "no dump (*.npz) in this folder"), ("text.npz", "not a dump"), ("no", "No such")):
        done = run(folder, tmp_path / path)
        assert (done.code, done.out) == (2, "")
        assert done.err.startswith(f"mindspeed-moe: {tmp_path / path}: ")
        assert words in done.err


def test_a_damaged_dump_in_a_folder_leaves_the_others(run: Any, folder: Path) -> None:
    damaged = sorted(folder.iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:-50])
    done = run(folder)
    assert done.code == 0
    assert done.err.startswith(f"left out: {damaged.resolve()}: ")
    assert "reproduced" in done.out
    assert json.loads(run("--json", folder).out)["left_out"] == [done.err.strip().removeprefix("left out: ")]
    for path in folder.iterdir():
        path.write_bytes(b"PK")
    done = run(folder)
    assert (done.code, done.out) == (2, "")
    assert "none of the dumps can be read" in done.err


def test_a_dump_cannot_steer_the_terminal(run: Any, tmp_path: Path) -> None:
    bad = with_meta(of_all(EP2_WANTED, EP2)[0], told="\x1b[2J gone\nrank 0: all is well")
    write_all(tmp_path, [bad])
    done = run(tmp_path)
    assert "\x1b" not in done.out
    assert len(done.out.splitlines()) == 4


def test_replaying_needs_neither_megatron_nor_a_process_group(folder: Path) -> None:
    script = (
        "import sys; sys.modules['megatron'] = None; from mindspeed_moe.cli import main; "
        "code = main(['replay', sys.argv[1]]); import torch.distributed as dist; "
        "sys.exit(10 + code + 5 * dist.is_initialized())"
    )
    done = python("-c", script, str(folder))
    assert done.returncode == 10, done.stderr
    assert "output_splits[1]: found 9, expected 2" in done.stdout
