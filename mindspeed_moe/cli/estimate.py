"""`mindspeed-moe estimate`: what a model would gain in host time, from a machine's prices of single operations."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mindspeed_moe.cli.numbers import Finite, whole
from mindspeed_moe.config.tuned import OperationCosts, Tuned, read_tuned
from mindspeed_moe.environment import DEVICES, probe_environment
from mindspeed_moe.errors import ConfigError, DeviceError
from mindspeed_moe.estimate import MODES, Estimate, Model, breakdown, estimate, layout_of
from mindspeed_moe.tables import plain_table, render

if TYPE_CHECKING:
    from mindspeed_moe.tune.check import Check

_PRICES = ("kernel", "collective", "copy", "record", "wait")
_ON_CPU = (
    "these prices were measured on a cpu, where nothing is launched, recorded or waited for: the result is a "
    "product of numbers that does not describe a cpu run; `estimate --check` shows how far it is off"
)
_CHECKED = ((8, 2, 64, 2), (256, 32, 4096, 8))  # E, EP, T, topk: one where launches are everything, bench's default
_ROUNDS = 200


@click.command(name="estimate")
@click.option("--tuned", type=click.Path(path_type=Path), help="A file of `tune`: takes its prices and its group.")
@click.option("--kernel", type=Finite(min=0), help="Host time of a kernel's launch, microseconds.")
@click.option("--collective", type=Finite(min=0), help="Of a small collective.")
@click.option("--copy", type=Finite(min=0), help="Of a non-blocking copy to pinned memory.")
@click.option("--record", type=Finite(min=0), help="Of an event's record.")
@click.option("--wait", type=Finite(min=0), help="Of a wait for an event that is done.")
@click.option("--layers", type=whole(1), help="MoE layers of a pipeline stage.")
@click.option("--micro-batches", type=whole(1), default=1, show_default=True, help="Of a step.")
@click.option("--mode", type=click.Choice(MODES), default="dropless", show_default=True, help="Token overflow.")
@click.option("--recompute", is_flag=True, help="MoE layers are recomputed in backward.")
@click.option("--ep", type=whole(1), help="EP.  [default: the tuned file's, else 2]")
@click.option("--tp", type=whole(1), help="TP of the experts.  [default: the tuned file's, else 1]")
@click.option("--check", is_flag=True, help="Measure prices and stock and packed here, and compare; no model needed.")
@click.option("--device", type=click.Choice(DEVICES[::-1]), default="cpu", show_default=True, help="Of --check.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def estimate_command(
    tuned: Path | None,
    layers: int | None,
    micro_batches: int,
    mode: str,
    recompute: bool,
    ep: int | None,
    tp: int | None,
    check: bool,
    device: str,
    as_json: bool,
    **given: float | None,
) -> int:
    """Multiply what preprocess launches, stock and `packed`, with what one operation costs on a machine.

    Prices come from --tuned, from the options, or both (options win). The counts are those of the simulated Ascend
    runtime with megatron-core 0.16.1; arithmetic on the host and waiting for the device are not in the estimate.
    """
    prices = {name: value for name, value in given.items() if value is not None}
    if check:
        if prices or tuned is not None or layers is not None:
            raise ConfigError("--check measures its own prices: it goes with --device and --json only")
        return _check(device, as_json)
    if layers is None:
        raise ConfigError("--layers: needed, unless --check is asked for")
    file = read_tuned(tuned) if tuned is not None else None
    if file is not None:
        prices = {**file.costs_us.model_dump(by_alias=True), **prices}
    missing = [f"--{name}" for name in _PRICES if name not in prices]
    if missing:
        raise ConfigError(f"{', '.join(missing)}: needed without --tuned FILE")
    model = Model(layers, micro_batches, mode, _layout(file, ep, tp), recompute)
    found = estimate(model, OperationCosts.model_validate(prices))
    on_cpu = file is not None and file.machine.device == "cpu"
    if as_json:
        told = {**asdict(model), "prices_us": prices, **_numbers(found), "calls": found.calls}
        click.echo(json.dumps({**told, "saved_us": found.saved_us, "note": _ON_CPU if on_cpu else None}, indent=2))
        return 0
    head = f"one call of preprocess, {mode}, {model.layout}:"
    table = plain_table("", "operation", "stock", "packed")
    for name, stock, packed in breakdown(model):
        table.add_row(name, str(stock), str(packed))
    table.add_row("host time, us", f"{found.stock_us:.1f}", f"{found.packed_us:.1f}")
    times = f"; launches cost {found.ratio:.2f} times less" if found.ratio is not None else ""
    told_here = f"{found.calls} calls a step on a rank: {found.saved_us / 1e3:.2f} ms of host time saved{times}"
    click.echo(render(head, table, told_here, *([f"note: {_ON_CPU}"] if on_cpu else [])))
    return 0


def _layout(file: Tuned | None, ep: int | None, tp: int | None) -> str:
    usual = (file.shape.ep, file.shape.tp) if file is not None else (2, 1)
    return layout_of(usual[0] if ep is None else ep, usual[1] if tp is None else tp)


def _numbers(found: Estimate) -> dict[str, Any]:
    return {"stock_us": found.stock_us, "packed_us": found.packed_us, "ratio": found.ratio}


def _check(device: str, as_json: bool) -> int:
    environment = probe_environment()
    if environment.torch.version is None:
        raise DeviceError(f"torch: {environment.torch}")
    from mindspeed_moe.bench.machine import describe_machine  # these import torch
    from mindspeed_moe.bench.shapes import Shape
    from mindspeed_moe.tune.check import check_estimate

    shapes = [Shape(experts, ep, 1, tokens, topk, "dropless") for experts, ep, tokens, topk in _CHECKED]
    costs, checks = check_estimate(environment, environment.choose_device(device), shapes, _ROUNDS, seed=0)
    prices = costs.model_dump(by_alias=True)
    if as_json:
        import torch

        told = {
            "machine": describe_machine(environment, torch.get_num_threads(), device),
            "prices_us": prices,
            "shapes": [
                {
                    "shape": asdict(one.shape),
                    "estimated": _numbers(one.estimated),
                    "measured": {"stock_us": one.stock_us, "packed_us": one.packed_us, "ratio": one.ratio},
                }
                for one in checks
            ],
        }
        click.echo(json.dumps(told, indent=2))
        return 0
    click.echo(
        render(
            "prices, us: " + ", ".join(f"{name} {one:.2f}" for name, one in prices.items()),
            "host time of one call, us: estimated (launches alone) | measured (median, waits left out)",
            _compared(checks),
        )
    )
    return 0


def _compared(checks: list[Check]) -> Any:
    table = plain_table("", "shape", "stock", "packed", "ratio", "saved")
    for one in checks:
        told, ratio = one.estimated, one.estimated.ratio
        table.add_row(
            str(one.shape),
            f"{told.stock_us:.1f} | {one.stock_us:.1f}",
            f"{told.packed_us:.1f} | {one.packed_us:.1f}",
            f"{'-' if ratio is None else f'{ratio:.2f}'} | {one.ratio:.2f}",
            f"{told.saved_us:.1f} | {one.stock_us - one.packed_us:.1f}",
        )
    return table
