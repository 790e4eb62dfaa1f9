"""How a run of the suite becomes data: pytest's JUnit file, a line of the table, the record of a release."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mindspeed_moe.evidence import read_evidence

ROOT = Path(__file__).resolve().parents[2]

TESTS = """
import pytest

pytestmark = pytest.mark.proves(device="cpu")

@pytest.fixture
def breaks():
    yield
    raise ValueError("afterwards")

@pytest.mark.parametrize("implementation", ["packed", "stock"])
def test_one_implementation(implementation):
    pass

@pytest.mark.proves(dispatcher="alltoall_seq")
def test_a_closer_mark():
    pytest.skip("not here")

@pytest.mark.parametrize("dispatcher", ["alltoall_seq"])
def test_a_parameter(dispatcher):
    assert False

def test_that_breaks_afterwards(breaks):
    pass

def test_that_fails_and_breaks_afterwards(breaks):
    assert False

@pytest.mark.proves(device="")
def test_that_proves_nothing(record_testsuite_property):
    record_testsuite_property("ledger", '{"kernels": 2}')
"""


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"ci_{name}", ROOT / f"ci/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_a_run_leaves(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    junit = tmp_path / "junit.xml"
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-c", ROOT / "pyproject.toml", "--rootdir", tmp_path]
    run = [*map(str, command), "--junitxml", str(junit), str(tmp_path / "test_some.py")]
    done = subprocess.run(run, cwd=ROOT / "tests", capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    told = script("table").outcomes(junit)
    assert {name: told[name] for name in ("passed", "failed", "skipped")} == {"passed": 3, "failed": 3, "skipped": 1}
    assert told["skips"] == {"not here": 1}
    assert told["ledgers"] == [{"kernels": 2}]
    assert told["proved"] == {
        "cpu alltoall packed": {"passed": 1, "failed": 2, "skipped": 0},
        "cpu alltoall reference": {"passed": 0, "failed": 2, "skipped": 0},
        "cpu alltoall_seq packed": {"passed": 0, "failed": 1, "skipped": 1},
        "cpu alltoall_seq reference": {"passed": 0, "failed": 1, "skipped": 1},
    }


# ------------------------------------------------------------------------------------------------ the record


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """ci/evidence.py, with a record of its own."""
    module = script("evidence")
    monkeypatch.setattr(module, "FILE", tmp_path / "evidence.json")
    monkeypatch.setattr(module, "read_evidence", lambda: read_evidence(tmp_path / "evidence.json"))
    return module


def table(folder: Path, *, failed: int = 0, **results: str) -> str:
    counts = {"passed": 4, "failed": failed, "skipped": 1}
    cost = dict.fromkeys(("kernels", "collectives", "copies", "records", "event_waits", "stream_synchronizations"), 1)
    ledger = {"dispatcher": "alltoall", "implementation": "packed", "tokens_per_expert": "host", **cost}
    on = {"stack": "llm", "python": "3.10.1", "torch": "2.7.1", "torch_npu": "2.7.1.post8", "result": "passed"}
    steps: dict[str, dict[str, Any]] = {
        "parity": {**counts, "proved": {"cpu alltoall packed": counts}, "ledgers": []},
        "one process": {"passed": 2, "failed": 0, "skipped": 0, "proved": {}, "ledgers": []},
        "ledger": {**counts, "proved": {"npu alltoall packed": counts}, "ledgers": [ledger]},
    }
    lines = [{**on, "what": name, **step} for name, step in steps.items()]
    for line in lines:
        line["result"] = results.get(line["what"], line["result"])
    file = folder / "llm-0.12.1.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines if line["result"]))
    return str(file)


def test_a_run_is_recorded(recorder: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recorder.main("0.12.1", table(tmp_path)) == 0
    run = read_evidence(recorder.FILE).releases["0.12.1"]
    counts = [(one.device, one.passed, one.failed, one.skipped) for one in run.suites]
    assert counts == [("cpu", 4, 0, 1), ("npu", 4, 0, 1)]
    assert (run.one_process.passed, run.stack, run.torch_npu, len(run.ledgers)) == (2, "llm", "2.7.1.post8", 1)
    told = capsys.readouterr().out
    assert told.startswith("0.12.1 on llm: cpu alltoall packed: 4 passed, 0 failed; npu ")
    assert len(told.splitlines()) == 1


def test_failures_are_recorded_and_told(recorder: ModuleType, tmp_path: Path) -> None:
    assert recorder.main("0.12.1", table(tmp_path, failed=1, parity="failed (1)")) == 1
    assert read_evidence(recorder.FILE).releases["0.12.1"].suites[0].failed == 1


@pytest.mark.parametrize("result", ["failed (2)", "not run: no CPU build", "no such test", ""])
def test_nothing_is_recorded_of_a_run_that_is_not_whole(recorder: ModuleType, tmp_path: Path, result: str) -> None:
    told = result.replace("(", r"\(").replace(")", r"\)") or "not run"
    with pytest.raises(ValueError, match=rf"llm-0\.12\.1\.jsonl: step 'ledger': {told}; nothing is recorded"):
        recorder.main("0.12.1", table(tmp_path, ledger=result))
    assert not recorder.FILE.exists()
