"""Pictures of a report for papers: PNG files that need no browser."""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_moe.errors import ReportError
from mindspeed_moe.files import not_written_out, write_whole
from mindspeed_moe.report.axis import Axis
from mindspeed_moe.report.loads import LayerLoad
from mindspeed_moe.report.summary import Summary, sent_by_all

_DPI = 160
_WIDTH = 7.0  # inches: a page's text
_LEGEND = 12  # layers that still have a name and colour of their own
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def check_pictures() -> None:
    """Raise ReportError when matplotlib is missing; asked before anything is read."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ReportError("--png: matplotlib is not installed (pip install 'mindspeed-moe[plot]')")


def draw_pictures(
    summary: Summary, folder: Path, watch: Callable[[list[LayerLoad]], Iterable[LayerLoad]] = list
) -> list[Path]:
    """Draw load-layer<N>.png of every layer, imbalance.png, dropped.png and sent-ep<EP>.png into a folder.

    watch: wraps the layers, to show how far it has come. Raises ReportError when one cannot be written.
    """
    reason = not_written_out(os.fsencode(folder).decode(errors="replace"))
    if reason is not None:
        raise ReportError(f"--png {folder}: {reason}")
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in _figures(summary, watch):
            buffer = io.BytesIO()
            figure.savefig(buffer, dpi=_DPI, format="png")
            write_whole(folder / name, buffer.getvalue())
            written.append(folder / name)
    except OSError as error:
        raise ReportError(f"--png {folder}: cannot be written: {error.strerror}") from error
    return written


def _figures(summary: Summary, watch: Callable[[list[LayerLoad]], Iterable[LayerLoad]]) -> Iterator[tuple[str, Any]]:
    axis, layers = summary.axis, summary.layers
    digits = len(str(layers[-1].layer))
    for one in watch(layers):
        yield f"load-layer{one.layer:0{digits}d}.png", _load(axis, one)
    curves = {one.layer: one.imbalance for one in layers}
    yield "imbalance.png", _lines(axis, curves, "tokens of the busiest expert / mean")
    drops = {one.layer: one.dropped for one in layers if not np.isnan(one.dropped).all()}
    if drops:
        yield "dropped.png", _lines(axis, drops, "dropped token-expert pairs in a step")
    for ep in sorted({one.ep for one in layers}):
        yield f"sent-ep{ep}.png", _sent(sent_by_all(layers, ep), sum(one.ep == ep for one in layers))


def _figure(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _step_ticks(axes: Any, axis: Axis) -> None:
    recorded = np.flatnonzero(axis.first >= 0)
    places = np.unique(recorded[np.linspace(0, len(recorded) - 1, min(7, len(recorded))).astype(int)])
    axes.set_xticks(places, [f"{axis.first[at]:,}" for at in places])
    means = f" (columns are means of up to {axis.per_column} steps)" if axis.per_column > 1 else ""
    axes.set_xlabel(f"training step{means}")


def _load(axis: Axis, one: LayerLoad) -> Any:
    figure, axes = _figure(min(9.0, max(3.0, 2.0 + one.experts / 60)))
    axes.set_facecolor("0.8")  # what is not known
    image = axes.imshow(one.tokens.T, aspect="auto", interpolation="nearest", cmap="viridis", vmin=0)
    axes.locator_params(axis="y", integer=True)
    axes.set_ylabel("expert")
    _step_ticks(axes, axis)
    padding = ", padding included" if one.padded else ""
    axes.set_title(f"Layer {one.layer}: tokens of each expert in a step{padding}", fontsize=10)
    figure.colorbar(image, ax=axes, label="tokens")
    return figure


def _lines(axis: Axis, curves: dict[int, Any], label: str) -> Any:
    from matplotlib import colormaps

    figure, axes = _figure(3.2)
    colours = colormaps["viridis"](np.linspace(0, 0.92, len(curves)))
    for colour, (layer, values) in zip(colours, curves.items(), strict=True):
        axes.plot(values, color=colour, linewidth=1, label=f"layer {layer}", marker="." if len(values) < 3 else "")
    axes.set_ylabel(label, fontsize=9)
    _step_ticks(axes, axis)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    if len(curves) <= _LEGEND:
        figure.legend(fontsize=8, loc="outside right upper", frameon=False)
    else:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        norm = Normalize(min(curves), max(curves))
        figure.colorbar(ScalarMappable(norm, "viridis"), ax=axes, label="layer")
    return figure


def _sent(sent: Any, layers: int) -> Any:
    figure, axes = _figure(5.6)
    axes.set_facecolor("0.8")
    most = np.nanmax(sent) if not np.isnan(sent).all() else 0.0
    power = min(len(_UNITS) - 1, int(np.log10(max(most, 1)) // 3))
    image = axes.imshow(sent / 1000**power, interpolation="nearest", cmap="viridis", vmin=0)
    axes.locator_params(integer=True)
    axes.set_xlabel("to EP rank")
    axes.set_ylabel("from EP rank")
    axes.set_title(f"Bytes sent, {layers} layer{'s' if layers > 1 else ''}, all steps", fontsize=10)
    figure.colorbar(image, ax=axes, label=_UNITS[power])
    return figure
