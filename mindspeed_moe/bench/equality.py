"""Whether all implementations left the same: a bench of unequal results is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mindspeed_moe.dispatch_table import STOCK
from mindspeed_moe.errors import BenchError

Outcome = dict[str, object]

_SHOWN = 300  # characters of a value in a message


def outcome_of(dispatcher: Any, counts: torch.Tensor, chunk_table: str) -> Outcome:
    """Return what one call left, as plain data with types: the attributes that consumers read, and the counts.

    chunk_table: the generation's attribute for tokens per rank and local expert.
    """
    return {
        "input_splits": _plain(dispatcher.input_splits),
        "output_splits": _plain(dispatcher.output_splits),
        "output_splits_tp": _plain(dispatcher.output_splits_tp),
        chunk_table: _plain(getattr(dispatcher, chunk_table, None)),
        "num_out_tokens": int(dispatcher.num_out_tokens),
        "capacity": dispatcher.capacity,
        "tokens_per_expert": _plain(counts),
    }


def require_equal(outcomes: Mapping[str, Outcome]) -> None:
    """Compare every implementation's outcome with stock's; BenchError naming the first difference of each."""
    stock = outcomes[STOCK]
    different = [
        f"{name} leaves {attribute} = {_short(value)}; stock {_short(stock[attribute])}"
        for name, outcome in outcomes.items()
        for attribute, value in outcome.items()
        if value != stock[attribute]
    ]
    if different:
        raise BenchError("the implementations disagree: " + "; ".join(different))


def _plain(value: Any) -> object:
    """Return a tensor or array as its type, element type and values."""
    if value is None:
        return None
    kind = "tensor" if isinstance(value, torch.Tensor) else type(value).__name__
    return f"{kind} of {str(value.dtype).removeprefix('torch.')}", value.tolist()


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
