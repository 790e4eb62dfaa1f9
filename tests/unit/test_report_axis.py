"""Columns over time: order, gaps, bins."""

from __future__ import annotations

import numpy as np
import pytest

from mindspeed_moe.report.axis import GAP, make_axis


def axis_of(*steps: int, most: int = 400, last: int | None = None):
    return make_axis([np.array(steps, np.int64)], most, last)


def test_every_step_once_in_order() -> None:
    axis = make_axis([np.array([3, 1]), np.array([2, 3])], 400)
    assert (axis.steps.tolist(), axis.of_step.tolist(), axis.first.tolist()) == ([1, 2, 3], [0, 1, 2], [1, 2, 3])
    assert axis.gaps == []


def test_a_gap_has_one_empty_column() -> None:
    axis = axis_of(1, 2, 3, 1000, 1001)
    assert axis.first.tolist() == [1, 2, 3, GAP, 1000, 1001]
    assert axis.of_step.tolist() == [0, 1, 2, 4, 5]
    assert axis.gaps == [(3, 1000)]


def test_an_interval_is_no_gap() -> None:
    assert axis_of(10, 20, 30, 50, 60).first.tolist() == [10, 20, 30, GAP, 50, 60]


def test_no_bin_lies_across_a_gap() -> None:
    axis = axis_of(*range(10), *range(100, 107), most=8)
    assert axis.per_column == 3
    assert list(zip(axis.first, axis.last, strict=True)) == [
        (0, 2), (3, 5), (6, 8), (9, 9), (GAP, GAP), (100, 102), (103, 105), (106, 106)
    ]  # fmt: skip


def test_too_many_gaps_are_not_shown() -> None:
    steps = [one for begin in range(0, 900, 9) for one in (begin, begin + 1, begin + 2)]
    axis = axis_of(*steps, most=100)
    assert (axis.gaps, axis.columns, axis.per_column) == ([], 100, 3)


@pytest.mark.parametrize("count", [1, 399, 400, 401, 2049, 100_000])
def test_the_number_of_columns_is_bounded(count: int) -> None:
    axis = axis_of(*range(count))
    assert axis.columns <= 400
    assert axis.per_column == -(-count // 400)
    assert np.bincount(axis.of_step).sum() == count


def test_the_last_ones() -> None:
    assert axis_of(1, 2, 3, 4, last=2).steps.tolist() == [3, 4]
    assert axis_of(1, 2, last=5).steps.tolist() == [1, 2]
