"""Compare what a program left on a dispatcher with the oracle: values, and the types that consumers need."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from one_process.group import Dispatcher
from oracle.plan import RankPlan


def check(dispatcher: Dispatcher, tokens_per_expert: Any, expected: RankPlan) -> None:
    """AssertionError unless the dispatcher holds `expected`, in forms that every consumer of Megatron can read."""
    for name in ("input_splits", "output_splits", "output_splits_tp"):
        found, wanted = getattr(dispatcher, name), getattr(expected, name)
        if wanted is None:
            assert found is None, f"{name}: {found}"
            continue
        assert isinstance(found, np.ndarray), f"{name} is a {type(found)}"
        assert np.issubdtype(found.dtype, np.integer)
        assert found.tolist() == wanted, f"{name}: {found.tolist()}, expected {wanted}"
    assert isinstance(dispatcher.num_out_tokens, int) or dispatcher.num_out_tokens.dim() == 0
    assert int(dispatcher.num_out_tokens) == expected.num_out_tokens
    check_table(dispatcher, expected)
    assert isinstance(tokens_per_expert, torch.Tensor)
    assert tokens_per_expert.dtype is torch.int64
    assert tokens_per_expert.tolist() == expected.tokens_per_local_expert
    if expected.capacity is not None:
        assert dispatcher.capacity == expected.capacity


def check_table(dispatcher: Dispatcher, expected: RankPlan) -> None:
    if expected.chunk_table is None:
        return
    table = dispatcher.num_global_tokens_per_local_expert
    assert isinstance(table, torch.Tensor)
    assert table.dtype is torch.int64
    assert table.tolist() == expected.chunk_table, f"chunk table: {table.tolist()}, expected {expected.chunk_table}"
