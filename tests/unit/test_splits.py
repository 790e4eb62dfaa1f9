"""The numerical core, with numbers to check by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mindspeed_moe.errors import CountOverflowError
from mindspeed_moe.preprocess.layout import ExpertLayout
from mindspeed_moe.preprocess.splits import MAX_ROWS, SplitPlan, padded_plan
from mindspeed_moe.preprocess.splits import split_plan as plan_of_rows


def counts(values: Any) -> Any:
    return np.array(values, dtype=np.int32)


def split_plan(layout: ExpertLayout, local: Any, received: Any, rows: int | None) -> SplitPlan:
    """local: [E]. received: [EP, TP, L]."""
    experts = layout.num_local_experts
    both = [local.reshape(layout.ep_size, experts), received.reshape(layout.group_size, experts)]
    return plan_of_rows(layout, np.concatenate(both).astype(np.int64), rows)


def listed(plan: SplitPlan) -> dict[str, Any]:
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in plan._asdict().items()}


# EP = 2, TP = 2, four experts, two on a rank. This rank is (ep 1, tp 0) and owns experts 2 and 3.
TWO_BY_TWO = ExpertLayout(num_experts=4, ep_size=2, tp_size=2, ep_rank=1, tp_rank=0)
LOCAL = counts([1, 2, 3, 4])
RECEIVED = counts(
    [
        [
            [10, 20],
            [30, 40],
        ],  # from ep 0: tp 0 sends 10 and 20 tokens for experts 2 and 3, tp 1 sends 30 and 40
        [[3, 4], [50, 60]],  # from ep 1: tp 0 is this rank
    ]
)


def test_two_by_two_ranks() -> None:
    assert listed(split_plan(TWO_BY_TWO, LOCAL, RECEIVED, None)) == {
        "input_splits": [1 + 2, 3 + 4],  # to ep 0 (experts 0, 1) and to ep 1 (experts 2, 3)
        "output_splits": [10 + 20, 3 + 4],  # from the ranks with tp 0
        "output_splits_tp": [10 + 20 + 3 + 4, 30 + 40 + 50 + 60],
        "tokens_per_local_expert": [10 + 30 + 3 + 50, 20 + 40 + 4 + 60],
        "chunk_table": [[10, 20], [3, 4], [30, 40], [50, 60]],  # (tp, ep) order: tp 0 ep 0, tp 0 ep 1, tp 1 ep 0, ...
        "num_out_tokens": 1 + 2 + 3 + 4,
    }


def test_the_other_tp_rank_reads_the_other_row() -> None:
    other = ExpertLayout(num_experts=4, ep_size=2, tp_size=2, ep_rank=1, tp_rank=1)
    plan = listed(split_plan(other, counts([0, 0, 50, 60]), RECEIVED, None))
    assert plan["output_splits"] == [30 + 40, 50 + 60]
    assert plan["output_splits_tp"] == [37, 180]
    assert plan["tokens_per_local_expert"] == [93, 124]


def test_a_known_number_of_rows_is_taken_as_it_is() -> None:
    assert split_plan(TWO_BY_TWO, LOCAL, RECEIVED, 12).num_out_tokens == 12


def test_one_expert_on_each_of_three_ranks() -> None:
    layout = ExpertLayout(num_experts=3, ep_size=3, tp_size=1, ep_rank=1, tp_rank=0)
    assert listed(split_plan(layout, counts([5, 6, 7]), counts([[[1]], [[6]], [[0]]]), None)) == {
        "input_splits": [5, 6, 7],
        "output_splits": [1, 6, 0],
        "output_splits_tp": [7],
        "tokens_per_local_expert": [7],
        "chunk_table": None,
        "num_out_tokens": 18,
    }


def test_tensor_parallel_alone_with_one_expert() -> None:
    layout = ExpertLayout(num_experts=1, ep_size=1, tp_size=2, ep_rank=0, tp_rank=1)
    assert listed(split_plan(layout, counts([5]), counts([[[3], [5]]]), 5)) == {
        "input_splits": [5],
        "output_splits": [5],
        "output_splits_tp": [3, 5],
        "tokens_per_local_expert": [8],
        "chunk_table": None,
        "num_out_tokens": 5,
    }


def test_tensor_parallel_alone_with_two_experts() -> None:
    layout = ExpertLayout(num_experts=2, ep_size=1, tp_size=2, ep_rank=0, tp_rank=0)
    assert listed(split_plan(layout, counts([1, 2]), counts([[[1, 2], [3, 4]]]), 3)) == {
        "input_splits": [3],
        "output_splits": [3],
        "output_splits_tp": [3, 7],
        "tokens_per_local_expert": [4, 6],
        "chunk_table": [[1, 2], [3, 4]],
        "num_out_tokens": 3,
    }


def test_a_rank_without_tokens_still_receives() -> None:
    received = RECEIVED.copy()
    received[1, 0] = 0
    plan = listed(split_plan(TWO_BY_TWO, counts([0, 0, 0, 0]), received, None))
    assert plan["input_splits"] == [0, 0]
    assert plan["output_splits"] == [30, 0]
    assert plan["num_out_tokens"] == 0


def test_nobody_sends_anything() -> None:
    plan = listed(split_plan(TWO_BY_TWO, counts([0] * 4), np.zeros((2, 2, 2), np.int32), None))
    assert plan == {
        "input_splits": [0, 0],
        "output_splits": [0, 0],
        "output_splits_tp": [0, 0],
        "tokens_per_local_expert": [0, 0],
        "chunk_table": [[0, 0]] * 4,
        "num_out_tokens": 0,
    }


def test_all_arrays_are_int64_and_contiguous() -> None:
    for plan in (split_plan(TWO_BY_TWO, LOCAL, RECEIVED, None), padded_plan(TWO_BY_TWO, 3)):
        arrays = [value for value in plan if isinstance(value, np.ndarray)]
        assert arrays
        assert all(array.dtype == np.int64 and array.flags.c_contiguous for array in arrays)
        assert type(plan.num_out_tokens) is int


def test_the_plan_owns_its_memory() -> None:
    """The buffer is used again for the next micro-batch while autograd still holds this plan."""
    local, received = LOCAL.copy(), RECEIVED.copy()
    plan = split_plan(TWO_BY_TWO, local, received, None)
    before = listed(plan)
    local[:], received[:] = -1, -1
    assert listed(plan) == before
    arrays = [value for value in plan if isinstance(value, np.ndarray)]
    for index, array in enumerate(arrays):
        array[...] = -7  # nor do two parts of one plan share memory
        for other in arrays[index + 1 :]:
            assert -7 not in other


def test_a_strided_view_of_what_was_received_will_do() -> None:
    """all_gather leaves all experts' columns; the own ones are a view with gaps."""
    every = np.full((2, 2, 4), 999, np.int32)
    every[:, :, 2:] = RECEIVED
    assert listed(split_plan(TWO_BY_TWO, LOCAL, every[:, :, 2:], None)) == listed(
        split_plan(TWO_BY_TWO, LOCAL, RECEIVED, None)
    )


# ------------------------------------------------------------------------------------------------ drop and pad


def test_drop_and_pad_follows_from_the_capacity() -> None:
    assert listed(padded_plan(TWO_BY_TWO, 3)) == {
        "input_splits": None,
        "output_splits": None,
        "output_splits_tp": None,
        "tokens_per_local_expert": [3 * 4] * 2,  # from each of four ranks
        "chunk_table": [3] * (4 * 2),  # E * TP chunks
        "num_out_tokens": 3 * 4,  # capacity * E
    }


def test_drop_and_pad_with_capacity_zero() -> None:
    plan = listed(padded_plan(TWO_BY_TWO, 0))
    assert (plan["num_out_tokens"], plan["tokens_per_local_expert"], plan["chunk_table"]) == (0, [0, 0], [0] * 8)


# ------------------------------------------------------------------------------------------------ overflow

HALF = 2**30
PAIR = ExpertLayout(num_experts=2, ep_size=2, tp_size=1, ep_rank=0, tp_rank=0)


def test_the_limit_itself_is_counted_exactly() -> None:
    plan = split_plan(PAIR, counts([HALF, HALF - 1]), counts([[[HALF]], [[HALF - 1]]]), None)
    assert plan.num_out_tokens == MAX_ROWS == 2**31 - 1
    assert listed(plan)["output_splits_tp"] == [MAX_ROWS]


def test_one_more_row_sent_is_refused_and_not_wrapped() -> None:
    with pytest.raises(CountOverflowError) as caught:
        split_plan(PAIR, counts([HALF, HALF]), counts([[[HALF]], [[0]]]), None)
    assert str(caught.value).startswith(
        f"EP rank 0, TP rank 0 sends {2**31} rows in one all-to-all; at most {2**31 - 1}"
    )


def test_a_known_number_of_rows_beyond_the_limit_is_refused() -> None:
    with pytest.raises(CountOverflowError, match=f"sends {2**31} rows"):
        split_plan(PAIR, counts([0, 0]), counts([[[0]], [[0]]]), 2**31)


def test_one_more_row_received_is_refused_and_not_wrapped() -> None:
    with pytest.raises(CountOverflowError, match=f"receives {2**31} rows"):
        split_plan(PAIR, counts([HALF, 0]), counts([[[HALF]], [[HALF]]]), None)


def test_rows_received_over_all_tp_ranks_are_refused() -> None:
    """The gather over TP puts all of them into one buffer, though each all-to-all alone would fit."""
    layout = ExpertLayout(num_experts=1, ep_size=1, tp_size=2, ep_rank=0, tp_rank=0)
    with pytest.raises(CountOverflowError, match=f"receives {2**31} rows"):
        split_plan(layout, counts([HALF]), counts([[[HALF], [HALF]]]), None)


def test_one_rank_alone_is_refused_too() -> None:
    layout = ExpertLayout(num_experts=2, ep_size=1, tp_size=1, ep_rank=0, tp_rank=0)
    local = counts([HALF, HALF])
    with pytest.raises(CountOverflowError, match=f"{2**31} rows"):
        split_plan(layout, local, local.reshape(1, 1, 2), None)


def test_a_capacity_beyond_the_limit_is_refused() -> None:
    with pytest.raises(CountOverflowError, match=f"sends {2**31} rows"):
        padded_plan(PAIR, HALF)
    wide = ExpertLayout(num_experts=2, ep_size=2, tp_size=4, ep_rank=0, tp_rank=0)
    with pytest.raises(CountOverflowError, match=f"receives {2**31} rows"):
        padded_plan(wide, HALF // 4)
