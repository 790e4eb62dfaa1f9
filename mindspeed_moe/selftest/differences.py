"""How a difference is told: what differs, where first, and both values."""

from __future__ import annotations

from typing import Any

import numpy as np


def difference(name: str, found: Any, expected: Any) -> str:
    """Return what differs first, or an empty string.

    found, expected: None, a number, (nested) lists or arrays; compared to the last bit.
    """
    if found is None or expected is None:
        return "" if found is expected else f"{name}: found {_told(found)}, expected {_told(expected)}"
    one, other = np.asarray(found), np.asarray(expected)
    if one.shape != other.shape:
        return f"{name}: found the shape {list(one.shape)}, expected {list(other.shape)}"
    places = np.argwhere(one != other)
    if not len(places):
        return ""
    place = tuple(int(at) for at in places[0])
    where = f"{name}[{', '.join(map(str, place))}]" if place else name
    rest = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
    return f"{where}: found {one[place].item()}, expected {other[place].item()}{rest}"


def _told(value: Any) -> str:
    return "None" if value is None else str(np.asarray(value).tolist())[:80]
