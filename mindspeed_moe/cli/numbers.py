"""Numbers as options take them: within what a count can be, and finite."""

from __future__ import annotations

import math
from typing import Any

import click

MOST = 2**31 - 1


def whole(least: int) -> click.IntRange:
    """Return the type of a count."""
    return click.IntRange(least, MOST)


class Finite(click.FloatRange):
    """A number of at least `min` that is neither infinite nor none, which comparisons let pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; fails as click's types do."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number
