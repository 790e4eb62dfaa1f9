"""`mindspeed-moe selftest`: every layout, mode and choice against an oracle on the user's own machines, then load."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import Progress

from mindspeed_moe.cli.numbers import whole
from mindspeed_moe.config.tuned import require_writable
from mindspeed_moe.environment import DEVICES, probe_environment
from mindspeed_moe.errors import ConfigError, DeviceError
from mindspeed_moe.files import write_whole
from mindspeed_moe.tables import render

if TYPE_CHECKING:
    from mindspeed_moe.selftest.report import Report

_STEP_LIMIT_S = 60
_PASSED, _FAILED = 0, 1
_ALONE = (
    "note: one process, so only EP = TP = 1 was run, where nothing is exchanged; for more start several with torchrun: "
    "torchrun --nproc-per-node 4 -m mindspeed_moe selftest"
)


@click.command()
@click.option("--device", type=click.Choice(("auto", *DEVICES)), default="auto", show_default=True, help="Where.")
@click.option(
    "--only", multiple=True, metavar="TEXT", help="Only steps with this in their name; given twice, with both."
)
@click.option("--no-load", is_flag=True, help="Leave out the steps under load.")
@click.option("--seed", type=whole(0), default=0, show_default=True, help="Of routing and lateness.")
@click.option(
    "--step-limit",
    type=whole(1),
    default=_STEP_LIMIT_S,
    show_default=True,
    help="Seconds after which a step that is not done ends all ranks, which then say where they stand.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the report there instead.")
def selftest(
    device: str, only: tuple[str, ...], no_load: bool, seed: int, step_limit: int, as_json: bool, out: Path | None
) -> int:
    """Run the plugin on all ranks of a launch, and compare everything it leaves with an independent oracle.

    Under torchrun: `torchrun --nproc-per-node 4 -m mindspeed_moe selftest`. Every EP and TP that fit the number of
    processes, every mode, every choice of the dispatch table; forward and backward through Megatron's dispatcher and
    through bare collectives; then under load. Ends with 0 when all passed, 1 when something failed, 2 when it cannot
    be run.
    """
    environment = probe_environment()
    if environment.torch.version is None:
        raise DeviceError(f"torch: {environment.torch}")
    from mindspeed_moe.selftest.launch import Wanted, selftest_here  # imports torch

    speaks = environment.rank == 0
    if out is not None and speaks:
        require_writable(out)  # rather now than after the run

    def tell(report: Report) -> None:
        text = json.dumps(report.to_dict(), indent=2) if as_json else render(*report.parts())
        if out is not None:
            try:
                write_whole(out, (text + "\n").encode(errors="replace"))
            except OSError as error:
                raise ConfigError(f"{out}: cannot be written: {error.strerror}") from error
        else:
            click.echo(text)
        sys.stdout.flush()

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (speaks and console.is_terminal)) as bar:
        task = bar.add_task("selftest", total=None)

        def progress(done: int, planned: int, name: str) -> None:
            bar.update(task, completed=done, total=planned, description=name)

        wanted = Wanted(only, not no_load, seed, timedelta(seconds=step_limit))
        report = selftest_here(environment, environment.choose_device(device), wanted, progress=progress, tell=tell)
    if environment.world_size == 1:
        click.echo(_ALONE, err=True)
    return _PASSED if report.passed else _FAILED
