"""`mindspeed-moe demo`: bad input ends with one message and exit code 2, before any process is started."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mindspeed_moe.demo.processes
from mindspeed_moe import environment
from mindspeed_moe.cli import main
from mindspeed_moe.demo.messages import Ready, Result, Step
from mindspeed_moe.environment import Found, Probes

LOSSES = (5.5, 4.25)
real_probe = environment.probe_environment


class NoProcesses:
    """In the place of Processes: these tests must end before one is made."""

    def __init__(self, *arguments: Any) -> None:
        raise AssertionError("processes were started")


class Told:
    """In the place of Processes: messages without processes."""

    messages_: tuple[Any, ...] = ()

    def __init__(self, *arguments: Any) -> None:
        pass

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def messages(self) -> Iterator[Any]:
        yield from self.messages_


@pytest.fixture(autouse=True)
def no_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mindspeed_moe.demo.processes, "Processes", NoProcesses)
    monkeypatch.chdir(tmp_path)
    megatron_is(monkeypatch, Found("0.16.1"))


def megatron_is(monkeypatch: pytest.MonkeyPatch, found: Found) -> None:
    found_here = real_probe(Probes(megatron_core=lambda: found))
    monkeypatch.setattr(environment, "probe_environment", lambda: found_here)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["demo", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ep", "3"], "--ep 3: the demo's 8 experts cannot be shared evenly; allowed: 1, 2, 4, 8"),
        (["--tp", "3"], "--tp 3: the demo's 4 attention heads"),
        (["--etp", "5"], "--etp 5:"),
        (["--processes", "5"], "--processes 5: must be a multiple of 4"),
        (["--steps", "0"], "0 is not in the range 1<=x<=2147483647"),
        (["--implementations", "stock,quick"], "unknown 'quick'; allowed: one or more of stock, reference, packed"),
        (["--implementations", ""], "unknown ''"),
        (["--steps", "many"], "'many' is not a valid integer"),
        (["--stepz", "3"], "No such option"),
        (["--text", "absent.txt"], "--text absent.txt: cannot be read: No such file or directory"),
        (["--text", "."], "cannot be read: Is a directory"),
    ],
)
def test_bad_options(capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in fails(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_short_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_bytes(b"x" * 64)
    assert "--text short.txt: has 64 bytes; at least 65 are needed" in fails(capsys, "--text", "short.txt")


def test_unwritable_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert "--out file: cannot be written to: File exists" in fails(capsys, "--out", "file")
    assert "--out file/below: cannot be written to: Not a directory" in fails(capsys, "--out", "file/below")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (Found(problem="not installed"), "megatron-core: not installed; install it"),
        (Found("0.99.0"), "0.99.0"),
        (Found("0.5.0"), "0.5.0"),
    ],
)
def test_megatron_missing_or_unknown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, found: Found, message: str
) -> None:
    megatron_is(monkeypatch, found)
    assert message in fails(capsys)


def told(losses: tuple[float, ...], compared: dict[str, int] | None = None) -> tuple[Any, ...]:
    times = {"calls": 4, "median_us": 100.0, "median_computing_us": 50.0}
    return (
        Ready({"megatron-core": "0.16.1"}),
        Step("stock", 1, 5.5, 0.1),
        Step("stock", 2, 4.25, 0.1),
        Result("stock", LOSSES, 0.2, times),
        Step("packed", 1, losses[0], 0.1),
        Step("packed", 2, losses[1], 0.1),
        Result("packed", losses, 0.2, times, compared),
    )


def run_told(monkeypatch: pytest.MonkeyPatch, losses: tuple[float, ...]) -> int:
    monkeypatch.setattr(Told, "messages_", told(losses))
    monkeypatch.setattr(mindspeed_moe.demo.processes, "Processes", Told)
    return main(["demo", "--steps", "2", "--implementations", "stock,packed", "--out", "out"])


def test_equal_losses_end_well(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run_told(monkeypatch, LOSSES) == 0
    output = capsys.readouterr().out
    assert "every bit" in output
    assert "stock      step 2/2  loss 4.2500" in output
    assert "\x1b" not in output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["bit_identical"] is True
    assert summary["implementations"]["packed"]["losses"] == list(LOSSES)


def test_what_was_verified_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Told, "messages_", told(LOSSES, {"calls": 6, "layers": 3}))
    monkeypatch.setattr(mindspeed_moe.demo.processes, "Processes", Told)
    options = ["--steps", "2", "--implementations", "stock,packed", "--verify", "first", "--out", "out"]
    assert main(["demo", *options]) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert (
        "verify: first: 6 calls of 3 layers of packed in rank 0 compared with the reference; nothing differed" in output
    )
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["implementations"]["packed"]["verified"] == {"calls": 6, "layers": 3}
    assert "verified" not in summary["implementations"]["stock"]


def test_different_losses_do_not(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_told(monkeypatch, (5.5, 4.2500005)) == 1
    captured = capsys.readouterr()
    assert "NO: step 2 on" in captured.out
    assert "the losses differ from those of stock" in captured.err


def test_a_missing_matplotlib_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run_told(monkeypatch, LOSSES) == 0
    assert "loss.png is left out: matplotlib is not installed" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["summary.json"]
