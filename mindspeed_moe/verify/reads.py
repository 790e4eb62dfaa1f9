"""What Megatron reads behind which of its points. Written for itself: not what preprocess thinks is due there.

Source: megatron-core 0.12.1, 0.14.0, 0.16.1, 0.18.2 and 0.19.0, `transformer/moe/token_dispatcher.py`: what stands
between one call of `_maybe_dtoh_and_synchronize` and the next. Releases without that hook are asked for each attribute.
"""

from __future__ import annotations

from typing import Any

from mindspeed_moe.preprocess.attributes import (
    BEFORE_EP_ALLTOALL,
    BEFORE_FINISH,
    BEFORE_PERMUTATION_1,
    BEFORE_PERMUTATION_2,
    Attributes,
)

TABLE = "chunk table"
COUNTS = "tokens_per_local_expert"
ROWS = "num_out_tokens"
CAPACITY = "capacity"  # with padding only
SPLITS = ("input_splits", "output_splits", "output_splits_tp")
NAMES = (CAPACITY, ROWS, *SPLITS, TABLE, COUNTS)

_BEHIND: dict[str, tuple[str, ...]] = {
    BEFORE_PERMUTATION_1: (CAPACITY, ROWS),
    BEFORE_EP_ALLTOALL: (ROWS, *SPLITS),
    BEFORE_PERMUTATION_2: (ROWS, *SPLITS, TABLE),
    BEFORE_FINISH: NAMES,
}


def read_behind(point: str, table: str) -> tuple[str, ...]:
    """Return the names that have been read before the point after this one, by Megatron or by what it calls.

    point: one of the hook's points, or the attribute that is about to be read. table: what the release calls the
    chunk table.
    """
    return _BEHIND.get(point) or (TABLE if point == table else point,)


def must_be_there(name: str, point: str, attributes: Attributes, dispatcher: Any) -> bool:
    """Return whether a value that has not been waited for is read there all the same.

    Of the permutations only the fused one reads the number of rows, and from 0.18 on the other one too.
    """
    return name != ROWS or point != BEFORE_PERMUTATION_1 or rows_are_read(attributes, dispatcher)


def rows_are_read(attributes: Attributes, dispatcher: Any) -> bool:
    """Return whether anything reads the number of rows after the first permutation, but for padding."""
    return attributes.generation.permute_reads_rows or attributes.fuses(dispatcher)
