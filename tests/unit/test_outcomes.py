"""How a run of the suite becomes data: outcomes by implementation, the record of a release, the ledgers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from helpers_outcomes import Outcomes, subjects
from mindspeed_moe.evidence import read_evidence
from npu.evidence import ledgers, wanted
from npu.floor import Case

ROOT = Path(__file__).resolve().parents[2]
ON_CPU = ("ranks",)


@pytest.mark.parametrize(
    ("name", "params", "dispatcher", "implementations"),
    [
        ("test_layer", {"tp": 1}, "alltoall", ("packed", "reference")),
        ("test_sequence_dispatcher", {}, "alltoall_seq", ("packed", "reference")),
        ("test_a", {"dispatcher": "alltoall_seq"}, "alltoall_seq", ("packed", "reference")),
        ("test_a", {"layout": (1, 2, "alltoall_seq"), "implementation": "reference"}, "alltoall_seq", ("reference",)),
        ("test_a", {"case": Case(1, 2, 4, "drop", "packed")}, "alltoall", ("packed",)),
        ("test_packed_never_costs_more_than_stock", {}, "alltoall", ("packed",)),
        ("test_the_seed_costs", {}, "alltoall", ("reference",)),
        ("test_stock_costs", {}, "alltoall", ()),
        ("test_right", {"implementation": "stock"}, "alltoall", ()),
    ],
)
@pytest.mark.parametrize(("fixture", "device"), [("ranks", "cpu"), ("measured", "npu")])
def test_what_a_test_runs(
    fixture: str, device: str, name: str, params: Any, dispatcher: str, implementations: tuple[str, ...]
) -> None:
    expected = tuple((device, dispatcher, one) for one in implementations)
    assert subjects(name, params, ("tmp_path", fixture)) == expected
    assert subjects(name, params, ("tmp_path",)) == (), "it runs nothing on a device"


def reported(*reports: tuple[str, str]) -> list[Any]:
    told = ("file", 1, "Skipped: not here")
    return [
        SimpleNamespace(
            nodeid="one", when=when, outcome=how, passed=how == "passed", skipped=how == "skipped", longrepr=told
        )
        for when, how in reports
    ]


@pytest.mark.parametrize(
    ("reports", "outcome"),
    [
        (reported(("setup", "passed"), ("call", "passed"), ("teardown", "passed")), "passed"),
        (reported(("setup", "skipped"), ("teardown", "passed")), "skipped"),
        (reported(("setup", "passed"), ("call", "skipped"), ("teardown", "passed")), "skipped"),
        (reported(("setup", "failed"), ("teardown", "passed")), "failed"),
        (reported(("setup", "passed"), ("call", "passed"), ("teardown", "failed")), "failed"),
    ],
)
def test_a_test_counts_once(tmp_path: Path, reports: list[Any], outcome: str) -> None:
    outcomes = Outcomes(tmp_path / "outcomes.json")
    items: Any = [SimpleNamespace(nodeid="one", name="test_layer", fixturenames=ON_CPU)]
    outcomes.pytest_collection_modifyitems(items)
    for report in reports:
        outcomes.pytest_runtest_logreport(report)
    outcomes.pytest_sessionfinish(1)
    told = json.loads(outcomes.file.read_text())
    counts = {"passed": 0, "failed": 0, "skipped": 0, outcome: 1}
    named = [{"device": "cpu", "dispatcher": "alltoall", "implementation": one} for one in ("packed", "reference")]
    assert told["suites"] == [{**one, **counts} for one in named]
    assert (told["exit"], told["total"]) == (1, counts)
    assert told["skips"] == ({"not here": 1} if outcome == "skipped" else {})


# ------------------------------------------------------------------------------------------------ the record


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """ci/evidence.py, with a record of its own."""
    spec = importlib.util.spec_from_file_location("ci_evidence", ROOT / "ci/evidence.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "FILE", tmp_path / "evidence.json")
    monkeypatch.setattr(module, "read_evidence", lambda: read_evidence(tmp_path / "evidence.json"))
    return module


def files(folder: Path, *, failed: int = 0, code: int = 0) -> list[str]:
    named = {"dispatcher": "alltoall", "implementation": "packed"}
    counts = {"passed": 4, "failed": failed, "skipped": 1}
    cost = dict.fromkeys(("kernels", "collectives", "copies", "records", "event_waits", "stream_synchronizations"), 1)
    nothing = {"device": "", "dispatcher": "", "implementation": "", "passed": 2, "failed": 0, "skipped": 0}
    data: dict[str, Any] = {
        "cpu": {"exit": code, "suites": [nothing, {"device": "cpu", **named, **counts}]},
        "one_process": {"exit": 0, "suites": [nothing]},
        "npu": {"exit": 0, "suites": [{"device": "npu", **named, **counts}]},
        "ledgers": [{**named, "tokens_per_expert": "host", **cost}],
    }
    for name, content in data.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return [str(folder / f"{name}.json") for name in data]


def test_a_run_is_recorded(recorder: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recorder.main("record", "0.12.1", "llm", "2.13.0", *files(tmp_path)) == 0
    run = read_evidence(recorder.FILE).releases["0.12.1"]
    counts = [(one.device, one.passed, one.failed, one.skipped) for one in run.suites]
    assert counts == [("cpu", 4, 0, 1), ("npu", 4, 0, 1)]
    assert (run.one_process.passed, run.torch_npu, len(run.ledgers)) == (2, "2.13.0", 1)
    told = capsys.readouterr().out
    assert told.startswith("0.12.1  cpu: alltoall packed 4 passed, 0 failed, 1 skipped | simulated npu: ")
    assert len(told.splitlines()) == 1


def test_failures_are_recorded_and_told(recorder: ModuleType, tmp_path: Path) -> None:
    assert recorder.main("record", "0.12.1", "llm", "2.13.0", *files(tmp_path, failed=1, code=1)) == 1
    assert read_evidence(recorder.FILE).releases["0.12.1"].suites[0].failed == 1


def test_nothing_is_recorded_when_pytest_itself_failed(recorder: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cpu\.json: pytest ended with exit code 2; nothing is recorded"):
        recorder.main("record", "0.12.1", "llm", "2.13.0", *files(tmp_path, code=2))
    assert not recorder.FILE.exists()


# ------------------------------------------------------------------------------------------------ the ledgers

COST = {
    "kernels": 1,
    "collectives": 1,
    "copies": 1,
    "records": 4,
    "event_waits": 1,
    "stream_synchronizations": 0,
    "copied": 64,
}
CASE = wanted(("alltoall",))[-1]


def test_ledgers_are_of_stock_reference_and_packed() -> None:
    cases = wanted(("alltoall", "alltoall_seq"))
    found = ledgers({case: [{"wrong": "", "cost": COST}] * 2 for case in cases})
    named = [tuple(one[key] for key in ("dispatcher", "implementation", "tokens_per_expert")) for one in found]
    assert [one[1:] for one in named] == [
        ("stock", "host"),
        ("reference", "device"),
        ("packed", "device"),
        ("packed", "host"),
    ] * 2
    assert [one[0] for one in named[:4]] == ["alltoall"] * 4
    assert [one[0] for one in named[4:]] == ["alltoall_seq"] * 4
    assert all("copied" not in one for one in found)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"wrong": "input_splits: found 1", "cost": COST}, "the results are wrong: input_splits: found 1"),
        ({"wrong": "", "cost": {**COST, "copies": 2}}, "the ranks differ"),
    ],
)
def test_a_ledger_of_wrong_results_is_refused(other: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ledgers({CASE: [{"wrong": "", "cost": COST}, other]})
