"""`mindspeed-moe bench`: stock, reference and packed preprocess against each other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import track

from mindspeed_moe.bench.pictured import check_picture
from mindspeed_moe.bench.shapes import MODES, sweep
from mindspeed_moe.cli.numbers import MOST, Finite, whole
from mindspeed_moe.environment import DEVICES, probe_environment
from mindspeed_moe.errors import BenchError, DeviceError
from mindspeed_moe.files import write_whole
from mindspeed_moe.tables import render

_GOES_WITH = {
    "--verify": "goes with --ranks: the reference needs a group whose collectives answer",
    "--ranks": "goes with --device cpu, and with neither --whole-layer nor --choice",
    "--simulated": "goes with --device npu, and with neither --whole-layer nor --png: a simulation has no times",
}
_ROUNDS, _LAYER_ROUNDS = 300, 20


def _numbers(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Read one whole number or several, separated by commas."""
    parts = [part.strip() for part in value.split(",")] if value is not None else []
    for part in parts:
        if not (part.isascii() and part.isdigit() and len(part) <= len(str(MOST)) and 1 <= int(part) <= MOST):
            raise click.BadParameter(f"{part!r} is not a whole number from 1 to {MOST}")
    return tuple(int(part) for part in parts) or None


def _choices(context: click.Context, option: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    """Read settings of the form NAME=VALUE; what they may be is the configuration's business."""
    pairs = [one.partition("=") for one in value]
    for name, equals, setting in pairs:
        if not (name and equals and setting):
            raise click.BadParameter(f"{name}{equals}{setting!r}: expected NAME=VALUE, as in exchange=all_to_all")
    return {name: setting for name, _, setting in pairs}


def _modes(context: click.Context, option: click.Parameter, value: str) -> tuple[str, ...]:
    """Read one mode or several, separated by commas."""
    parts = tuple(part.strip() for part in value.split(","))
    for part in parts:
        if part not in MODES:
            raise click.BadParameter(f"{part!r} is not one of {', '.join(MODES)}")
    return parts


def _progress(shapes: Sequence[Any]) -> Iterable[Any]:
    """Show on a terminal's standard error how far a sweep has come."""
    console = Console(stderr=True)
    hidden = len(shapes) == 1 or not console.is_terminal
    return track(shapes, description="shapes", console=console, transient=True, disable=hidden)


def _size(name: str, default: str | None, text: str) -> Callable[[Any], Any]:
    return click.option(
        name, callback=_numbers, metavar="N[,N...]", default=default, show_default=default is not None, help=text
    )


@click.command()
@_size("--experts", "256", "Experts of the layer, E.")
@_size("--ep", None, "Expert-parallel size, EP.  [default: 32; with --ranks: ranks / TP]")
@_size("--tp", "1", "Expert-tensor-parallel size, TP.")
@_size("--tokens", "4096", "Tokens of one rank, T.")
@_size("--topk", "8", "Experts of a token.")
@click.option(
    "--mode",
    callback=_modes,
    metavar="MODE[,MODE...]",
    default="dropless",
    show_default=True,
    help=f"What happens to tokens beyond an expert's capacity: {', '.join(MODES)}.",
)
@click.option("--device", type=click.Choice(DEVICES[::-1]), default="cpu", show_default=True, help="Where to measure.")
@click.option("--ranks", type=whole(2), help="Real gloo processes instead of a simulated group; cpu only.")
@click.option("--verify", is_flag=True, help="With --ranks: also time packed under `verify: first` and `always`.")
@click.option(
    "--latency-us",
    type=Finite(min=0),
    default=0.0,
    show_default=True,
    help="cuda: delay on the device after every collective, for a network; microseconds.",
)
@click.option(
    "--busy-us",
    type=Finite(min=1),
    default=1500.0,
    show_default=True,
    help="cuda, npu: what is queued before a call on a busy device; microseconds.",
)
@click.option(
    "--choice",
    callback=_choices,
    multiple=True,
    metavar="NAME=VALUE",
    help="One of packed's choices, as in the configuration's `preprocess`: --choice exchange=all_to_all.",
)
@click.option("--whole-layer", is_flag=True, help="Measure whole MoE layers instead of preprocess alone.")
@_size("--hidden", "512,4096", "Hidden sizes of whole layers; the experts' own size is half.")
@click.option(
    "--simulated", is_flag=True, help="With --device npu: on the simulated Ascend runtime, which counts; no times."
)
@click.option("--ledger", metavar="MODULE:FUNCTION", hidden=True)  # how --simulated calls itself
@click.option("--report-to", type=click.Path(path_type=Path), hidden=True)  # torch_npu prints to standard output
@click.option("--rounds", type=whole(1), help="Timed calls of each.  [default: 300; --whole-layer: 20]")
@click.option("--seed", type=whole(0), default=0, show_default=True, help="Of the random routing.")
@click.option("--threads", type=whole(1), default=1, show_default=True, help="Of torch, a process.")
@click.option("--png", type=click.Path(path_type=Path), help="Also draw stock / packed over EP and experts.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
def bench(
    experts: tuple[int, ...],
    ep: tuple[int, ...] | None,
    tp: tuple[int, ...],
    tokens: tuple[int, ...],
    topk: tuple[int, ...],
    mode: tuple[str, ...],
    device: str,
    ranks: int | None,
    verify: bool,
    latency_us: float,
    busy_us: float,
    choice: dict[str, str],
    whole_layer: bool,
    hidden: tuple[int, ...],
    simulated: bool,
    ledger: str | None,
    report_to: Path | None,
    rounds: int | None,
    seed: int,
    threads: int,
    png: Path | None,
    as_json: bool,
) -> int:
    """Time stock, reference and packed preprocess with their host half, call by call in turn.

    Options of the shape take several values, separated by commas: every possible combination is measured.
    The time of a simulated group's collective is that of copying its result; on an accelerator, that of a real
    collective over a group of one rank with a result of the same size, and of --latency-us.
    """
    for given, needed, unlike in (
        ("--verify", verify, ranks is None),
        ("--ranks", ranks is not None, device != "cpu" or whole_layer or bool(choice)),
        ("--simulated", simulated or ledger is not None, device != "npu" or whole_layer or png is not None),
    ):
        if needed and unlike:
            raise BenchError(f"{given}: {_GOES_WITH[given]}")
    if ep is None:
        ep = (32,) if ranks is None else tuple(sorted({max(ranks // one, 1) for one in tp}))
    shapes, left_out = sweep(experts, ep, tp, tokens, topk, mode, ranks)
    if simulated:
        from mindspeed_moe.bench.simulated import run_simulated

        sizes = {"experts": experts, "ep": ep, "tp": tp, "tokens": tokens, "topk": topk, "mode": mode, "seed": (seed,)}
        options = [f"--{name}={','.join(map(str, values))}" for name, values in sizes.items()]
        options += [f"--choice={name}={value}" for name, value in choice.items()]
        text = run_simulated(["--device=npu", *options, *(["--json"] if as_json else [])])
        click.echo(text)
        return 0
    environment = probe_environment()
    if environment.torch.version is None:
        raise DeviceError(f"torch: {environment.torch}")
    from mindspeed_moe.bench.session import run_bench  # imports torch

    if png is not None:
        check_picture(png)
    report = run_bench(
        environment,
        shapes,
        left_out=left_out,
        device=device,
        ranks=ranks,
        verify=verify,
        rounds=rounds or (_LAYER_ROUNDS if whole_layer else _ROUNDS),
        seed=seed,
        threads=threads,
        latency_us=latency_us,
        busy_us=busy_us,
        choices=choice,
        hidden=hidden if whole_layer else (),
        ledger=ledger,
        watch=_progress,
    )
    if png is not None:
        from mindspeed_moe.bench.picture import draw_ratios

        draw_ratios(report.results, report.head(), png)
    text = json.dumps(report.to_dict(), indent=2) if as_json else render(*report.parts())
    if report_to is not None:
        write_whole(report_to, text.encode(errors="replace"))
    else:
        click.echo(text)
    return 0
