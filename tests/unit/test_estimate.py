"""The estimate is a product to check by hand, of counts that the ledger's page shows."""

from __future__ import annotations

import importlib
import json
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

from helpers_tuned import DATA
from mindspeed_moe.cli import main
from mindspeed_moe.config.tuned import OperationCosts, Tuned, write_tuned
from mindspeed_moe.errors import ConfigError
from mindspeed_moe.estimate import (
    ALONE,
    LAYOUTS,
    MODES,
    PACKED,
    STOCK,
    TP_1,
    TP_MORE,
    Model,
    breakdown,
    estimate,
    layout_of,
)

# The package has the command under the name of the module.
command_module = importlib.import_module("mindspeed_moe.cli.estimate")
ROOT = Path(__file__).resolve().parents[2]
COSTS = OperationCosts.model_validate({"kernel": 10.0, "collective": 30.0, "copy": 5.0, "record": 2.0, "wait": 1.0})
PRICES = ["--kernel", "10", "--collective", "30", "--copy", "5", "--record", "2", "--wait", "1"]
BY_TORCH_NPU = 3  # event records around a collective, which are in the collective's price
TITLES = {"**TP = 1, EP = 2**": TP_1, "**TP = 2, EP = 2**": TP_MORE, "**TP = 1, EP = 1**": ALONE}


# ------------------------------------------------------------------------------------------------ the counts


def ledger_page() -> dict[tuple[str, str, str], tuple[int, ...]]:
    """(implementation, mode, layout) -> kernels, collectives, copies, records of one's own, waits.

    Read from the page that the simulated runtime's tests keep current (tests/npu/test_table.py).
    """
    text = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    found = {}
    layout = ""
    for line in text.splitlines():
        layout = TITLES.get(line, layout)
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 13 or cells[1] not in ("stock", "`packed`, counts on the host"):
            continue
        kernels, collectives, copies, records, event_waits, stream_waits, device_waits = map(int, cells[2:9])
        found[cells[1].split(",")[0].strip("`"), cells[0], layout] = (
            kernels,
            collectives,
            copies,
            records - BY_TORCH_NPU * collectives,
            event_waits + stream_waits + device_waits,
        )
    return found


def test_the_counts_are_those_of_the_ledger() -> None:
    page = ledger_page()
    assert {(mode, layout) for _, mode, layout in page} == set(STOCK) == set(PACKED)
    assert {key[1:]: counts for key, counts in page.items() if key[0] == "stock"} == {
        key: astuple(counts) for key, counts in STOCK.items()
    }
    assert {key[1:]: counts for key, counts in page.items() if key[0] == "packed"} == {
        key: astuple(counts) for key, counts in PACKED.items()
    }


@pytest.mark.parametrize(
    ("ep", "tp", "layout"), [(1, 1, ALONE), (2, 1, TP_1), (64, 1, TP_1), (1, 2, TP_MORE), (8, 4, TP_MORE)]
)
def test_layouts(ep: int, tp: int, layout: str) -> None:
    assert layout_of(ep, tp) == layout


# ------------------------------------------------------------------------------------------------ the product


def test_dropless_with_peers() -> None:
    found = estimate(Model(layers=4, micro_batches=8, mode="dropless", layout=TP_1), COSTS)
    assert found.stock_us == 6 * 10 + 30 + 5 * 5 + 11 * 2 + 1
    assert found.packed_us == 10 + 30 + 5 + 2 + 1
    assert found.calls == 32
    assert found.saved_us == (138 - 48) * 32
    assert found.ratio == 138 / 48


def test_with_tp_packed_repeats_its_counts() -> None:
    found = estimate(Model(1, 1, "dropless", TP_MORE), COSTS)
    assert (found.stock_us, found.packed_us) == (138, 58)


def test_recomputation_doubles_the_calls() -> None:
    assert estimate(Model(4, 8, "dropless", TP_1, recompute=True), COSTS).calls == 64


def test_padding_gains_nothing() -> None:
    found = estimate(Model(4, 8, "pad", TP_1), COSTS)
    assert (found.stock_us, found.packed_us, found.saved_us, found.ratio) == (0, 0, 0, None)


def test_packed_never_launches_more() -> None:
    for key in STOCK:
        assert all(one <= other for one, other in zip(astuple(PACKED[key]), astuple(STOCK[key]), strict=True)), key
    assert len(STOCK) == len(MODES) * len(LAYOUTS)


@pytest.mark.parametrize("change", [{"layers": 0}, {"micro_batches": 0}, {"mode": "x"}])
def test_impossible_models(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change)).replace("_", "-")):
        Model(**{"layers": 1, "micro_batches": 1, "mode": "drop", "layout": TP_1, **change})


def test_the_breakdown_names_every_operation() -> None:
    assert breakdown(Model(1, 1, "drop", ALONE)) == (
        ("kernels", 2, 1),
        ("collectives", 0, 0),
        ("copies", 3, 1),
        ("records", 6, 1),
        ("waits", 1, 1),
    )


# ------------------------------------------------------------------------------------------------ the command


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--layers", "4", "--micro-batches", "8", *PRICES, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["stock_us"], told["packed_us"], told["saved_us"], told["note"]) == (138, 48, 2880, None)
    assert main(["estimate", "--layers", "4", *PRICES]) == 0
    assert (
        "4 calls a step on a rank: 0.36 ms of host time saved; launches cost 2.88 times less" in capsys.readouterr().out
    )
    assert main(["estimate", "--layers", "4", "--mode", "pad", *PRICES]) == 0
    assert capsys.readouterr().out.endswith("4 calls a step on a rank: 0.00 ms of host time saved\n")
    assert main(["estimate", "--layers", "1", "--ep", "1", *PRICES, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stock_us"] == 10 + 2 * 5 + 4 * 2 + 1


def tuned_file(folder: Path, device: str = "cpu") -> Path:
    machine = {**DATA["machine"], "device": device}
    write_tuned(Tuned.model_validate({**DATA, "machine": machine}), folder / "tuned.yaml")
    return folder / "tuned.yaml"


def test_prices_from_a_tuned_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["estimate", "--layers", "1", "--tuned", str(tuned_file(tmp_path, "cuda")), "--json"]
    assert main(asked) == 0
    assert json.loads(capsys.readouterr().out)["stock_us"] == 6 * 5 + 20 + 5 * 3.5
    assert main([*asked, "--kernel", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["stock_us"] == 6 * 1 + 20 + 5 * 3.5, "an option wins"
    assert (told["layout"], told["note"]) == (TP_1, None)
    assert main([*asked, "--tp", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["layout"] == TP_MORE


def test_a_cpus_prices_are_told_to_be_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["estimate", "--layers", "1", "--tuned", str(tuned_file(tmp_path))]
    assert main(asked) == 0
    assert "note: these prices were measured on a cpu, where nothing is launched" in capsys.readouterr().out
    assert main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["note"].startswith("these prices were measured on a cpu")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--layers", "1", "--kernel", "1"], "--collective, --copy, --record, --wait: needed without --tuned FILE"),
        (PRICES, "--layers: needed, unless --check is asked for"),
        (["--check", "--layers", "1"], "--check measures its own prices"),
        (["--check", "--kernel", "1"], "--check measures its own prices"),
        (["--layers", "1", "--tuned", "gone.yaml"], "tuned: gone.yaml: no such configuration file"),
        (["--layers", "0", *PRICES], "0 is not in the range 1<=x<=2147483647"),
        (["--layers", "1", "--kernel", "-1"], "-1.0 is not in the range x>=0"),
    ],
)
def test_what_the_command_refuses(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *options]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.megatron
def test_the_check_shows_both_sides(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prices, estimates and measurements are there, and the estimates are the prices' products; no time is asserted."""
    monkeypatch.setattr(command_module, "_ROUNDS", 10)
    assert main(["estimate", "--check", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    prices = told["prices_us"]
    assert prices["kernel"] > 0
    assert (prices["record"], prices["wait"]) == (0, 0)
    assert [(one["shape"]["experts"], one["shape"]["ep"]) for one in told["shapes"]] == [(8, 2), (256, 32)]
    for one in told["shapes"]:
        stock = 6 * prices["kernel"] + prices["collective"] + 5 * prices["copy"]
        assert one["estimated"]["stock_us"] == pytest.approx(stock)
        measured = one["measured"]
        assert measured["ratio"] == pytest.approx(measured["stock_us"] / measured["packed_us"])
    assert told["machine"]["cpu"]
