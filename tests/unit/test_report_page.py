"""The page: it holds the data, runs only its own scripts, escapes what files say, and tells what is missing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers_telemetry import Run, header, layer_line, load, write_segment
from mindspeed_moe.report.encode import pack_counts, pack_floats
from mindspeed_moe.report.notes import notes_of, ranges
from mindspeed_moe.report.page import matrix, page_of
from mindspeed_moe.report.reader import read_folder
from mindspeed_moe.report.summary import summarize
from oracle.expert_load import loads_of

SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


class Parsed(HTMLParser):
    """The tags, the text outside of scripts and styles, and the data of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.data = ""
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = dict(attrs).get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "data":
            self.data += data
        elif self.inside not in ("script", "style"):
            self.text += " " + " ".join(data.split())


def unpacked(packed: dict[str, Any]) -> list[float | None]:
    """What the page's `unpack` does, byte by byte."""
    planes = zlib.decompress(base64.b64decode(packed["data"]))
    width = int(packed["kind"][1])
    count = len(planes) // width
    numbers = [bytes(planes[plane * count + at] for plane in range(width)) for at in range(count)]
    if packed["kind"] == "f4":
        floats = [float(np.frombuffer(number, "<f4")[0]) for number in numbers]
        return [None if one != one else one for one in floats]
    whole = [int.from_bytes(number, "little") for number in numbers]
    return [None if one == 256**width - 1 else one / packed["divisor"] for one in whole]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Run(copies=2).write(tmp_path_factory.mktemp("run") / "run 1", dropped=3)


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return page_of(summarize(read_folder(folder)), folder.name)


def test_the_data_is_what_the_oracle_says(folder: Path, page: str) -> None:
    data = json.loads(Parsed(page).data)
    oracle = loads_of(folder)
    assert [one["layer"] for one in data["layers"]] == list(oracle)
    assert data["first"] == data["last"] == list(range(1, 21))
    for one in data["layers"]:
        expected = oracle[one["layer"]]
        assert unpacked(one["tokens"]) == [
            count for row in zip(*expected.tokens.values(), strict=True) for count in row
        ]
        assert one["imbalance"] == pytest.approx(list(expected.imbalance.values()), rel=1e-4)
        assert one["dropped"] == list(expected.dropped.values()) == [24] * 20
        assert unpacked(one["sent"]) == pytest.approx([count for row in expected.sent for count in row], rel=1e-6)
    both = np.array(oracle[3].sent) + np.array(oracle[4].sent)
    assert unpacked(data["sentByAll"]["4"]) == pytest.approx(both.ravel().tolist(), rel=1e-6)


def test_the_text_tells_what_it_is_about(page: str) -> None:
    text = Parsed(page).text
    for part in ("run 1", "cpu", "0.16.1", "2.13.0", "EP 4, TP 1, 2 copies", "1 to 20", "3 to 4", "top-2"):
        assert part in text, part
    assert "Before you read on" not in text


def test_only_its_own_scripts_may_run_and_nothing_is_fetched(page: str) -> None:
    parsed = Parsed(page)
    (policy,) = (one["content"] for tag, one in parsed.tags if one.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    allowed = re.search(r"script-src (.*)", policy)
    assert allowed is not None
    scripts = SCRIPT.findall(page)
    assert len(scripts) == 3
    digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts]
    assert allowed[1].split() == [f"'sha256-{one}'" for one in digests]
    fetching = [one for _, one in parsed.tags if one.get("src") or (one.get("href") or "data:,") != "data:,"]
    assert fetching == []


EVIL = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)> & \" ' $data ${style}"


def test_text_of_files_stays_text(tmp_path: Path) -> None:
    # A telemetry folder from somebody else: every text field of it, and the folder's own name.
    lines = [
        header(0, device=EVIL[:70], torch=EVIL[-70:], megatron_core="\x1b[31m\u202eevil", started=EVIL),
        layer_line(3, experts=2, ep=1, ep_rank=0),
        load(1, 3, [1, 2], [3]),
        {"kind": EVIL},
    ]
    write_segment(tmp_path, 0, 1, lines)
    summary = summarize(read_folder(tmp_path))
    parsed = Parsed(page_of(summary, EVIL))
    tags = [tag for tag, _ in parsed.tags]
    assert (tags.count("script"), tags.count("img")) == (4, 0)
    assert EVIL in parsed.text
    assert EVIL[:70] in parsed.text
    assert "\x1b" not in parsed.text
    json.loads(parsed.data)


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    Run(layers=(3, 4), steps=(1, 2, 3, 50, 51)).write(tmp_path, padded=True)
    (tmp_path / "rank00002.000001.jsonl").unlink()
    path = tmp_path / "rank00001.000001.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    again = tmp_path / "rank00000.000002.jsonl"
    again.write_bytes((tmp_path / "rank00000.000001.jsonl").read_bytes() + b"oops\n")
    notes = "\n".join(notes_of(summarize(read_folder(tmp_path))))
    for part in (
        "Drop and pad was on in every layer",
        "Of 4 ranks these left no file here: 2.",
        "In 100.0% of the steps (all layers together) a rank did not report though others did;",
        "EP ranks concerned: 1-2.",
        "No steps were recorded between 3 and 50.",
        "10 records were replaced by a later one",
        "1 file ends in the middle of a line",
        "1 line was skipped",
        "The first place: rank00000.000002.jsonl:14: not one JSON object",
    ):
        assert part in notes, part


def test_an_older_run_that_went_further_is_told(tmp_path: Path) -> None:
    """Training goes on from a checkpoint of step 12; the run before had come to step 20."""
    for rank, number, steps in ((0, 1, range(10, 21)), (0, 2, range(13, 16)), (1, 1, range(10, 21)), (1, 2, (13, 14))):
        lines = [header(rank), layer_line(3, experts=4, ep=2, ep_rank=rank)]
        write_segment(tmp_path, rank, number, [*lines, *(load(step, 3, [1, 2], [3, 4]) for step in steps)])
    notes = notes_of(summarize(read_folder(tmp_path)))
    assert "Steps 16 to 20 are of an older run: the newest began again and has come to 15." in notes
    write_segment(tmp_path, 0, 3, [header(0), layer_line(3, 4, 2, 0), load(20, 3, [1, 2], [3, 4])])
    assert not any("older run" in one for one in notes_of(summarize(read_folder(tmp_path))))


def test_layers_without_a_number_of_megatrons_are_told(tmp_path: Path) -> None:
    lines = [header(0), layer_line(0, 2, 1, 0, numbered=False), layer_line(1, 2, 1, 0)]
    write_segment(tmp_path, 0, 1, [*lines, load(1, 0, [1, 2], [3]), load(1, 1, [1, 2], [3])])
    (note,) = (one for one in notes_of(summarize(read_folder(tmp_path))) if "first calls" in one)
    assert note.startswith("Layer 0: numbered by first calls, usually because the model was built before the plugin")


def test_nothing_complete_is_no_crash(tmp_path: Path) -> None:
    lines = [header(0), layer_line(3, experts=4, ep=2, ep_rank=0), load(1, 3, [1, 2], [3, 4], dropped=None)]
    write_segment(tmp_path, 0, 1, lines)
    text = Parsed(page_of(summarize(read_folder(tmp_path)), "x")).text
    assert text.count("not known") >= 2
    assert "there is no step in which every rank has reported" in text


def test_bins_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindspeed_moe.report.summary.MOST_COLUMNS", 10)
    monkeypatch.setattr("mindspeed_moe.report.summary.LEAST_COLUMNS", 1)
    Run(layers=(3,)).write(tmp_path)
    text = Parsed(page_of(summarize(read_folder(tmp_path)), "x")).text
    assert "The 20 recorded steps are drawn in 10 columns of up to 2 steps; a column shows the mean" in text


@pytest.mark.parametrize(
    ("values", "kind", "divisor"),
    [
        ([0, 1, 65534], "u2", 1),
        ([0, 65535], "u4", 1),
        ([0, 2**32 - 3], "u4", 1),
        ([0, 2**40], "f4", 1),
        ([0.125, 3], "u2", 1000),
        ([0.5, 30], "u2", 100),
        ([0.5, 300], "u2", 10),
        ([0.5, 6000], "u2", 1),
        ([0.5, 7000, *[0.25] * 1000], "u2", 1),
        ([0.5, 600, *[0.25] * 1000], "u2", 100),
        ([0.5, 70_000], "u4", 1),
        ([], "u2", 1),
    ],
)
def test_counts_are_packed_small(values: list[float], kind: str, divisor: int) -> None:
    packed = pack_counts(np.array([*values, np.nan]))
    assert (packed["kind"], packed["divisor"]) == (kind, divisor)
    *found, unknown = unpacked(packed)
    assert unknown is None
    assert found == pytest.approx(values, abs=0.5 / divisor if kind != "f4" else 0)


def test_floats_keep_what_is_not_known() -> None:
    assert unpacked(pack_floats(np.array([1.5, np.nan, 2**60]))) == [1.5, None, 2**60]


def test_many_ranks_are_put_together() -> None:
    sent = np.arange(25.0).reshape(5, 5)
    packed = matrix(sent, 3)
    assert (packed["block"], packed["side"]) == (2, 3)
    assert unpacked(packed)[0] == 0 + 1 + 5 + 6
    assert sum(one or 0 for one in unpacked(packed)) == sent.sum()
    assert matrix(sent, 5)["block"] == 1


def test_ranges_of_ranks() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert ranges(range(0, 20, 2)) == "0, 2, 4, 6, 8, 10 and 4 more ranges"
