"""The load of one layer over all ranks: what each expert received, how uneven it was, and who sent to whom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mindspeed_moe.report.axis import Axis
from mindspeed_moe.report.blocks import blocks_of
from mindspeed_moe.report.contributions import Contribution, contributions_of, newest_of, without_contradicted
from mindspeed_moe.report.reader import Table

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LayerLoad:
    """One layer. E experts, C columns of the axis; NaN where something is not known.

    tokens [C, E]: rows of an expert in a step, mean over a column. imbalance [C]: most / mean over all experts of a
    step, mean over a column. dropped [C]: dropped pairs of a step over all ranks, mean over a column.
    sent [EP, EP]: bytes from a rank (row) to a peer over all steps, NaN in the row of a rank that reported nothing.
    steps: those with any record; complete: those in which every rank of every group has told its tokens.
    total [E]: rows over the complete steps. hottest [E]: complete steps in which nobody had more.
    worst: the highest imbalance and its step. silent: EP rank -> steps in which its tokens are missing.
    padded: steps with padding rows. drops_known: steps whose dropped pairs are known.
    stale: records left out, because newer ones contradict them. numbered: whether `layer` is Megatron's number.
    """

    layer: int
    experts: int
    topk: int
    ep: int
    tp: int
    groups: int
    tokens: Floats
    imbalance: Floats
    dropped: Floats
    sent: Floats
    steps: int
    complete: int
    total: Floats
    hottest: Ints
    worst: tuple[float, int] | None
    silent: dict[int, int]
    padded: int
    drops_known: int
    stale: int
    numbered: bool

    @property
    def local(self) -> int:
        """Experts of one rank, L."""
        return self.experts // self.ep


class _Means:
    """Means of the known values of each column."""

    def __init__(self, *shape: int) -> None:
        self.sums = np.zeros(shape)
        self.counts = np.zeros(shape, np.int32)

    def add(self, columns: Ints, values: npt.NDArray[np.generic], known: Bools) -> None:
        """Add values [n, ...] of steps that lie in rising columns [n]."""
        begins = np.flatnonzero(np.diff(columns, prepend=-1))
        self.sums[columns[begins]] += np.add.reduceat(np.where(known, values, 0), begins, axis=0, dtype=np.float64)
        self.counts[columns[begins]] += np.add.reduceat(known, begins, axis=0, dtype=np.int32)

    def result(self) -> Floats:
        """Return the means, NaN where nothing was known."""
        means: Floats = np.divide(self.sums, self.counts, out=np.full(self.sums.shape, np.nan), where=self.counts > 0)
        return means


def load_of_layer(layer: int, tables: list[Table], axis: Axis) -> LayerLoad | None:
    """Sum a layer over its ranks; None when nothing of it lies on the axis."""
    every = contributions_of(tables, axis.steps)
    if not every:
        return None
    newest = newest_of(every)
    layout, experts = newest.layout, newest.layout.experts
    used = without_contradicted([one for one in every if one.layout.experts == experts], len(axis.steps))
    tokens, imbalance, dropped = _Means(axis.columns, experts), _Means(axis.columns), _Means(axis.columns)
    total, hottest = np.zeros(experts), np.zeros(experts, np.int64)
    missing = np.zeros(layout.ep, np.int64)
    steps = complete = padded = drops_known = 0
    worst: tuple[float, int] | None = None
    for block in blocks_of(used, len(axis.steps), experts):
        columns = axis.of_step[block.at]
        whole: Bools = np.all(block.known, axis=1)
        most, mean = block.tokens.max(axis=1), block.tokens.mean(axis=1)
        measurable = whole & (most > 0)
        ratios = np.divide(most, mean, out=np.zeros(len(most)), where=measurable)
        tokens.add(columns, block.tokens, block.known)
        imbalance.add(columns, ratios, measurable)
        dropped.add(columns, block.dropped, block.drops_known)
        total += block.tokens[whole].sum(axis=0, dtype=np.float64)
        hottest += (block.tokens == most[:, None])[measurable].sum(axis=0)
        missing += (~block.known[:, :: layout.local]).sum(axis=0)
        steps += len(block.at)
        complete += int(whole.sum())
        padded += int(block.padded.sum())
        drops_known += int(block.drops_known.sum())
        at = int(ratios.argmax())
        if measurable[at] and (worst is None or ratios[at] > worst[0]):
            worst = float(ratios[at]), int(axis.steps[block.at[at]])
    return LayerLoad(
        layer,
        experts,
        layout.topk,
        layout.ep,
        layout.tp,
        groups=len({one.group for one in used if one.group.kind == newest.group.kind}),
        tokens=tokens.result(),
        imbalance=imbalance.result(),
        dropped=dropped.result(),
        sent=_sent(used, layout.ep),
        steps=steps,
        complete=complete,
        total=total,
        hottest=hottest,
        worst=worst,
        silent={int(one): int(missing[one]) for one in np.flatnonzero(missing)},
        padded=padded,
        drops_known=drops_known,
        stale=sum(len(one.at) for one in every) - sum(len(one.at) for one in used),
        numbered=layout.numbered,
    )


def _sent(contributions: list[Contribution], ep: int) -> Floats:
    """Sum bytes over steps, TP ranks and groups; runs with another EP have other peers and are left out."""
    sent, told = np.zeros((ep, ep)), np.zeros(ep, bool)
    for one in contributions:
        if one.layout.ep == ep:
            sent[one.layout.ep_rank] += one.sent.sum(axis=0, dtype=np.float64)
            told[one.layout.ep_rank] = True
    sent[~told] = np.nan
    return sent
