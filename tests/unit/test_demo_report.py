"""What is reported: equality to the last bit, ratios, the files."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from mindspeed_moe.demo.messages import Result
from mindspeed_moe.demo.report import draw_losses, summarize, summary_table, write_summary
from mindspeed_moe.demo.settings import settle
from mindspeed_moe.tables import render

LOSSES = (5.5, 4.25, 3.0)
VERSIONS = {"megatron-core": "0.0.0"}


def result(name: str, losses: tuple[float, ...] = LOSSES, median: float = 100.0, computing: float = 40.0) -> Result:
    return Result(name, losses, 2.0, {"calls": 6, "median_us": median, "median_computing_us": computing})


def test_equal_losses() -> None:
    summary = summarize(settle(steps=3), VERSIONS, [result("stock"), result("packed", median=25.0)], 9.0)
    assert summary["bit_identical"] is True
    assert summary["baseline"] == "stock"
    packed = summary["implementations"]["packed"]
    assert packed["bit_identical"] is True
    assert packed["differs_from_step"] is None
    assert (packed["first_loss"], packed["last_loss"]) == (5.5, 3.0)
    assert packed["last_perplexity"] == pytest.approx(math.e**3)
    assert packed["preprocess"]["time_relative_to_baseline"] == 0.25
    assert packed["preprocess"]["computing_relative_to_baseline"] == 1.0
    assert packed["tokens_per_second"] == 3 * 4 * 4 * 64 / 2.0
    text = render(summary_table(summary))
    assert "every bit" in text
    assert "25 (0.25)" in text


@pytest.mark.parametrize("step", [0, 1, 2])
def test_one_bit_makes_a_difference(step: int) -> None:
    losses = list(LOSSES)
    losses[step] = math.nextafter(losses[step], 0.0)
    summary = summarize(settle(steps=3), VERSIONS, [result("stock"), result("packed", tuple(losses))], 9.0)
    assert summary["bit_identical"] is False
    assert summary["implementations"]["stock"]["bit_identical"] is True
    assert summary["implementations"]["packed"]["differs_from_step"] == step + 1
    assert f"NO: step {step + 1} on" in render(summary_table(summary))


def test_without_stock_the_first_is_the_baseline() -> None:
    summary = summarize(settle(steps=3), VERSIONS, [result("packed"), result("reference", (5.5, 4.0, 3.0))], 9.0)
    assert summary["baseline"] == "packed"
    assert summary["bit_identical"] is False


def test_the_file_has_everything(tmp_path: Path) -> None:
    summary = summarize(settle(steps=3), VERSIONS, [result("stock")], 9.0)
    path = write_summary(summary, tmp_path)
    read = json.loads(path.read_text(encoding="utf-8"))
    assert read == summary
    assert read["implementations"]["stock"]["losses"] == list(LOSSES)
    assert read["settings"]["processes"] == 4
    assert read["versions"] == VERSIONS


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = draw_losses(summarize(settle(steps=3), VERSIONS, [result("stock"), result("packed")], 9.0), tmp_path)
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")


def test_no_picture_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert draw_losses(summarize(settle(steps=3), VERSIONS, [result("stock")], 9.0), tmp_path) is None
    assert list(tmp_path.iterdir()) == []
