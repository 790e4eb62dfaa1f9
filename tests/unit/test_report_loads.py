"""A layer over all ranks, by numbers that can be checked by hand and by the oracle."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers_telemetry import Line, Run, header, layer_line, load, write_segment
from mindspeed_moe.report.loads import LayerLoad
from mindspeed_moe.report.reader import read_folder
from mindspeed_moe.report.summary import hottest_experts, sent_by_all, summarize
from oracle.expert_load import loads_of, mean

NAN = math.nan


def only_layer(folder: Path, **options: Any) -> LayerLoad:
    (layer,) = summarize(read_folder(folder), **options).layers
    return layer


def same(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-12)


def rank(
    folder: Path, number: int, ep_rank: int, *loads: Line, head: dict[str, Any] | None = None, **layout: Any
) -> None:
    """Write a rank of a layer 1 with 4 experts on EP = 2."""
    lines = [header(number, **(head or {})), layer_line(1, experts=4, ep=2, ep_rank=ep_rank, **layout), *loads]
    write_segment(folder, number, 1 + len(list(folder.glob(f"rank{number:05d}*"))), lines)


def test_two_ranks(tmp_path: Path) -> None:
    rank(tmp_path, 0, 0, load(1, 1, [8, 4], [10, 20], dropped=1))
    rank(tmp_path, 1, 1, load(1, 1, [4, 0], [30, 40], dropped=2))
    layer = only_layer(tmp_path)
    same(layer.tokens, [[8, 4, 4, 0]])
    same(layer.imbalance, [2.0])  # 8 over a mean of 4; a rank's own value would be 8 / 6
    same(layer.dropped, [3])
    same(layer.sent, [[10, 20], [30, 40]])
    assert (layer.total.tolist(), layer.hottest.tolist(), layer.worst) == ([8, 4, 4, 0], [1, 0, 0, 0], (2.0, 1))
    (first, *_) = hottest_experts([layer])
    assert (first.expert, first.ep_rank, first.share, first.times, first.hottest, first.steps) == (0, 0, 0.5, 2.0, 1, 1)


def test_large_counts_are_summed_exactly(tmp_path: Path) -> None:
    for number in range(4):
        group = [0, 1] if number < 2 else [2, 3]
        rank(tmp_path, number, number % 2, load(1, 1, [2**47, 1], [2**47, 0], routed=1), group=group)
    layer = only_layer(tmp_path)
    same(layer.tokens, [[2**48, 2, 2**48, 2]])
    same(layer.sent, [[2**48, 0], [2**48, 0]])


def test_tp_ranks_count_once_and_copies_are_summed(tmp_path: Path) -> None:
    for copy, first in enumerate((0, 4)):  # two groups of EP 2 x TP 2
        group = list(range(first, first + 4))
        for place, number in enumerate(group):
            ep_rank, tp_rank = divmod(place, 2)
            tokens = [[1, 2], [3, 4]][ep_rank] if copy == 0 else [[10, 20], [30, 40]][ep_rank]
            layout = {"tp": 2, "tp_rank": tp_rank, "group": group}
            rank(tmp_path, number, ep_rank, load(5, 1, tokens, [1, 100], dropped=1), **layout)
    layer = only_layer(tmp_path)
    same(layer.tokens, [[11, 22, 33, 44]])
    same(layer.dropped, [8])  # every rank dropped its own
    same(layer.sent, [[4, 400], [4, 400]])  # every rank sent its own
    assert (layer.groups, layer.tp, layer.complete) == (2, 2, 1)


def test_any_tp_rank_will_do(tmp_path: Path) -> None:
    group = [0, 1, 2, 3]
    rank(tmp_path, 1, 0, load(5, 1, [1, 2], [1, 1]), tp=2, tp_rank=1, group=group)
    rank(tmp_path, 2, 1, load(5, 1, [3, 4], [1, 1]), tp=2, tp_rank=0, group=group)
    layer = only_layer(tmp_path)
    same(layer.tokens, [[1, 2, 3, 4]])
    same(layer.imbalance, [1.6])
    same(layer.dropped, [NAN])  # of ranks 0 and 3 nothing is known


def test_a_missing_rank_is_a_gap(tmp_path: Path) -> None:
    rank(tmp_path, 0, 0, load(1, 1, [8, 4], [1, 1]), load(2, 1, [6, 4], [1, 1]))
    rank(tmp_path, 1, 1, load(1, 1, [4, 0], [1, 1]))
    layer = only_layer(tmp_path)
    same(layer.tokens, [[8, 4, 4, 0], [6, 4, NAN, NAN]])
    same(layer.imbalance, [2, NAN])
    same(layer.dropped, [0, NAN])
    assert (layer.steps, layer.complete, layer.silent, layer.total.tolist()) == (2, 1, {1: 1}, [8, 4, 4, 0])


def test_a_copy_that_ends_earlier_leaves_gaps(tmp_path: Path) -> None:
    """A killed run: the copies' last steps differ, and half a sum is no sum."""
    for number in range(4):
        loads = [load(step, 1, [number + 1, 5], [1, 1]) for step in (1, 2)[: 2 if number < 2 else 1]]
        rank(tmp_path, number, number % 2, *loads, group=[0, 1] if number < 2 else [2, 3])
    layer = only_layer(tmp_path)
    same(layer.tokens, [[4, 10, 6, 10], [NAN] * 4])


def test_padding_and_unknown_drops(tmp_path: Path) -> None:
    rank(tmp_path, 0, 0, load(1, 1, [1, 1], [1, 1], dropped=None), load(2, 1, [2, 2], [1, 1], padded=True))
    rank(tmp_path, 1, 1, load(1, 1, [1, 1], [1, 1], dropped=5), load(2, 1, [2, 2], [1, 1], padded=True))
    layer = only_layer(tmp_path)
    same(layer.dropped, [NAN, NAN])
    assert (layer.padded, layer.drops_known, layer.complete) == (1, 0, 2)


def test_a_step_without_tokens(tmp_path: Path) -> None:
    rank(tmp_path, 0, 0, load(1, 1, [0, 0], [0, 0]))
    rank(tmp_path, 1, 1, load(1, 1, [0, 0], [0, 0]))
    layer = only_layer(tmp_path)
    same(layer.tokens, [[0, 0, 0, 0]])
    same(layer.imbalance, [NAN])
    assert (layer.worst, layer.hottest.tolist(), hottest_experts([layer])) == (None, [0] * 4, [])


def test_experts_that_share_the_first_place(tmp_path: Path) -> None:
    rank(tmp_path, 0, 0, load(1, 1, [5, 0], [0, 0]))
    rank(tmp_path, 1, 1, load(1, 1, [0, 5], [0, 0]))
    assert only_layer(tmp_path).hottest.tolist() == [1, 0, 0, 1]


OLD, NEW = ({"started": f"2026-11-26T1{hour}:00:00Z", "world_size": world} for hour, world in ((0, 4), (1, 2)))


def test_a_newer_run_with_another_layout_wins_where_both_have_records(tmp_path: Path) -> None:
    """4 ranks, then 2 ranks from step 2 on: what ranks 2 and 3 left of step 2 must not be added."""
    for number in range(4):
        lines = [header(number, **OLD), layer_line(1, experts=4, ep=4, ep_rank=number)]
        write_segment(tmp_path, number, 1, [*lines, *(load(step, 1, [100 + number], [1] * 4) for step in (1, 2))])
    for number in range(2):
        rank(tmp_path, number, number, load(2, 1, [number + 1, 7], [1, 1]), head=NEW)
    layer = only_layer(tmp_path)
    same(layer.tokens, [[100, 101, 102, 103], [1, 7, 2, 7]])
    assert (layer.ep, layer.stale, layer.groups) == (2, 2, 1)
    same(layer.sent, [[1, 1], [1, 1]])  # peers of another EP are other peers


def test_another_number_of_experts_is_left_out(tmp_path: Path) -> None:
    rank(tmp_path, 0, 0, load(7, 1, [1, 2], [1, 1]), head=OLD)
    lines = [header(0, **NEW), layer_line(1, experts=2, ep=1, ep_rank=0), load(1, 1, [3, 4], [1])]
    write_segment(tmp_path, 0, 2, lines)
    layer = only_layer(tmp_path)
    assert (layer.experts, layer.stale) == (2, 1)
    same(layer.tokens[0], [3, 4])


def test_a_lost_header_does_not_part_a_group(tmp_path: Path) -> None:
    rank(tmp_path, 0, 0, load(1, 1, [1, 2], [1, 1]))
    path = write_segment(tmp_path, 1, 1, [layer_line(1, experts=4, ep=2, ep_rank=1), load(1, 1, [3, 4], [1, 1])])
    path.write_bytes(b"damaged\n" + path.read_bytes())
    layer = only_layer(tmp_path)
    same(layer.tokens, [[1, 2, 3, 4]])
    assert layer.stale == 0


@pytest.mark.parametrize(
    "run",
    [
        Run(),
        Run(experts=24, ep=4, tp=2, copies=3, steps=tuple(range(5, 100, 5)), segment_steps=7),
        Run(layers=(0,), experts=8, ep=1, steps=(4,)),
    ],
)
def test_against_the_oracle(tmp_path: Path, run: Run) -> None:
    run.write(tmp_path, dropped=2)
    summary = summarize(read_folder(tmp_path))
    expected = loads_of(tmp_path)
    assert [one.layer for one in summary.layers] == list(expected)
    assert summary.axis.first.tolist() == summary.axis.last.tolist() == list(run.steps)
    for layer in summary.layers:
        oracle = expected[layer.layer]
        same(layer.tokens, list(oracle.tokens.values()))
        same(layer.imbalance, list(oracle.imbalance.values()))
        same(layer.dropped, list(oracle.dropped.values()))
        same(layer.sent, oracle.sent)
        assert layer.worst is not None
        assert layer.worst[0] == pytest.approx(max(oracle.imbalance.values()))
        winners = [row.index(max(row)) for row in oracle.tokens.values()]
        assert layer.hottest.sum() >= len(winners)
        assert all(layer.hottest[expert] >= winners.count(expert) for expert in winners)
    same(sent_by_all(summary.layers, run.ep), sum(np.array(one.sent) for one in expected.values()))


def test_blocks_of_steps_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Run(steps=tuple(range(30))).write(tmp_path)
    telemetry = read_folder(tmp_path)
    whole = summarize(telemetry).layers[0]
    monkeypatch.setattr("mindspeed_moe.report.blocks._CELLS", 7 * 16)
    parts = summarize(telemetry).layers[0]
    for name in ("tokens", "imbalance", "dropped", "total", "hottest"):
        same(getattr(parts, name), getattr(whole, name))
    assert parts.worst == whole.worst


def test_bins_are_means_of_what_each_step_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindspeed_moe.report.summary.MOST_COLUMNS", 10)
    monkeypatch.setattr("mindspeed_moe.report.summary.LEAST_COLUMNS", 1)
    monkeypatch.setattr("mindspeed_moe.report.blocks._CELLS", 7 * 16)  # bins lie across blocks
    Run(steps=tuple(range(1, 36))).write(tmp_path)
    summary = summarize(read_folder(tmp_path))
    oracle = loads_of(tmp_path)[3]
    assert summary.axis.per_column == 4
    bins = [range(first, last + 1) for first, last in zip(summary.axis.first, summary.axis.last, strict=True)]
    assert [len(one) for one in bins] == [4] * 8 + [3]
    layer = summary.layers[0]
    same(layer.imbalance, [mean([oracle.imbalance[step] for step in one]) for one in bins])
    same(layer.tokens[:, 5], [mean([oracle.tokens[step][5] for step in one]) for one in bins])
    assert layer.worst is not None
    assert layer.worst[0] == pytest.approx(max(oracle.imbalance.values()))


def test_the_last_steps_alone(tmp_path: Path) -> None:
    Run(layers=(3,), steps=tuple(range(30))).write(tmp_path)
    oracle = loads_of(tmp_path)[3]
    layer = only_layer(tmp_path, last=4)
    same(layer.tokens, [oracle.tokens[step] for step in range(26, 30)])
    assert layer.steps == 4


def test_a_layer_that_is_not_in_the_last_steps(tmp_path: Path) -> None:
    lines = [header(0), layer_line(1, experts=2, ep=1, ep_rank=0), layer_line(2, experts=2, ep=1, ep_rank=0)]
    write_segment(tmp_path, 0, 1, [*lines, load(1, 1, [1, 1], [1]), load(2, 2, [1, 1], [1])])
    assert [one.layer for one in summarize(read_folder(tmp_path), last=1).layers] == [2]
