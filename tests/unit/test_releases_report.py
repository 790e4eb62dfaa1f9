"""`mindspeed-moe doctor --releases`: the matrix with reasons, evidence and ledgers, on any machine."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from helpers_process import python
from mindspeed_moe import cli
from mindspeed_moe.cli import releases
from mindspeed_moe.cli.releases import report_releases
from mindspeed_moe.contract import GENERATIONS
from mindspeed_moe.dispatch_table import DEVICES, DISPATCHERS, rows_of
from mindspeed_moe.evidence import Evidence, read_evidence
from mindspeed_moe.tables import render

NUMBERS = {"kernels": 6, "collectives": 1, "copies": 5, "records": 14, "event_waits": 1, "stream_synchronizations": 0}


def a_run(failed: int = 0) -> dict[str, Any]:
    suites = [
        {
            "device": device,
            "dispatcher": "alltoall",
            "implementation": one,
            "passed": 41,
            "failed": failed,
            "skipped": 3,
        }
        for device in ("npu", "cpu")
        for one in ("packed", "reference")
    ]
    stock = {"dispatcher": "alltoall", "implementation": "stock", "tokens_per_expert": "host", **NUMBERS}
    packed = {**stock, "implementation": "packed", "kernels": 1, "copies": 1, "records": 4}
    return {
        "date": "2026-01-31",
        "stack": "llm",
        "python": "3.10.13",
        "torch": "2.13.0",
        "torch_npu": "2.13.0",
        "one_process": {"passed": 9, "failed": 0, "skipped": 0},
        "suites": suites,
        "ledgers": [stock, packed],
    }


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> Evidence:
    """Runs with 0.16.1, 0.16.2 and 0.17.1, the last with failures."""
    runs = {"0.16.1": a_run(), "0.16.2": a_run(), "0.17.1": a_run(failed=2)}
    found = Evidence.model_validate_json(json.dumps({"releases": runs}))
    monkeypatch.setattr(releases, "read_evidence", lambda: found)
    return found


def cell(device: str, dispatcher: str, release: str) -> dict[str, Any]:
    (found,) = (
        one
        for one in report_releases().to_dict()["cells"]
        if (one["device"], one["dispatcher"]) == (device, dispatcher) and release in one["releases"]
    )
    return found


def test_every_cell_is_there_once() -> None:
    cells = report_releases().to_dict()["cells"]
    keys = [(one["device"], one["dispatcher"], one["generation"]) for one in cells]
    assert len(set(keys)) == len(keys) == len(DEVICES) * len(DISPATCHERS) * len(GENERATIONS)
    for key, one in zip(keys, cells, strict=True):
        assert one["implementations"] == [*(row.implementation for row in rows_of(*key)), "stock"]
        assert one["implementation"] == one["implementations"][0]
        assert one["reason"]
        assert one["evidence"]
        assert one["simulated"] == (one["device"] == "npu")


def test_a_cell_of_the_npu(evidence: Evidence) -> None:
    found = cell("npu", "alltoall", "0.16")
    assert found["evidence"].startswith("simulated: ")
    assert found["evidence"].endswith("; no run without failures recorded with 0.17.1")
    assert found["rejected"] == {"reference": "packed stands before it", "stock": "packed stands before it"}
    runs = [(one["release"], one["implementation"], one["passed"], one["failed"]) for one in found["suites"]]
    assert sorted(runs) == [("0.16.1", "packed", 41, 0), ("0.16.2", "packed", 41, 0), ("0.17.1", "packed", 41, 2)]
    costs = [(one["release"], one["implementation"], one["kernels"], one["copies"]) for one in found["ledgers"]]
    assert costs[:2] == [("0.16.1", "stock", 6, 5), ("0.16.1", "packed", 1, 1)]


def test_a_cell_of_the_cpu_has_runs_and_no_ledger(evidence: Evidence) -> None:
    found = cell("cpu", "alltoall", "0.17")
    assert found["unproved"] == ["0.17.1"]
    assert len(found["suites"]) == 3
    assert found["ledgers"] == []


def test_cells_without_a_run_or_a_row(evidence: Evidence) -> None:
    on_gpu = cell("cuda", "alltoall", "0.12")
    assert on_gpu["evidence"].startswith("not measured")
    assert (on_gpu["suites"], on_gpu["unproved"]) == ([], [])
    absent = cell("cpu", "alltoall_seq", "0.16")
    assert (absent["implementation"], absent["evidence"]) == ("stock", "Megatron's own")
    assert absent["reason"] == "Megatron has no such dispatcher in this release"


def test_the_tables(evidence: Evidence) -> None:
    text = render(*report_releases().parts())
    assert max(map(len, text.splitlines())) <= 120
    words = " ".join(text.split())
    assert "alltoall: what runs where; `auto` takes the first" in words
    assert "npu (simulated) packed, reference, stock" in words
    assert "0.16.1 npu (simulated) alltoall packed 41 0 3 2026-01-31 llm" in words
    assert "Ledger of one dropless call on the simulated npu, EP = 2, TP = 1, L = 4" in words
    # Releases that cost the same share a line.
    assert "alltoall stock host 6 1 5 14 1 0 0.16.1, 0.16.2, 0.17.1" in words


def test_the_command_asks_nothing_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise AssertionError("the machine was looked at")

    monkeypatch.setattr(importlib.import_module("mindspeed_moe.cli.doctor"), "probe_environment", fail)
    assert cli.main(["doctor", "--releases"]) == 0
    assert "not measured" in capsys.readouterr().out
    assert cli.main(["doctor", "--releases", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ledger_of"].startswith("one dropless call on the simulated npu")
    assert told["runs"].keys() == read_evidence().releases.keys()


def test_without_megatron_and_torch_npu(tmp_path: Path) -> None:
    for name in ("megatron", "torch_npu", "mindspeed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise AssertionError('{name} was imported')")
    done = python("-m", "mindspeed_moe", "doctor", "--releases", "--json", path=(tmp_path,))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cells"]


def test_a_broken_record_is_one_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "evidence.json"
    file.write_text('{"releases": 1}')
    monkeypatch.setattr(releases, "read_evidence", lambda: read_evidence(file))
    assert cli.main(["doctor", "--releases"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("mindspeed-moe: evidence.json: releases: ")


def test_contract_and_releases_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--contract", "--releases"]) == 2
    assert "--contract and --releases exclude each other" in capsys.readouterr().err
