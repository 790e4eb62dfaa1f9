"""Values that consumers read, as plain integers, and where two of them first differ. No Megatron, no devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Value = NDArray[np.int64] | int | None  # what an attribute holds, on the host


@dataclass(frozen=True)
class Difference:
    """The first difference of an attribute.

    index: where in it, () for a whole value that is missing or has another shape. found: what the consumer would read.
    wanted: what the reference says.
    """

    attribute: str
    index: tuple[int, ...]
    found: int | str | None
    wanted: int | str | None

    def __str__(self) -> str:
        at = f"[{', '.join(map(str, self.index))}]" if self.index else ""
        return f"{self.attribute}{at}: found {self.found}, expected {self.wanted}"


def plain(value: Any) -> Value:
    """Return a copy of what an attribute holds: an array of int64, a whole number, or None.

    value: None, a number, a numpy array or a tensor; one on a device is waited for.
    """
    if value is None or isinstance(value, int):
        return value
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    return int(array) if array.ndim == 0 else array.astype(np.int64)


def first_difference(attribute: str, found: Value, wanted: Value) -> Difference | None:
    """Return where `found` first differs from `wanted`, in the order of rows; None where it does not."""
    if isinstance(found, np.ndarray) and isinstance(wanted, np.ndarray):
        if found.shape != wanted.shape:
            return Difference(attribute, (), f"shape {list(found.shape)}", f"shape {list(wanted.shape)}")
        different = np.argwhere(found != wanted)
        if not len(different):
            return None
        index = tuple(map(int, different[0]))
        return Difference(attribute, index, int(found[index]), int(wanted[index]))
    if isinstance(found, np.ndarray) or isinstance(wanted, np.ndarray):
        return Difference(attribute, (), _told(found), _told(wanted))
    return None if found == wanted else Difference(attribute, (), found, wanted)


def _told(value: Value) -> int | str | None:
    return f"shape {list(value.shape)}" if isinstance(value, np.ndarray) else value
