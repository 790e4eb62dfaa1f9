"""The reader of telemetry: every step once, damage skipped and counted, nothing believed unchecked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers_telemetry import Run, header, layer_line, load, text_of, write_segment
from mindspeed_moe.errors import ReportError
from mindspeed_moe.report.notes import run_notes
from mindspeed_moe.report.reader import Telemetry, read_folder

# One rank, which owns both experts of layer 3.
LAYER = layer_line(3, experts=2, ep=1, ep_rank=0)


def steps_and_tokens(telemetry: Telemetry, layer: int = 3) -> dict[int, list[int]]:
    (table,) = telemetry.tables[layer]
    return dict(zip(table.steps.tolist(), table.tokens.tolist(), strict=True))


def record(step: int, first: int = 1, **fields: Any) -> dict[str, Any]:
    return load(step, 3, [first, 9], [5], **fields)


def test_a_whole_segment(tmp_path: Path) -> None:
    write_segment(tmp_path, 0, 1, [header(0), LAYER, record(1, 4), record(2, 5, dropped=7, padded=True)])
    telemetry = read_folder(tmp_path)
    (table,) = telemetry.tables[3]
    assert steps_and_tokens(telemetry) == {1: [4, 9], 2: [5, 9]}
    assert (table.dropped.tolist(), table.padded.tolist(), table.sent.tolist()) == ([0, 7], [False, True], [[5], [5]])
    assert (telemetry.records, telemetry.repeated, telemetry.damage.first) == (2, 0, None)
    assert telemetry.headers[0].megatron_core == "0.16.1"


def test_the_later_line_and_the_later_segment_count(tmp_path: Path) -> None:
    # Written in another order than their numbers: the number decides.
    write_segment(tmp_path, 0, 10, [header(0), LAYER, record(2, 30)])
    write_segment(tmp_path, 0, 9, [header(0), LAYER, record(1, 10), record(1, 11), record(2, 20), record(3, 31)])
    telemetry = read_folder(tmp_path)
    assert steps_and_tokens(telemetry) == {1: [11, 9], 2: [30, 9], 3: [31, 9]}
    assert (telemetry.records, telemetry.repeated) == (3, 2)


def test_a_repeated_step_under_another_layout(tmp_path: Path) -> None:
    wider = layer_line(3, experts=3, ep=1, ep_rank=0)
    write_segment(tmp_path, 0, 1, [header(0), LAYER, record(1), record(2)])
    write_segment(tmp_path, 0, 2, [header(0), wider, load(2, 3, [1, 2, 3], [0])])
    tables = read_folder(tmp_path).tables[3]
    assert [(one.layout.experts, one.steps.tolist()) for one in tables] == [(2, [1]), (3, [2])]


def launch(folder: Path, number: int, run: str | None, steps: range, first: int = 1, rank: int = 0) -> None:
    """A segment of a launch, `number` minutes after the hour."""
    told = {"started": f"2026-11-26T10:{number:02}:00Z"} | ({"run": run} if run else {})
    whole = layer_line(3, experts=2, ep=1, ep_rank=0, group=[rank])
    write_segment(folder, rank, number, [header(rank, **told), whole, *(record(step, first) for step in steps)])


def test_a_launch_that_begins_again_is_a_run_of_its_own(tmp_path: Path) -> None:
    launch(tmp_path, 1, "a", range(3), 10)
    launch(tmp_path, 2, "a", range(3, 6), 11)  # the same, in its next file
    launch(tmp_path, 3, "b", range(2), 20)
    launch(tmp_path, 4, "c", range(1, 3), 30)  # goes on from a checkpoint
    telemetry = read_folder(tmp_path)
    assert steps_and_tokens(telemetry) == {0: [20, 9], 1: [30, 9], 2: [30, 9]}
    assert (telemetry.records, telemetry.repeated, telemetry.last_written) == (3, 1, 2)
    (other,) = telemetry.others
    assert (other.word, other.started, other.first, other.last) == ("a", "2026-11-26T10:01:00Z", 0, 5)
    assert other.records == 6
    notes = run_notes(telemetry)
    assert notes == [
        "6 records are not shown, of an older run (begun 2026-11-26T10:01:00Z, steps 0 to 5, `run` a): a later run "
        "began again in the same folder."
    ]


def test_launches_within_a_second_are_told_apart_by_their_files(tmp_path: Path) -> None:
    for number, run in ((1, "z"), (2, "a")):
        lines = [header(0, run=run), LAYER, record(0, number)]
        write_segment(tmp_path, 0, number, lines)
    telemetry = read_folder(tmp_path)
    assert steps_and_tokens(telemetry) == {0: [2, 9]}
    assert [(one.word, one.records) for one in telemetry.others] == [("z", 1)]


def test_a_run_is_told_apart_on_all_of_its_ranks_together(tmp_path: Path) -> None:
    """Nodes without a common file system, so that each has a word of its own; one rank of b has left nothing yet."""
    for rank in (0, 1):
        launch(tmp_path, 1, f"a{rank}", range(4), 10, rank)
    launch(tmp_path, 2, "b0", range(2), 20)
    telemetry = read_folder(tmp_path)
    assert {one.tokens[0, 0] for one in telemetry.tables[3]} == {20}
    assert (telemetry.ranks, sorted(telemetry.headers)) == ((0,), [0])
    assert [(one.ranks, one.records) for one in telemetry.others] == [({0, 1}, 8)]
    launch(tmp_path, 3, "b1", range(2), 21, rank=1)
    telemetry = read_folder(tmp_path)
    assert {one.tokens[0, 0] for one in telemetry.tables[3]} == {20, 21}
    assert telemetry.ranks == (0, 1)


def test_files_that_tell_no_launch_are_read_as_they_were(tmp_path: Path) -> None:
    launch(tmp_path, 1, None, range(4), 10)
    launch(tmp_path, 2, None, range(2), 20)
    telemetry = read_folder(tmp_path)
    assert steps_and_tokens(telemetry) == {0: [20, 9], 1: [20, 9], 2: [10, 9], 3: [10, 9]}
    assert (telemetry.repeated, telemetry.others) == (2, ())
    launch(tmp_path, 3, "a", range(2), 30)
    telemetry = read_folder(tmp_path)
    assert steps_and_tokens(telemetry) == {0: [30, 9], 1: [30, 9]}
    assert [(one.word, one.records) for one in telemetry.others] == [("", 6)]
    launch(tmp_path, 4, None, range(1, 2), 40)  # an older release again, from a checkpoint
    assert steps_and_tokens(read_folder(tmp_path)) == {0: [30, 9], 1: [40, 9]}


@pytest.mark.parametrize("number", [1, 2])
def test_a_damaged_header_stays_with_its_neighbours(tmp_path: Path, number: int) -> None:
    launch(tmp_path, 1, "a", range(2), 10)
    launch(tmp_path, 2, "a", range(2, 4), 11)
    path = tmp_path / f"rank00000.{number:06}.jsonl"
    path.write_bytes(b"{" + path.read_bytes())
    telemetry = read_folder(tmp_path)
    assert (telemetry.records, telemetry.others) == (4, ())


@pytest.mark.parametrize("run", [7, "", "two words", "+", "\x1b[2J", "x" * 65, None, ["a"]])
def test_a_word_that_is_none_is_not_believed(tmp_path: Path, run: Any) -> None:
    write_segment(tmp_path, 0, 1, [header(0, run=run), LAYER, record(1)])
    assert read_folder(tmp_path).headers[0].run == ""


def test_large_counts_are_exact(tmp_path: Path) -> None:
    large = 2**48
    write_segment(tmp_path, 0, 1, [header(0), LAYER, load(large, 3, [large, 3], [large], dropped=large, routed=large)])
    (table,) = read_folder(tmp_path).tables[3]
    assert (table.steps[0], table.tokens[0, 0], table.sent[0, 0], table.dropped[0]) == (large,) * 4


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_truncated_last_line_is_counted_apart(tmp_path: Path, cut: int) -> None:
    path = write_segment(tmp_path, 0, 1, [header(0), LAYER, record(1), record(2)])
    path.write_bytes(path.read_bytes()[:-cut])
    telemetry = read_folder(tmp_path)
    # Without its newline alone, a line is still whole.
    assert sorted(steps_and_tokens(telemetry)) == ([1, 2] if cut == 1 else [1])
    assert (telemetry.damage.truncated, telemetry.damage.malformed) == (int(cut > 1), 0)


HUGE = "1" + "0" * 5000
BAD_LOADS = {
    "not json": b"{nonsense}",
    "not utf-8": b'{"kind":"load","x":"\xff"}',
    "a list": b"[1, 2]",
    "deep": b"[" * 100_000,
    "nothing": b"",
    "nul": b"\0" * 50,
    "no kind": b"{}",
    "unknown kind": b'{"kind":"lode"}',
    "kind is a list": b'{"kind":["load"]}',
    "layer is a list": b'{"kind":"load","layer":[]}',
    **{
        f"{name} {value!r}"[:40]: text_of([record(2) | {name: value}]).strip()
        for name, value in [
            ("step", -1),
            ("step", 1.0),
            ("step", True),
            ("step", None),
            ("step", "1"),
            ("step", 2**48 + 1),
            ("calls", -1),
            ("routed", None),
            ("layer", 4),
            ("layer", None),
            ("tokens", [1]),
            ("tokens", [1, 2, 3]),
            ("tokens", [1, -2]),
            ("tokens", [1, 2.0]),
            ("tokens", [1, True]),
            ("tokens", [1, None]),
            ("tokens", [1, [2]]),
            ("tokens", [1, 2**80]),
            ("tokens", [1, float("nan")]),
            ("tokens", [1, float("inf")]),
            ("tokens", {"0": 1, "1": 2}),
            ("sent_bytes", []),
            ("sent_bytes", [-1]),
            ("sent_bytes", ["5"]),
            ("dropped", -1),
            ("dropped", False),
            ("dropped", 0.5),
            ("padded", 0),
            ("padded", None),
        ]
    },
    "thousands of digits": b'{"kind":"load","layer":3,"step":' + HUGE.encode() + b"}",
}


@pytest.mark.parametrize("name", BAD_LOADS)
def test_a_malformed_line_is_skipped_and_told(tmp_path: Path, name: str) -> None:
    good = text_of([header(0), LAYER, record(1)])
    path = write_segment(tmp_path, 0, 1, [])
    path.write_bytes(good + BAD_LOADS[name] + b"\n" + text_of([record(3)]))
    telemetry = read_folder(tmp_path)
    assert steps_and_tokens(telemetry) == {1: [1, 9], 3: [1, 9]}
    assert (telemetry.damage.malformed, telemetry.damage.truncated) == (1, 0)
    assert telemetry.damage.first is not None
    assert telemetry.damage.first.startswith("rank00000.000001.jsonl:4: ")
    assert len(telemetry.damage.first) < 300
    assert telemetry.damage.first.isprintable()


@pytest.mark.parametrize(
    "fields",
    [
        {"experts": 0},
        {"experts": 10**12},
        {"experts": 5, "ep": 2},
        {"topk": 0},
        {"topk": 3},
        {"ep": 0},
        {"ep_rank": 1},
        {"tp_rank": 1},
        {"tp": 2},
        {"tp": 0},
        {"group": [1]},
        {"group": []},
        {"group": [0, 0], "tp": 2},
        {"group": [0, -1], "tp": 2},
        {"group": "0"},
        {"group": [0.0]},
        {"layer": -1},
        {"layer": 2**70},
        {"numbered": 1},
    ],
)
def test_a_malformed_layout_takes_its_records_along(tmp_path: Path, fields: dict[str, Any]) -> None:
    write_segment(tmp_path, 0, 1, [header(0), LAYER | fields, record(1), LAYER, record(2)])
    telemetry = read_folder(tmp_path)
    assert list(steps_and_tokens(telemetry)) == [2]
    assert telemetry.damage.malformed == 2
    assert "jsonl:2: " in (telemetry.damage.first or "")


def test_another_format_is_not_believed(tmp_path: Path) -> None:
    write_segment(tmp_path, 0, 1, [header(0, format=2), LAYER, record(1)])
    write_segment(tmp_path, 0, 2, [header(0), LAYER, record(2)])
    telemetry = read_folder(tmp_path)
    assert list(steps_and_tokens(telemetry)) == [2]
    assert telemetry.damage.malformed == 3
    assert telemetry.damage.first == ("rank00000.000001.jsonl:1: format: 2; expected: a whole number from 1 to 1")


def test_without_its_header_a_segment_still_counts(tmp_path: Path) -> None:
    path = write_segment(tmp_path, 0, 1, [header(0), LAYER, record(1)])
    path.write_bytes(b"\0\0\n" + path.read_bytes().split(b"\n", 1)[1])
    telemetry = read_folder(tmp_path)
    assert (telemetry.records, telemetry.headers, telemetry.damage.malformed) == (1, {}, 1)


def test_a_line_without_end_is_not_taken_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindspeed_moe.report.segments._MOST_BYTES", 1000)
    path = write_segment(tmp_path, 0, 1, [header(0), LAYER, record(1)])
    path.write_bytes(path.read_bytes() + b"x" * 5500 + b"\n" + text_of([record(2)]))
    telemetry = read_folder(tmp_path)
    assert list(steps_and_tokens(telemetry)) == [1, 2]
    assert telemetry.damage.first == "rank00000.000001.jsonl:4: longer than 1000 bytes"


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    write_segment(tmp_path, 0, 1, [header(0), LAYER, record(1)])
    (tmp_path / "rank00000.000002.jsonl").mkdir()
    damage = read_folder(tmp_path).damage
    assert (damage.unreadable, damage.malformed) == (1, 0)
    assert "rank00000.000002.jsonl" in (damage.first or "")


@pytest.mark.parametrize("name", ["rank0.1.jsonl", "notes.txt", "rank00000.000001.jsonl.tmp"])
def test_a_folder_without_telemetry(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}\n")
    with pytest.raises(ReportError, match=r"holds no telemetry; expected: files such as rank00000\.000001\.jsonl"):
        read_folder(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="cannot be read"):
        read_folder(tmp_path / "absent")


def test_files_without_a_record(tmp_path: Path) -> None:
    write_segment(tmp_path, 0, 1, [header(0), LAYER, {"kind": "oops"}])
    with pytest.raises(ReportError, match=r"1 files without one usable load record; .*jsonl:3: kind: 'oops'"):
        read_folder(tmp_path)


def test_rotated_segments_of_many_ranks(tmp_path: Path) -> None:
    run = Run(steps=tuple(range(10)), segment_steps=3)
    run.write(tmp_path)
    (tmp_path / "rank00001.000001.jsonl").unlink()
    telemetry = read_folder(tmp_path)
    first = {
        table.layout.group.index(rank): table.steps[0]
        for rank in range(4)
        for table in telemetry.tables[3]
        if table.layout.ep_rank == rank
    }
    assert first == {0: 0, 1: 3, 2: 0, 3: 0}
    assert telemetry.records == 2 * (4 * 10 - 3)
