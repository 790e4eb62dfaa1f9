"""`mindspeed-moe report`: expert-load telemetry as one HTML page."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import track

from mindspeed_moe.cli.numbers import whole

_Item = TypeVar("_Item")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True, help="The page."
)
@click.option("--png", type=click.Path(path_type=Path), metavar="FOLDER", help="Also draw pictures, into this folder.")
@click.option("--last", type=whole(1), metavar="STEPS", help="Only so many of the newest recorded steps.")
def report(folder: Path, output: Path, png: Path | None, last: int | None) -> int:
    """Draw the expert load that a training run recorded in FOLDER.

    Writes one HTML file that needs no network: how many tokens each expert received in each step, how uneven that was,
    who sent to whom, what was dropped. Give it the folder of all ranks. What is damaged or missing is told on standard
    error and in the page.
    """
    from mindspeed_moe.report.pictures import check_pictures, draw_pictures

    if png is not None:
        check_pictures()
    summary = write_report(folder, output, os.path.basename(os.path.realpath(folder)) or str(folder), last)
    if png is not None:
        pictures = draw_pictures(summary, png, watch=lambda layers: _progress(layers, "pictures"))
        click.echo(f"written: {len(pictures)} pictures in {png}")
    return 0


def write_report(folder: Path, output: Path, name: str, last: int | None = None) -> Any:
    """Write the page of a folder and say what it holds; returns the summary that it was drawn from.

    name: what the page is called. Raises ReportError when there is nothing to draw, or no plotly, or no place.
    """
    from mindspeed_moe.report.files import require_output, write_page  # numpy and more
    from mindspeed_moe.report.notes import damage_notes, run_notes
    from mindspeed_moe.report.page import page_of, plotly_script
    from mindspeed_moe.report.reader import read_folder
    from mindspeed_moe.report.summary import summarize

    require_output(output)
    plotly_script()  # asked before minutes of reading
    telemetry = read_folder(folder, watch=lambda ranks: _progress(ranks, "ranks"))
    for note in (*damage_notes(telemetry.damage), *run_notes(telemetry)):
        click.echo(f"mindspeed-moe: {folder}: {note}", err=True)
    if telemetry.repeated:
        replaced = f"{telemetry.repeated:,} records are replaced by later ones of the same step, layer and rank"
        whose = "of a run that went back to a checkpoint, or of another launch that wrote to the same folder"
        click.echo(f"mindspeed-moe: {folder}: {replaced}: {whose}", err=True)
    summary = summarize(telemetry, last, watch=lambda layers: _progress(layers, "layers"))
    size = write_page(output, page_of(summary, name))
    click.echo(
        f"{telemetry.records:,} records of {len(telemetry.ranks):,} ranks, {len(summary.layers):,} layers, "
        f"{len(summary.axis.steps):,} steps"
    )
    click.echo(f"written: {output} ({size / 1e6:.1f} MB)")
    return summary


def _progress(items: Sequence[_Item], what: str) -> Iterable[_Item]:
    """Show on a terminal's standard error how far it has come."""
    console = Console(stderr=True)
    hidden = len(items) < 2 or not console.is_terminal
    return track(items, description=what, console=console, transient=True, disable=hidden)
