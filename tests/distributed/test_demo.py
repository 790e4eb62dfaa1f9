"""The demo on real processes: equal to the last bit between implementations, equal between layouts, and it learns."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from distributed.layers import has_sequence_dispatcher
from mindspeed_moe.cli import main
from mindspeed_moe.contract import generation_of
from mindspeed_moe.demo.messages import Ready, Result, Step
from mindspeed_moe.demo.processes import Processes
from mindspeed_moe.demo.settings import ALLTOALL, IMPLEMENTATIONS, SEQ, Model, settle
from mindspeed_moe.demo.worker import run_rank
from mindspeed_moe.environment import probe_environment
from oracle.expert_load import loads_of

pytestmark = pytest.mark.megatron
STEPS = 4
SEQUENCES = 4  # in a step, of all data-parallel ranks together


def losses_of(
    tp: int, ep: int, etp: int, processes: int, implementations: tuple[str, ...], dispatcher: str = ALLTOALL
) -> list[tuple[float, ...]]:
    """Train in one layout, with the auxiliary loss off: its value depends on how tokens are spread over the ranks."""
    model = Model(sequence=32, batch=SEQUENCES * tp // processes, aux_loss=0.0)
    settings = settle(
        tp=tp,
        ep=ep,
        etp=etp,
        processes=processes,
        steps=STEPS,
        implementations=implementations,
        model=model,
        dispatcher=dispatcher,
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        Processes(settings.processes, run_rank, f"{folder}/rendezvous", settings) as running,
    ):
        told = list(running.messages())
    assert isinstance(told[0], Ready)
    results = [message for message in told if isinstance(message, Result)]
    assert [result.implementation for result in results] == list(implementations)
    for result in results:
        steps = [one for one in told if isinstance(one, Step) and one.implementation == result.implementation]
        assert [one.done for one in steps] == list(range(1, STEPS + 1))
        assert tuple(one.loss for one in steps) == result.losses
        assert result.preprocess["calls"] == STEPS * model.layers
        assert result.preprocess["median_computing_us"] > 0
    return [result.losses for result in results]


def misplaces_tokens(tp: int, ep: int, etp: int, processes: int) -> bool:
    """Whether Megatron itself trains another model: 0.11 mixes up chunks where EP and TP of the experts are above 1."""
    version = probe_environment().megatron_core.version
    return ep > 1 and etp > 1 and generation_of(str(version)).unfolded_table


@pytest.mark.once
def test_layouts_and_implementations_agree() -> None:
    """One process holds the whole model; every other layout must train the same one, up to the order of sums."""
    (alone,) = losses_of(1, 1, 1, 1, ("stock",))
    assert alone[-1] < alone[0]
    for layout in ((1, 1, 2, 2), (2, 2, 2, 4)):
        runs = losses_of(*layout, IMPLEMENTATIONS)
        assert runs[0] == runs[1] == runs[2], layout
        same = runs[0] == pytest.approx(alone, rel=1e-5)
        assert same is not misplaces_tokens(*layout), layout


def test_the_sequence_dispatcher_trains_the_same_model() -> None:
    if not has_sequence_dispatcher():
        pytest.skip("this release has no MoEAlltoAllSEQTokenDispatcher")
    (alone,) = losses_of(1, 1, 1, 1, ("stock",))
    runs = losses_of(2, 2, 2, 4, IMPLEMENTATIONS, SEQ)
    assert runs[0] == runs[1] == runs[2]
    assert runs[0] == pytest.approx(alone, rel=1e-5)


@pytest.mark.once
def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--steps", "6", "--verify", "always", "--out", str(tmp_path / "out")]) == 0
    captured = capfd.readouterr()
    told = [line for line in captured.err.splitlines() if line.startswith("mindspeed")]
    assert all("puts tokens back at wrong positions" in line for line in told)
    assert ("puts tokens back at wrong positions" in captured.err) is misplaces_tokens(1, 2, 2, 4)
    assert captured.out.count("every bit") == 2
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["settings"]["processes"] == 4
    assert summary["bit_identical"] is True
    assert list(summary["implementations"]) == list(IMPLEMENTATIONS)
    for run in summary["implementations"].values():
        assert len(run["losses"]) == 6
        assert run["last_loss"] < run["first_loss"] - 0.5
        assert run["preprocess"]["calls"] == 12
    assert summary["implementations"]["packed"]["verified"] == {"calls": 12, "layers": 2}
    assert (tmp_path / "out" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "out" / "dumps").exists()
    _check_load(tmp_path / "out" / "telemetry")
    _check_hottest(tmp_path / "out")


def _check_hottest(out: Path) -> None:
    """The expert that the page names first has the most rows in proportion to its layer's mean."""
    times = {
        (layer, expert): sum(rows) * len(next(iter(load.tokens.values()))) / sum(map(sum, load.tokens.values()))
        for layer, load in loads_of(out / "telemetry").items()
        for expert, rows in enumerate(zip(*load.tokens.values(), strict=True))
    }
    (layer, expert), most = max(times.items(), key=lambda one: one[1])
    table = (out / "report.html").read_text(encoding="utf-8").partition("Hottest experts")[2]
    first = re.findall(r"<td>(?:<button[^>]*>)?([^<]*)", table)[:5]
    assert (first[0], first[1]) == (str(layer), str(expert))
    assert float(first[4]) == pytest.approx(most, abs=0.006)


def _check_load(folder: Path) -> None:
    """Every step, layer and rank of packed; and every pair of token and expert arrives once, at one EP rank."""
    lines = [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    loads = [line for line in lines if line["kind"] == "load"]
    assert sorted((one["step"], one["layer"]) for one in loads) == sorted(
        (step, layer) for step in range(6) for layer in (1, 2) for _ in range(4)
    )
    model = Model()
    pairs = 4 * model.batch * model.sequence * model.topk  # of four ranks, each with its own sequences
    for step, layer in {(one["step"], one["layer"]) for one in loads}:
        of_call = [one for one in loads if (one["step"], one["layer"]) == (step, layer)]
        assert sum(one["routed"] for one in of_call) == pairs
        # Two TP ranks of an EP rank hold the same experts, and report the same rows.
        assert sum(sum(one["tokens"]) for one in of_call) == 2 * pairs


@pytest.mark.once
def test_a_failing_rank_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text vanishes between the check and the start."""
    monkeypatch.setattr(sys.modules["mindspeed_moe.cli.demo"], "_check_text", lambda settings: None)
    arguments = ["--ep", "1", "--etp", "1", "--text", str(tmp_path / "gone"), "--out", str(tmp_path)]
    assert main(["demo", *arguments]) == 1
    errors = capsys.readouterr().err
    assert "rank 0 failed" in errors
    assert "Traceback (most recent call last)" in errors
    assert "gone: cannot be read" in errors
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.once
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc for what is left running")
@pytest.mark.parametrize("when", ["starting them", "loss"])
def test_ctrl_c_leaves_nothing_running(tmp_path: Path, when: str) -> None:
    """While processes start, and in the middle of training."""
    command = [sys.executable, "-u", "-m", "mindspeed_moe", "demo", "--steps", "100000", "--out", str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        for line in parent.stdout:
            if when in line:
                break
        deadline = time.monotonic() + 900
        while len(session(parent.pid)) < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(session(parent.pid)) >= 5  # the command and its four processes
        os.killpg(parent.pid, signal.SIGINT)
        _, errors = parent.communicate(timeout=1800)
    assert parent.returncode == 130
    assert [line for line in errors.splitlines() if "mindspeed" in line] == ["mindspeed-moe: interrupted"]
    assert "Traceback" not in errors
    deadline = time.monotonic() + 900
    while session(parent.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert session(parent.pid) == []
    assert not (tmp_path / "summary.json").exists()


def session(leader: int) -> list[int]:
    """Return the processes of a session that are not dead already."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own = stat.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(own) == leader and state != "Z":
            found.append(int(stat.parent.name))
    return found
