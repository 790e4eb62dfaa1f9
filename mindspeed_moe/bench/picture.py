"""A picture of a sweep: stock's time over `packed`'s, for every number of experts and every EP."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mindspeed_moe.bench.accelerated import BUSY, IDLE, AcceleratorResult
from mindspeed_moe.bench.contestants import PACKED
from mindspeed_moe.bench.layer import LayerResult
from mindspeed_moe.bench.measure import Result
from mindspeed_moe.bench.shapes import Shape
from mindspeed_moe.dispatch_table import STOCK
from mindspeed_moe.errors import BenchError
from mindspeed_moe.files import write_whole

Ratios = dict[tuple[int, int], float]  # (E, EP) -> stock's time / packed's
_DPI = 130
_CELL, _MARGIN = 0.62, 1.6  # inches
_MOST = 8  # panels
_LETTERS = 14  # of the line above them, an inch


def panels_of(results: Sequence[Any]) -> dict[str, Ratios]:
    """Return title -> ratios: one panel for each thing measured, and each T, top-k, TP and mode."""
    panels: dict[str, Ratios] = {}
    for result in results:
        shape: Shape = result.shape
        for what, ratio in _ratios(result).items():
            title = f"{what}\nT={shape.tokens} top-{shape.topk} TP={shape.tp} {shape.mode}"
            panels.setdefault(title, {})[shape.experts, shape.ep] = ratio
    return panels


def _ratios(result: Any) -> Mapping[str, float]:
    if isinstance(result, Result):
        return {"preprocess and its host half": result.ratio(PACKED)}
    if isinstance(result, LayerResult):
        return {f"whole layer, hidden {result.hidden}, {one}": result.ratio(PACKED, one) for one in result.times}
    assert isinstance(result, AcceleratorResult)
    times = result.times[IDLE]
    found = {f"host time, {condition} device": result.ratio(PACKED, condition) for condition in (IDLE, BUSY)}
    found["until the splits are there, idle device"] = times[STOCK].elapsed.p50 / times[PACKED].elapsed.p50
    spans = [result.on_device[name].span for name in (STOCK, PACKED)]
    if spans[0] is not None and spans[1] is not None:
        found["device time after queued work"] = spans[0].p50 / spans[1].p50
    return found


def draw_ratios(results: Sequence[Any], told: str, path: Path) -> None:
    """Draw the ratios as heat maps into a PNG file; `told` is what stands above them.

    Needs matplotlib. Raises BenchError when the file cannot be written, or there are too many panels.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    panels = panels_of(results)
    if len(panels) > _MOST:
        raise BenchError(f"--png: {len(panels)} panels do not fit into one picture; allowed: {_MOST}. Sweep less")
    experts = sorted({one for ratios in panels.values() for one, _ in ratios})
    sizes = sorted({one for ratios in panels.values() for _, one in ratios})
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    width, height = max(3.6, _CELL * len(sizes) + _MARGIN), max(2.4, _CELL * len(experts) + _MARGIN)
    figure = Figure(figsize=(columns * width + 1, rows * height + 0.9), layout="constrained")
    largest = max(2.0, *(max(ratio, 1 / ratio) for ratios in panels.values() for ratio in ratios.values()))
    norm = LogNorm(1 / largest, largest)  # equal colours for equal gain and loss
    drawn, image = [], None
    for number, (title, ratios) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, number)
        drawn.append(axes)
        grid = [[ratios.get((one, size), float("nan")) for size in sizes] for one in experts]
        image = axes.imshow(grid, norm=norm, cmap="RdBu", aspect="auto", origin="lower")
        axes.set_facecolor("0.9")
        for row, line in enumerate(grid):
            for column, ratio in enumerate(line):
                if ratio == ratio:  # not missing
                    dark = max(ratio, 1 / ratio) > largest**0.6
                    color = "white" if dark else "black"
                    axes.text(column, row, f"{ratio:.1f}", ha="center", va="center", color=color, size=9)
        axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        axes.set_yticks(range(len(experts)), [str(one) for one in experts])
        axes.set_xlabel("EP")
        axes.set_ylabel("experts")
        axes.set_title(title, fontsize=10)
    assert image is not None
    bar = figure.colorbar(image, ax=drawn, label="stock's time / packed's")
    bar.minorticks_off()
    ticks = [one for one in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if 1 / largest <= one <= largest]
    bar.set_ticks(ticks, labels=[f"{one:g}" for one in ticks])
    figure.suptitle(textwrap.fill(told, int(_LETTERS * figure.get_figwidth())), fontsize=8)
    drawing = io.BytesIO()
    figure.savefig(drawing, dpi=_DPI, format="png")
    try:
        write_whole(path, drawing.getvalue())
    except OSError as error:
        raise BenchError(f"--png {path}: cannot be written: {error.strerror}") from error
