"""`mindspeed-moe bench`: stock, reference and packed preprocess against each other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.progress import track

from mindspeed_moe.bench.shapes import MODES, sweep
from mindspeed_moe.environment import probe_environment
from mindspeed_moe.errors import DeviceError
from mindspeed_moe.tables import render


def _numbers(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Read one whole number or several, separated by commas."""
    parts = [part.strip() for part in value.split(",")] if value is not None else []
    for part in parts:
        if not (part.isascii() and part.isdigit() and int(part)):
            raise click.BadParameter(f"{part!r} is not a whole number of at least 1")
    return tuple(int(part) for part in parts) or None


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
@click.option("--ranks", type=click.IntRange(min=2), help="Real gloo processes instead of a simulated group.")
@click.option("--rounds", type=click.IntRange(min=1), default=300, show_default=True, help="Timed calls of each.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random routing.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Of torch, a process.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
def bench(
    experts: tuple[int, ...],
    ep: tuple[int, ...] | None,
    tp: tuple[int, ...],
    tokens: tuple[int, ...],
    topk: tuple[int, ...],
    mode: tuple[str, ...],
    ranks: int | None,
    rounds: int,
    seed: int,
    threads: int,
    as_json: bool,
) -> int:
    """Time stock, reference and packed preprocess with their host half, on the cpu, call by call in turn.

    Options of the shape take several values, separated by commas: every possible combination is measured.
    The time of a simulated group's collective is that of copying its result.
    """
    environment = probe_environment()
    if environment.torch.version is None:
        raise DeviceError(f"torch: {environment.torch}")
    from mindspeed_moe.bench.session import run_bench  # imports torch

    if ep is None:
        ep = (32,) if ranks is None else tuple(sorted({max(ranks // one, 1) for one in tp}))
    shapes, left_out = sweep(experts, ep, tp, tokens, topk, mode, ranks)
    report = run_bench(
        environment,
        shapes,
        left_out=left_out,
        ranks=ranks,
        rounds=rounds,
        seed=seed,
        threads=threads,
        watch=_progress,
    )
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else render(*report.parts()))
    return 0
