"""Shapes of layers, sweeps over them, and what is fed to them."""

from __future__ import annotations

import numpy as np
import pytest

from mindspeed_moe.bench.shapes import LARGEST, Shape, sweep
from mindspeed_moe.bench.traffic import make_counts, make_routing_map
from mindspeed_moe.errors import BenchError


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ((0, 1, 1, 4, 1, "dropless"), "E must be at least 1"),
        ((8, 0, 1, 4, 1, "dropless"), "EP must be at least 1"),
        ((8, 1, 0, 4, 1, "dropless"), "TP must be at least 1"),
        ((8, 1, 1, 0, 1, "dropless"), "T must be at least 1"),
        ((8, 1, 1, 4, 0, "dropless"), "1 to 8 experts"),
        ((8, 1, 1, 4, 9, "dropless"), "1 to 8 experts"),
        ((12, 8, 1, 4, 2, "dropless"), "12 experts do not divide by EP = 8"),
        ((8, 1, 1, 4, 1, "dropful"), "dropless, drop, pad"),
        ((8, 1, 1, LARGEST // 8 + 1, 1, "dropless"), "at most"),
        ((8, 8, LARGEST // 64 + 1, 1, 1, "dropless"), "at most"),
    ],
)
def test_impossible_shapes_are_refused(shape, problem):
    with pytest.raises(BenchError, match=problem):
        Shape(*shape)


@pytest.mark.parametrize(
    ("tokens", "topk", "experts", "mode", "capacity"),
    [(64, 2, 8, "dropless", None), (64, 2, 8, "drop", 16), (10, 3, 7, "pad", 5), (1, 1, 8, "drop", 1)],
)
def test_capacity(tokens, topk, experts, mode, capacity):
    assert Shape(experts, 1, 1, tokens, topk, mode).capacity == capacity


def test_every_rank_of_a_shape_has_its_layout():
    layouts = [Shape(8, 2, 3, 4, 1, "dropless").layout(rank) for rank in range(6)]
    assert [(one.ep_rank, one.tp_rank) for one in layouts] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert [one.group_index for one in layouts] == list(range(6))


def test_a_sweep_leaves_out_what_is_impossible_and_says_why():
    shapes, left_out = sweep((8, 16), (1, 16), (1,), (4,), (2,), ("dropless", "pad"))
    assert [(one.experts, one.ep, one.mode) for one in shapes] == [
        (8, 1, "dropless"),
        (8, 1, "pad"),
        (16, 1, "dropless"),
        (16, 1, "pad"),
        (16, 16, "dropless"),
        (16, 16, "pad"),
    ]
    assert len(left_out) == 2
    assert all("8 experts do not divide by EP = 16" in one for one in left_out)


def test_a_sweep_over_real_ranks_keeps_what_makes_up_the_ranks():
    shapes, left_out = sweep((8,), (1, 2, 4), (1, 2), (4,), (2,), ("dropless",), ranks=4)
    assert [(one.ep, one.tp) for one in shapes] == [(2, 2), (4, 1)]
    assert len(left_out) == 4
    assert all("must be the 4 ranks" in one for one in left_out)


def test_a_sweep_without_a_possible_shape_is_an_error():
    with pytest.raises(BenchError, match=r"^impossible shape"):
        sweep((9,), (2,), (1,), (4,), (2,), ("dropless",))
    with pytest.raises(BenchError, match="no possible shape") as told:
        sweep((9,), (2, 4), (1,), (4,), (2,), ("dropless",))
    assert str(told.value).count("do not divide") == 2


@pytest.mark.parametrize("mode", ["dropless", "drop"])
def test_routing_maps(mode):
    shape = Shape(8, 2, 1, 50, 3, mode)
    rows = make_routing_map(shape, np.random.default_rng(1)).tolist()
    assert (len(rows), len(rows[0])) == (50, 8)
    taken = [sum(row[expert] for row in rows) for expert in range(8)]
    if mode == "dropless":
        assert {sum(row) for row in rows} == {3}
        assert max(taken) > 19  # so that the capacity below drops something
    else:
        assert {sum(row) for row in rows} == {1, 2, 3} or {sum(row) for row in rows} == {2, 3}
        assert max(taken) == shape.capacity == 19


def test_the_seed_decides():
    shape = Shape(8, 2, 2, 50, 3, "dropless")

    def made(seed):
        generator = np.random.default_rng(seed)
        routing_map = make_routing_map(shape, generator)
        return routing_map.tolist(), make_counts(shape, 3, routing_map, generator).tolist()

    assert made(1) == made(1)
    assert made(1) != made(2)


@pytest.mark.parametrize("mode", ["dropless", "drop"])
def test_counts_of_a_group(mode):
    shape = Shape(8, 2, 2, 50, 3, mode)
    generator = np.random.default_rng(0)
    routing_map = make_routing_map(shape, generator)
    counts = make_counts(shape, 3, routing_map, generator).tolist()
    rows = routing_map.tolist()
    assert counts[1][1] == [sum(row[expert] for row in rows) for expert in range(8)]
    flat = [count for rank in counts for one in rank for count in one]
    assert len(flat) == 32
    assert 0 <= min(flat) <= max(flat) <= (19 if mode == "drop" else 50)
