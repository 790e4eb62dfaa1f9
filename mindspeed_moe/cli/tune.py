"""`mindspeed-moe tune`: measure the choices of `packed` on this machine and group, and write down the fastest."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console, RenderableType
from rich.progress import Progress

from mindspeed_moe.cli.numbers import whole
from mindspeed_moe.config.tuned import TunedShape
from mindspeed_moe.environment import DEVICES, probe_environment
from mindspeed_moe.errors import ConfigError, DeviceError
from mindspeed_moe.tables import plain_table, render

if TYPE_CHECKING:
    from mindspeed_moe.tune.launch import Found

_STEP_LIMIT_S = 120
_TOP_K = 2  # Megatron's own default


@click.command()
@click.option("--experts", type=whole(1), help="Experts of the layer, E.")
@click.option("--ep", type=whole(1), help="Expert-parallel size, EP.  [default: 1]")
@click.option("--tp", type=whole(1), help="Tensor-parallel size of experts, TP.  [default: 1]")
@click.option("--tokens", type=whole(1), help="Tokens of one rank, T.")
@click.option("--topk", type=whole(1), help=f"Experts of a token.  [default: {_TOP_K}]")
@click.option(
    "--megatron-args",
    type=click.Path(path_type=Path),
    help="A launch script, or a file with Megatron's arguments: the shape is read from there.",
)
@click.option("--device", type=click.Choice(("auto", *DEVICES)), default="auto", show_default=True, help="Where.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("tuned.yaml"), show_default=True, help="File.")
@click.option("--rounds", type=whole(40), default=1200, show_default=True, help="At most so many.")
@click.option("--seed", type=whole(0), default=0, show_default=True, help="Of the random routing.")
@click.option(
    "--step-limit",
    type=whole(1),
    default=_STEP_LIMIT_S,
    show_default=True,
    help="Seconds after which a step that is not done ends all ranks.",
)
@click.argument("megatron_arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- MEGATRON'S ARGUMENTS]")
def tune(
    experts: int | None,
    ep: int | None,
    tp: int | None,
    tokens: int | None,
    topk: int | None,
    megatron_args: Path | None,
    device: str,
    out: Path,
    rounds: int,
    seed: int,
    step_limit: int,
    megatron_arguments: tuple[str, ...],
) -> int:
    """Try every combination of counts, exchange, exchange_group and stream on all ranks of a launch.

    Under torchrun, with as many processes as train: `torchrun --nproc-per-node 8 -m mindspeed_moe tune --experts 64
    --ep 8 --tokens 4096 --topk 6`. The shape can come from Megatron's arguments instead, in a file or behind `--`.
    Writes a YAML file for `tuned:` in the configuration. Nothing is chosen on a difference that is inside the noise.
    """
    given = {"experts": experts, "ep": ep, "tp": tp, "tokens": tokens, "topk": topk}
    shape, told = _shape(given, megatron_args, megatron_arguments)
    environment = probe_environment()
    if environment.torch.version is None:
        raise DeviceError(f"torch: {environment.torch}")
    from mindspeed_moe.tune.launch import tune_here  # imports torch

    speaks = environment.rank == 0
    if speaks and told:
        click.echo(told)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (speaks and console.is_terminal)) as bar:
        task = bar.add_task("measuring", total=rounds)

        def progress(done: int, most: int, winner: str) -> None:
            bar.update(task, completed=done, total=most, description=f"measuring; so far: {winner}")

        found = tune_here(
            environment,
            environment.choose_device(device),
            shape,
            out,
            most_rounds=rounds,
            seed=seed,
            step_limit=timedelta(seconds=step_limit),
            progress=progress,
        )
    if speaks:
        click.echo(render(*_report(found, out)))
    sys.stdout.flush()
    return 0


def _report(found: Found, out: Path) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if found.tuned is not None:
        parts.append(f"durations of a call on the slowest rank, us, {found.tuned.rounds} rounds:")
        table = plain_table("", "choices")
        for column in ("p20", "p50", "p80"):
            table.add_column(column, justify="right")
        for name, one in sorted(found.spreads.items(), key=lambda item: item[1].p50):
            table.add_row(name, f"{one.p20:.1f}", f"{one.p50:.1f}", f"{one.p80:.1f}")
        chosen = ", ".join(f"{key}: {value}" for key, value in found.tuned.chosen().items()) or "nothing"
        parts += [table, f"chosen: {chosen} ({found.tuned.reason})"]
    parts += [f"note: {note}" for note in found.notes]
    return parts + ([f"written: {out}"] if found.tuned is not None else [])


def _shape(given: dict[str, int | None], file: Path | None, rest: tuple[str, ...]) -> tuple[TunedShape, str]:
    asked = {name: value for name, value in given.items() if value is not None}
    if file is not None or rest:
        if asked:
            raise ConfigError(
                f"--{', --'.join(asked)}: give either these or Megatron's arguments (--megatron-args FILE, or behind "
                f"`--`), not both"
            )
        from mindspeed_moe.tune.megatron_arguments import arguments_of_file, shape_of_arguments

        if rest and not rest[0].startswith("-"):
            rest = rest[1:]  # the training script
        read = shape_of_arguments([*(arguments_of_file(file) if file is not None else ()), *rest])
        asked = {"experts": read.experts, "ep": read.ep, "tp": read.tp, "tokens": read.tokens, "topk": read.topk}
        told = f"E = {read.experts}, EP = {read.ep}, TP = {read.tp}, top-{read.topk}, {read.told}"
        return TunedShape(**asked), told
    missing = [f"--{name}" for name in ("experts", "tokens") if name not in asked]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)}: needed, or Megatron's arguments: --megatron-args FILE, or behind `--`"
        )
    return TunedShape(**{"ep": 1, "tp": 1, "topk": _TOP_K, **asked}), ""
