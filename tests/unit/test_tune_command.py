"""`mindspeed-moe tune`: its options, what it refuses, and what it says."""

from __future__ import annotations

import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from helpers_tuned import DATA
from mindspeed_moe.bench.timing import Spread
from mindspeed_moe.cli import main
from mindspeed_moe.config import load_config
from mindspeed_moe.config.tuned import Tuned, read_tuned
from mindspeed_moe.environment import probe_environment
from mindspeed_moe.planning import decide
from mindspeed_moe.preprocess.counts import COUNTS
from mindspeed_moe.tune import launch, session
from mindspeed_moe.tune.launch import Found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the command asks for, which is not run."""
    calls = []

    def tune_here(environment: Any, device: str, shape: Any, out: Path, **options: Any) -> Found:
        calls.append({"device": device, **shape.model_dump(), "out": out, **options})
        spreads = {"counts sum": Spread(9.0, 10.0, 11.0), "defaults": Spread(11.0, 12.0, 13.0)}
        return Found(Tuned.model_validate(DATA), spreads, ("something to know",))

    monkeypatch.setattr(launch, "tune_here", tune_here)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_defaults(asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--experts", "8", "--tokens", "64", "--device", "cpu"]) == 0
    (call,) = asked
    del call["progress"]
    assert call == {
        "device": "cpu",
        "experts": 8,
        "ep": 1,
        "tp": 1,
        "tokens": 64,
        "topk": 2,
        "out": Path("tuned.yaml"),
        "most_rounds": 1200,
        "seed": 0,
        "step_limit": timedelta(seconds=120),
    }
    told = capsys.readouterr().out
    assert "chosen: counts: sum, exchange: all_gather (counts sum, exchange all_gather: 10.0 us" in told
    assert told.index("counts sum  ") < told.index("defaults  "), "the fastest first"
    assert told.endswith("note: something to know\nwritten: tuned.yaml\n")


def test_only_the_first_rank_speaks(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["tune", "--experts", "8", "--ep", "2", "--tokens", "64"]) == 0
    assert capsys.readouterr().out == ""


def test_the_shape_from_a_script_and_from_behind_dashes(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "train.sh").write_text("SEQ=128\npretrain.py --num-experts 8 --seq-length $SEQ --micro-batch-size 2\n")
    file = ["--megatron-args", str(tmp_path / "train.sh")]
    assert main(["tune", *file]) == 0
    assert main(["tune", *file, "--", "pretrain.py", "--num-experts", "16", "--moe-router-topk", "4"]) == 0
    assert [(one["experts"], one["tokens"], one["topk"]) for one in asked] == [(8, 256, 2), (16, 256, 4)]
    assert "E = 8, EP = 1, TP = 1, top-2, T = seq-length 128 x micro-batch-size 2 = 256" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "--experts, --tokens: needed, or Megatron's arguments"),
        (["--experts", "8"], "--tokens: needed"),
        (["--ep", "2", "--", "--num-experts", "8"], "--ep: give either these or Megatron's arguments"),
        (["--megatron-args", "gone.sh"], "--megatron-args: gone.sh: cannot be read"),
        (["--experts", "8", "--tokens", "8", "--expert", "4"], "No such option"),
        (["--experts", "0", "--tokens", "8"], "0 is not in the range 1<=x<=2147483647"),
        (["--", "--num-experts", "8"], "--seq-length, --micro-batch-size missing"),
        (["--experts", "8", "--tokens", "8", "--device", "tpu"], "'tpu' is not one of"),
    ],
)
def test_what_it_refuses(
    asked: list[dict[str, Any]], options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", *options]) == 2
    assert told in capsys.readouterr().err
    assert not asked


# ------------------------------------------------------------------------------------------------ one real process


ALONE = ["tune", "--experts", "8", "--tokens", "32", "--device", "cpu", "--rounds", "40"]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher has started this process."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.megatron
@pytest.mark.once
def test_one_process_says_what_it_cannot_tell(alone: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tuned.yaml"
    before = signal.getsignal(signal.SIGTERM)
    assert main([*ALONE, "--out", str(out)]) == 0
    assert "note: one process, EP = TP = 1: nothing is exchanged" in capsys.readouterr().out
    tuned = read_tuned(out)
    assert tuned.machine.world_size == 1
    assert set(tuned.timings_us) == {"defaults", "counts sum"}
    assert tuned.costs_us.kernel > 0
    assert not dist.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is before
    _, _, decisions = decide(load_config({"device": "cpu", "tuned": str(out)}), probe_environment())
    assert decisions[0].counts == (tuned.choices.counts or "byte_lanes"), "what it writes is what a plan takes"


@pytest.mark.megatron
@pytest.mark.once
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(
    alone: None,
    tmp_path: Path,
    number: signal.Signals,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "judge", lambda *arguments: signal.raise_signal(number))
    assert main([*ALONE, "--out", str(tmp_path / "tuned.yaml")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert not dist.is_initialized()


@pytest.mark.megatron
@pytest.mark.once
def test_candidates_that_differ_choose_nothing(
    alone: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COUNTS, "sum", lambda routing_map, *out: COUNTS["byte_lanes"](routing_map, *out) + 1)
    assert main([*ALONE, "--out", str(tmp_path / "tuned.yaml")]) == 2
    assert "the implementations disagree: counts sum leaves" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_world_that_is_no_whole_number_of_groups(
    ranks: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    assert main(["tune", "--experts", "8", "--ep", "2", "--tp", "2", "--tokens", "8", "--device", "cpu"]) == 2
    assert f"EP 2 x TP 2 = 4 ranks, but the processes that were started are {ranks}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ep", "topk", "told"), [(3, 2, "8 experts do not divide by EP = 3"), (1, 9, "1 to 8 experts")]
)
def test_impossible_shapes(ep: int, topk: int, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--experts", "8", f"--ep={ep}", f"--topk={topk}", "--tokens", "8", "--device", "cpu"]) == 2
    assert told in capsys.readouterr().err
