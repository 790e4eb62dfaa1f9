"""`mindspeed-moe selftest`: its options, exit codes, and what it prints; the run itself is replaced."""

from __future__ import annotations

import io
import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mindspeed_moe.cli import main
from mindspeed_moe.environment import Found, Probes, probe_environment
from mindspeed_moe.selftest import launch
from mindspeed_moe.selftest.report import FAILED, PASSED, Outcome, Report
from mindspeed_moe.selftest.steps import ALLTOALL, BARE, DROPLESS, Contestant, Layout, Step
from mindspeed_moe.selftest.verdicts import Problem

STEP = Step(Layout(1, 1, 1), ALLTOALL, DROPLESS, Contestant("stock"), BARE, load=False)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command asks for; the last element is the outcome that the run is to have."""
    calls: list[Any] = [Outcome(STEP, PASSED, 0.1)]

    def selftest_here(environment: Any, device: str, wanted: Any, *, progress: Any, tell: Any) -> Report:
        report = Report("here", wanted.seed, 1, (), [calls[-1]])
        calls.insert(0, (device, wanted))
        progress(0, 1, str(STEP))
        tell(report)
        return report

    monkeypatch.setattr(launch, "selftest_here", selftest_here)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_defaults(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--device", "cpu"]) == 0
    assert asked[0] == ("cpu", launch.Wanted((), True, 0, timedelta(seconds=60)))
    told = capsys.readouterr()
    assert told.out.rstrip().endswith("selftest passed: 1 passed (seed 0)")
    assert "for more start several with torchrun" in told.err


def test_options(asked: list[Any]) -> None:
    words = ["--only", "EP 2", "--only", "load", "--no-load", "--seed", "5", "--step-limit", "9"]
    assert main(["selftest", "--device", "cpu", *words]) == 0
    assert asked[0][1] == launch.Wanted(("EP 2", "load"), False, 5, timedelta(seconds=9))


def test_json_and_a_file(asked: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    out = tmp_path / "report.json"
    assert main(["selftest", "--device", "cpu", "--json", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["counts"][PASSED] == 1
    assert capsys.readouterr().out == ""


def test_a_failure_is_exit_code_1(asked: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    asked[-1] = Outcome(STEP, FAILED, 0.1, (Problem(str(STEP), 0, "output[1]: found 2, expected 3"),))
    assert main(["selftest", "--device", "cpu"]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "EP 1, TP 1, L 1; alltoall; dropless; stock; bare collectives; idle; rank 0: output[1]: found 2" in told


def test_other_ranks_say_nothing(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["selftest", "--device", "cpu"]) == 0
    assert "note: one process" not in capsys.readouterr().err


@pytest.mark.parametrize(("rank", "drawn"), [("0", True), ("1", False)])
def test_the_bar_is_drawn_on_the_first_rank_alone(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, rank: str, drawn: bool
) -> None:
    screen = io.StringIO()
    module = sys.modules["mindspeed_moe.cli.selftest"]
    monkeypatch.setattr(module, "Console", lambda **given: Console(file=screen, force_terminal=True, width=200))
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["selftest", "--device", "cpu"]) == 0
    assert (str(STEP) in screen.getvalue()) is drawn


@pytest.mark.parametrize("words", [["--step-limit", "0"], ["--seed", "-1"], ["--device", "tpu"], ["more"]])
def test_user_errors_are_exit_code_2(words: list[str]) -> None:
    assert main(["selftest", *words]) == 2


def test_without_megatron_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    environment = probe_environment(Probes(megatron_core=Found, megatron_folders=lambda: ()))
    monkeypatch.setattr(sys.modules["mindspeed_moe.cli.selftest"], "probe_environment", lambda: environment)
    assert main(["selftest", "--device", "cpu"]) == 2
    assert "selftest runs the plugin in Megatron's dispatchers, and cannot without" in capsys.readouterr().err
