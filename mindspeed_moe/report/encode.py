"""Numbers and text for a page: small, exact where it matters, and unable to break out of a script element."""

from __future__ import annotations

import base64
import json
import math
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_UNKNOWN = {"u2": 2**16 - 1, "u4": 2**32 - 1}  # stands for NaN
_DIGITS = 4


def pack_counts(values: Floats) -> dict[str, Any]:
    """Pack numbers from 0, NaN where not known, for `unpack` of the page.

    Whole numbers stay exact up to 2**32 - 2. Others, which are means, keep as many decimals as their own mean needs
    for four digits, and as fit into 16 bits: what lies below is noise that does not shrink.
    """
    known = ~np.isnan(values)
    most = float(values[known].max(initial=0))
    if most >= _UNKNOWN["u4"] - 1:
        return pack_floats(values)
    decimals = 0
    if most and not (values[known] == np.floor(values[known])).all():
        fit = math.floor(math.log10((_UNKNOWN["u2"] - 1) / most))
        needed = _DIGITS - 1 - math.floor(math.log10(values[known].mean()))
        decimals = max(0, min(fit, needed, _DIGITS - 1))
    kind = "u2" if most * 10**decimals <= _UNKNOWN["u2"] - 1 else "u4"
    stored = np.where(known, np.round(values * 10**decimals), _UNKNOWN[kind])
    return {"kind": kind, "divisor": 10**decimals, "data": _deflated(stored.astype(f"<{kind}"))}


def pack_floats(values: Floats) -> dict[str, Any]:
    """Pack numbers as 32-bit floats for `unpack` of the page; NaN stays NaN."""
    return {"kind": "f4", "divisor": 1, "data": _deflated(values.astype("<f4"))}


def _deflated(values: npt.NDArray[Any]) -> str:
    """Deflate the first bytes of all numbers, then the second ones, and so on: like stands by like, and shrinks."""
    planes = np.ascontiguousarray(values).view(np.uint8).reshape(-1, values.dtype.itemsize).T
    return base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode("ascii")


def rounded(values: Floats, digits: int = 5) -> list[float | None]:
    """Return numbers with so many significant digits, None where not known."""
    return [None if math.isnan(value) else float(f"{value:.{digits}g}") for value in values.tolist()]


def script_json(data: Any) -> str:
    """Return JSON that may stand inside a script element: no letter of it can end the element or open a comment."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
