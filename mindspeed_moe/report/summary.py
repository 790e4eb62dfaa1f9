"""What a whole folder amounts to: its layers on one axis, and the experts that receive most."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mindspeed_moe.errors import ReportError
from mindspeed_moe.report.axis import Axis, make_axis
from mindspeed_moe.report.loads import LayerLoad, load_of_layer
from mindspeed_moe.report.reader import Telemetry

MOST_COLUMNS, LEAST_COLUMNS = 400, 48
_CELLS = 2_500_000  # of all heat maps together: a page of a few MB
_MOST_CELLS = 1 << 26  # of 8 bytes each, all layers together
_HOTTEST = 20


@dataclass(frozen=True)
class Summary:
    """layers: by number, those with a record on the axis."""

    telemetry: Telemetry
    axis: Axis
    layers: list[LayerLoad]


@dataclass(frozen=True)
class HotExpert:
    """share: of the layer's rows over its complete steps; times: that over an equal share."""

    layer: int
    expert: int
    ep_rank: int
    share: float
    times: float
    hottest: int
    steps: int


def summarize(
    telemetry: Telemetry, last: int | None = None, watch: Callable[[list[int]], Iterable[int]] = iter
) -> Summary:
    """Sum every layer over its ranks.

    last: only so many of the newest recorded steps. watch: wraps the layers, to show how far it has come.
    Raises ReportError for more layers, experts and ranks than a page and the memory can hold.
    """
    tables = telemetry.tables
    experts = sum(max(table.layout.experts for table in tables[layer]) for layer in tables)
    most = max(LEAST_COLUMNS, min(MOST_COLUMNS, _CELLS // experts))
    axis = make_axis((table.steps for of_layer in tables.values() for table in of_layer), most, last)
    pairs = sum(max(table.layout.ep for table in tables[layer]) ** 2 for layer in tables)
    if axis.columns * experts + 2 * pairs > _MOST_CELLS:
        raise ReportError(
            f"{len(tables)} layers of {experts} experts together, {axis.columns} columns of steps, {pairs} pairs of EP "
            f"ranks: more than {_MOST_CELLS} numbers do not fit into a page; give it the files of fewer layers"
        )
    found = [load_of_layer(layer, tables[layer], axis) for layer in watch(sorted(tables))]
    return Summary(telemetry, axis, [one for one in found if one is not None])


def hottest_experts(layers: Iterable[LayerLoad], most: int = _HOTTEST) -> list[HotExpert]:
    """Return the experts with the most rows in proportion to their layer's mean, hottest first."""
    found = []
    for one in layers:
        rows = one.total.sum()
        if rows > 0:
            for expert in np.argsort(-one.total, kind="stable")[:most].tolist():
                share = float(one.total[expert] / rows)
                hot = int(one.hottest[expert])
                owner = expert // one.local
                found.append(HotExpert(one.layer, expert, owner, share, share * one.experts, hot, one.complete))
    return sorted(found, key=lambda hot: (-hot.times, hot.layer, hot.expert))[:most]


def sent_by_all(layers: Iterable[LayerLoad], ep: int) -> npt.NDArray[np.float64]:
    """Sum the bytes [EP, EP] over all layers of this EP; NaN in the rows of ranks that reported for none."""
    sent = np.stack([one.sent for one in layers if one.ep == ep])
    return np.where(np.isnan(sent).all(axis=0), np.nan, np.nansum(sent, axis=0))
