"""What the demo leaves behind: a summary as plain data, a table, a picture."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from mindspeed_moe.demo.data import text_name
from mindspeed_moe.demo.messages import Result
from mindspeed_moe.demo.settings import Settings
from mindspeed_moe.files import write_whole

SUMMARY, PICTURE = "summary.json", "loss.png"


def summarize(
    settings: Settings, versions: Mapping[str, str], results: Sequence[Result], seconds: float
) -> dict[str, Any]:
    """Return plain data for summary.json.

    Losses are compared with those of the baseline, value by value: stock if it ran, else the first. Times are
    those of rank 0, in microseconds per layer and forward pass. seconds: of the whole demo.
    """
    baseline = next((result for result in results if result.implementation == "stock"), results[0])
    runs = {result.implementation: _one(settings, result, baseline) for result in results}
    return {
        "settings": {**settings.to_dict(), "text": text_name(settings.text)},
        "versions": dict(versions),
        "baseline": baseline.implementation,
        "bit_identical": all(run["bit_identical"] for run in runs.values()),
        "seconds": seconds,
        "implementations": runs,
    }


def _one(settings: Settings, result: Result, baseline: Result) -> dict[str, Any]:
    return {
        "first_loss": result.losses[0],
        "last_loss": result.losses[-1],
        "first_perplexity": math.exp(result.losses[0]),
        "last_perplexity": math.exp(result.losses[-1]),
        "bit_identical": result.losses == baseline.losses,
        "differs_from_step": _first_difference(result.losses, baseline.losses),
        "preprocess": {
            **result.preprocess,
            "time_relative_to_baseline": result.preprocess["median_us"] / baseline.preprocess["median_us"],
            "computing_relative_to_baseline": result.preprocess["median_computing_us"]
            / baseline.preprocess["median_computing_us"],
        },
        "seconds": result.seconds,
        "tokens_per_second": settings.tokens_per_step * len(result.losses) / result.seconds,
        "losses": list(result.losses),
        **({} if result.compared is None else {"verified": result.compared}),
    }


def _first_difference(losses: Sequence[float], others: Sequence[float]) -> int | None:
    """Return the first step, counted from 1, whose losses differ, or None."""
    return next((step for step, (a, b) in enumerate(zip(losses, others, strict=True), 1) if a != b), None)


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Return the summary as a table: one row an implementation."""
    baseline = summary["baseline"]
    table = Table(
        caption=f"Times of preprocess and its host half: median per MoE layer and forward pass in rank 0, in brackets "
        f"relative to {baseline}. Elapsed includes waiting for the slowest rank's counts; computing is processor time.",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("preprocess")
    table.add_column("loss, first -> last", justify="right")
    table.add_column(f"like {baseline}")
    table.add_column("elapsed us", justify="right")
    table.add_column("computing us", justify="right")
    table.add_column("tokens/s", justify="right")
    for name, run in summary["implementations"].items():
        spent = run["preprocess"]
        table.add_row(
            name,
            f"{run['first_loss']:.4f} -> {run['last_loss']:.4f}",
            _verdict(name, baseline, run),
            f"{spent['median_us']:.0f} ({spent['time_relative_to_baseline']:.2f})",
            f"{spent['median_computing_us']:.0f} ({spent['computing_relative_to_baseline']:.2f})",
            f"{run['tokens_per_second']:,.0f}",
        )
    return table


def _verdict(name: str, baseline: str, run: Mapping[str, Any]) -> str:
    if name == baseline:
        return "-"
    return "every bit" if run["bit_identical"] else f"NO: step {run['differs_from_step']} on"


def write_summary(summary: Mapping[str, Any], folder: Path) -> Path:
    """Write summary.json; returns its path."""
    path = folder / SUMMARY
    write_whole(path, (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())
    return path


def draw_losses(summary: Mapping[str, Any], folder: Path) -> Path | None:
    """Draw loss.png; returns its path, None when matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, run) in enumerate(summary["implementations"].items()):
        # Equal curves lie on each other: the later ones are drawn thinner, so that all can be seen.
        steps = range(1, len(run["losses"]) + 1)
        axes.plot(steps, run["losses"], label=name, linewidth=max(1.0, 5.0 - 2.0 * number), alpha=0.8)
    sizes = summary["settings"]
    axes.set_xlabel("step")
    axes.set_ylabel("loss of a byte (nats)")
    axes.set_title(
        f"megatron-core {summary['versions']['megatron-core']}, {sizes['processes']} processes: "
        f"tp {sizes['tp']}, ep {sizes['ep']} x etp {sizes['etp']}"
    )
    axes.grid(alpha=0.3)
    axes.legend(title="preprocess")
    path, drawn = folder / PICTURE, io.BytesIO()
    figure.savefig(drawn, dpi=130, format="png")
    write_whole(path, drawn.getvalue())
    return path
