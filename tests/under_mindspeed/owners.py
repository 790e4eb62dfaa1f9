"""Whose code runs, told by the code itself and not by what anybody says of it."""

from __future__ import annotations

from typing import Any


def owners(function: Any) -> list[str]:
    """The packages from the outermost wrapper inwards, up to the first that is no wrapper of MindSpeed's."""
    found: list[str] = []
    while function is not None:
        found.append(function.__globals__["__name__"].partition(".")[0])
        if found[-1] != "mindspeed":
            break
        function = getattr(function, "__wrapped__", None)
    return found
