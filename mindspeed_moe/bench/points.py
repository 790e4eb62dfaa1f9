"""The host half of preprocess, as dispatching goes through it: the points of a hook, or the lines of older releases."""

from __future__ import annotations

from typing import Any

import torch

from mindspeed_moe.contract.generations import HOST_COPY_HOOK
from mindspeed_moe.preprocess.attributes import (
    BEFORE_EP_ALLTOALL,
    BEFORE_FINISH,
    BEFORE_PERMUTATION_1,
    BEFORE_PERMUTATION_2,
)

POINTS = (BEFORE_PERMUTATION_1, BEFORE_EP_ALLTOALL, BEFORE_PERMUTATION_2, BEFORE_FINISH)  # in layer order


def pass_points(dispatcher: Any, counts: Any, chunk_table: str) -> Any:
    """Return tokens per local expert as the experts get them, when every host value can be read.

    counts: what preprocess returned. chunk_table: the release's attribute for tokens per rank and local expert.
    """
    hook = getattr(dispatcher, HOST_COPY_HOOK.name, None)
    if hook is None:
        _pass_lines(dispatcher, chunk_table)
        return counts
    for point in POINTS:
        counts = hook(point, counts)
    return counts


def _pass_lines(dispatcher: Any, chunk_table: str) -> None:
    """What `token_permutation` of 0.10 and 0.11 does with host values, in its order; reading one may wait for it."""
    _wait(dispatcher, BEFORE_PERMUTATION_1)
    _ = dispatcher.num_out_tokens
    _wait(dispatcher, BEFORE_EP_ALLTOALL)
    _ = dispatcher.output_splits, dispatcher.input_splits
    if dispatcher.tp_size > 1:
        _ = dispatcher.output_splits_tp
    if dispatcher.num_local_experts > 1:
        _ = getattr(dispatcher, chunk_table)
    _wait(dispatcher, BEFORE_FINISH)


def _wait(dispatcher: Any, point: str) -> None:
    if dispatcher.cuda_sync_point == point:
        torch.cuda.current_stream().synchronize()
