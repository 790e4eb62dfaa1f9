"""Counts that 32 bits cannot hold are refused, not wrapped round; on the pure core, with counts made up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mindspeed_moe.contract import GENERATIONS
from mindspeed_moe.errors import CountOverflowError
from mindspeed_moe.preprocess.adapters import attributes_of
from mindspeed_moe.preprocess.counts import COUNTS
from mindspeed_moe.preprocess.groups import Groups
from mindspeed_moe.preprocess.layout import ExpertLayout
from mindspeed_moe.preprocess.packed import PackedOnHost
from mindspeed_moe.preprocess.reference import Reference
from mindspeed_moe.preprocess.sites import Choices, Sites
from mindspeed_moe.preprocess.splits import SplitPlan, padded_plan, refuse_overflow
from mindspeed_moe.preprocess.splits import split_plan as plan_of_rows
from one_process.group import Dispatcher, preprocess_group
from one_process.group import Layout as GroupLayout

LIMIT = 2**31 - 1
LAYOUT = ExpertLayout(num_experts=4, ep_size=2, tp_size=2, ep_rank=1, tp_rank=0)


def counts(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def split_plan(layout: ExpertLayout, local: np.ndarray, received: np.ndarray, rows: int | None) -> SplitPlan:
    both = (local.reshape(-1, 2), received.reshape(-1, 2))
    return plan_of_rows(layout, np.concatenate(both).astype(np.int64), rows)


def received(*values: int) -> np.ndarray:
    return counts(*values).reshape(2, 2, 2)


def test_what_is_sent():
    """Each count fits in 32 bits, their sum does not."""
    fits = counts(LIMIT - 2, 1, 1, 0)
    assert split_plan(LAYOUT, fits, received(*[0] * 8), None).num_out_tokens == LIMIT
    with pytest.raises(CountOverflowError, match=rf"EP rank 1, TP rank 0 sends {LIMIT + 1} rows.*at most {LIMIT}"):
        split_plan(LAYOUT, counts(LIMIT - 2, 1, 1, 1), received(*[0] * 8), None)


def test_what_is_sent_when_it_is_known():
    assert split_plan(LAYOUT, counts(1, 0, 0, 0), received(*[0] * 8), LIMIT).num_out_tokens == LIMIT
    with pytest.raises(CountOverflowError, match=f"sends {2**33} rows"):
        split_plan(LAYOUT, counts(1, 0, 0, 0), received(*[0] * 8), 2**33)


def test_what_is_received():
    """Over all ranks, as the experts get it; int32 sums would wrap round to a negative number."""
    fits = split_plan(LAYOUT, counts(0, 0, 0, 0), received(LIMIT - 7, 1, 1, 1, 1, 1, 1, 1), 0)
    assert fits.output_splits_tp is not None
    assert int(fits.output_splits_tp.sum()) == LIMIT
    with pytest.raises(CountOverflowError, match=f"receives {8 * LIMIT} rows"):
        split_plan(LAYOUT, counts(0, 0, 0, 0), received(*[LIMIT] * 8), 0)
    with pytest.raises(CountOverflowError, match=f"receives {LIMIT + 1} rows"):
        split_plan(LAYOUT, counts(0, 0, 0, 0), received(LIMIT, 0, 0, 0, 0, 0, 0, 1), 0)


def test_alone():
    layout = ExpertLayout(num_experts=2, ep_size=1, tp_size=1, ep_rank=0, tp_rank=0)
    refuse_overflow(layout, LIMIT, LIMIT)
    with pytest.raises(CountOverflowError, match=f"sends {LIMIT + 1} rows"):
        refuse_overflow(layout, LIMIT + 1, LIMIT + 1)


def test_padding():
    assert padded_plan(LAYOUT, LIMIT // 8).num_out_tokens == LIMIT // 8 * 4
    with pytest.raises(CountOverflowError, match=f"sends {2**31} rows"):
        padded_plan(LAYOUT, 2**29)
    with pytest.raises(CountOverflowError, match=f"receives {2**31} rows"):
        padded_plan(LAYOUT, 2**28)


def test_more_tokens_than_a_count_holds():
    """One column of 2**31 trues; a view, so that it takes no memory. Refused before anything is counted."""
    generation = next(one for one in GENERATIONS if one.name == "hook_event_wait_graphs")
    choices = Choices("cpu", "all_to_all", Groups("auto"), "host")
    huge = torch.ones(1, 1, dtype=torch.bool).expand(2**31, 1)
    for program in (
        PackedOnHost(Sites(attributes_of("alltoall", generation), choices, {}), COUNTS["sum"]),
        Reference(Sites(attributes_of("alltoall", generation), choices, {}), None),
    ):
        with pytest.raises(CountOverflowError, match=f"{2**31} tokens"):
            preprocess_group(program.preprocess, [Dispatcher(GroupLayout(1, 1, 1), 0, 1)], [huge])
