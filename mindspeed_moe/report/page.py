"""The report as one HTML file that needs nothing else: markup, style, scripts and data in one."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from html import escape
from importlib import resources
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt

from mindspeed_moe.errors import ReportError
from mindspeed_moe.report.encode import pack_counts, pack_floats, rounded, script_json
from mindspeed_moe.report.loads import LayerLoad
from mindspeed_moe.report.notes import binning_of, notes_of, world_size
from mindspeed_moe.report.summary import Summary, hottest_experts, sent_by_all

_PAIRS = 400_000  # cells of all layers' matrices of bytes together
_TITLE = "Expert load"


def page_of(summary: Summary, name: str) -> str:
    """Return the page; name: of the folder. Raises ReportError when plotly is missing."""
    scripts = {"plotly": plotly_script(), "charts": _file("charts.js"), "app": _file("app.js")}
    # Only these scripts may run, and nothing may be fetched: whatever stands in the data.
    allowed = " ".join(f"'sha256-{_digest(text)}'" for text in scripts.values())
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src {allowed}"
    return Template(_file("page.html")).substitute(
        policy=policy,
        title=f"{_TITLE}: {escape(name)}",
        name=escape(name),
        origin=_origin(summary),
        tiles=_tiles(summary),
        notes=_notes(summary),
        binning=escape(binning_of(summary)),
        options="".join(f"<option>{one.layer}</option>" for one in summary.layers),
        hottest=_hottest(summary.layers),
        style=_file("page.css"),
        data=script_json(data_of(summary)),
        **scripts,
    )


def plotly_script() -> str:
    """Return the charting library. Raises ReportError when it is missing."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ReportError("plotly is not installed (pip install 'mindspeed-moe[report]')") from error
    text: str = get_plotlyjs()
    text = text.replace("\r\n", "\n").replace("\r", "\n")  # as a browser reads it, or its digest would not fit
    return text.replace("</script", "<\\/script").replace("<!--", "\\x3c!--")


def data_of(summary: Summary) -> dict[str, Any]:
    """Return what the charts show, as plain data: what has E or EP times EP numbers is packed."""
    axis, layers = summary.axis, summary.layers
    side = max(1, int((_PAIRS / len(layers)) ** 0.5))
    return {
        "first": axis.first.tolist(),
        "last": axis.last.tolist(),
        "layers": [
            {
                "layer": one.layer,
                "experts": one.experts,
                "ep": one.ep,
                "tokens": pack_counts(one.tokens.T),
                "imbalance": rounded(one.imbalance),
                "dropped": rounded(one.dropped),
                "padded": one.padded > 0,
                "sent": matrix(one.sent, side),
            }
            for one in layers
        ],
        "sentByAll": {str(ep): matrix(sent_by_all(layers, ep), 512) for ep in {one.ep for one in layers}},
    }


def matrix(sent: npt.NDArray[np.float64], side: int) -> dict[str, Any]:
    """Pack bytes [EP, EP]; with more ranks than `side`, neighbours (`block` of them) are summed."""
    block = -(-len(sent) // side)
    if block > 1:
        begins = np.arange(0, len(sent), block)
        sent = np.add.reduceat(np.add.reduceat(sent, begins, axis=0), begins, axis=1)
    return {"block": block, "side": len(sent), **pack_floats(sent)}


def _origin(summary: Summary) -> str:
    headers = summary.telemetry.headers.values()
    parts = []
    for label, key in (
        ("device", "device"),
        ("mindspeed_moe", "mindspeed_moe"),
        ("megatron-core", "megatron_core"),
        ("torch", "torch"),
    ):
        told = sorted({getattr(one, key) or "not told" for one in headers}) or ["not told"]
        parts.append(f"<span>{label} <b>{escape(', '.join(told[:4]))}{' ...' if len(told) > 4 else ''}</b></span>")
    begun = sorted({one.started for one in headers if one.started})
    if begun:
        parts.append(f"<span>newest files begun <b>{escape(begun[-1])}</b></span>")
    return "\n".join(parts)


def _tiles(summary: Summary) -> str:
    axis, layers = summary.axis, summary.layers
    ranks, world = len(summary.telemetry.ranks), world_size(summary)
    shapes = {f"EP {one.ep}, TP {one.tp}, {one.groups} cop{'y' if one.groups == 1 else 'ies'}" for one in layers}
    known = np.concatenate([one.imbalance for one in layers])
    typical = np.nanmedian(known) if not np.isnan(known).all() else None
    worst = max((one for one in layers if one.worst), key=lambda one: one.worst or (0.0, 0), default=None)
    unknown = "not known"
    tiles = [
        ("Steps", f"{len(axis.steps):,}", f"{axis.steps[0]:,} to {axis.steps[-1]:,}"),
        ("MoE layers", f"{len(layers):,}", f"{layers[0].layer} to {layers[-1].layer}"),
        ("Experts", _span(one.experts for one in layers), f"top-{_span(one.topk for one in layers)}"),
        ("Ranks", f"{ranks:,}" if ranks == world else f"{ranks:,} of {world:,}", _one_of(shapes)),
        ("Typical imbalance", f"{typical:.2f}" if typical is not None else unknown, "most / mean, median"),
        (
            "Worst imbalance",
            f"{worst.worst[0]:.2f}" if worst and worst.worst else unknown,
            f"layer {worst.layer}, step {worst.worst[1]:,}" if worst and worst.worst else "no complete step",
        ),
    ]
    return "\n".join(
        f"<div><dt>{label}</dt><dd>{value}<small>{small}</small></dd></div>" for label, value, small in tiles
    )


def _span(values: Iterable[int]) -> str:
    few = sorted(set(values))
    return f"{few[0]}" if len(few) == 1 else f"{few[0]}-{few[-1]}"


def _one_of(shapes: set[str]) -> str:
    return shapes.pop() if len(shapes) == 1 else "several layouts"


def _notes(summary: Summary) -> str:
    notes = notes_of(summary)
    if not notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<section class="notes" aria-label="Notes"><h2>Before you read on</h2><ul>{items}</ul></section>'


def _hottest(layers: list[LayerLoad]) -> str:
    found = hottest_experts(layers)
    if not found:
        return "<p>Not known: there is no step in which every rank has reported.</p>"
    rows = "".join(
        f'<tr><td><button type="button" data-layer="{one.layer}">{one.layer}</button></td><td>{one.expert}</td>'
        f"<td>{one.ep_rank}</td><td>{one.share:.2%}</td><td>{one.times:.2f}</td>"
        f"<td>{one.hottest:,} of {one.steps:,}</td></tr>"
        for one in found
    )
    heads = ("Layer", "Expert", "EP rank", "Share", "Times mean", "Hottest in")
    head = "".join(f'<th scope="col">{one}</th>' for one in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _file(name: str) -> str:
    return (resources.files(__package__) / "static" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
