"""Looks over the shoulder of every collective: notes it for those who ask where a rank stands, and checks its splits.

Ranks that send other numbers of rows than their peers expect can hang or corrupt memory, so a wrong split is an
error before the collective is called.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist

from mindspeed_moe.bench.megatron import mappings
from mindspeed_moe.bench.places import replaced
from mindspeed_moe.errors import BenchError
from mindspeed_moe.selftest.place import Place

_NAMES = ("all_to_all_single", "all_gather_into_tensor", "reduce_scatter_tensor", "all_gather", "reduce_scatter")
_KEPT_BY_MAPPINGS = {  # names under which Megatron keeps some of them
    "dist_all_gather_func": "all_gather_into_tensor",
    "dist_reduce_scatter_func": "reduce_scatter_tensor",
}
Sizes = tuple[int, ...] | None


class WrongSplitsError(BenchError):
    """Somebody was about to send rows by splits that are not the oracle's."""


class Watched:
    """Between `check` and `check(None)` every uneven all-to-all on a group must go by splits that were allowed."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._group: Any = None
        self._allowed: set[tuple[Sizes, Sizes]] = set()

    def check(self, group: Any) -> None:
        """Check what goes over this group from now on; None for nothing."""
        self._group = group
        self._allowed.clear()

    def allow(self, sent: list[int] | None, received: list[int] | None) -> None:
        """Let tokens go to the experts by these splits, and back."""
        pair = _sizes(sent), _sizes(received)
        self._allowed |= {pair, pair[::-1]}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch torch's collectives, under every name by which Megatron and the plugin call them."""
        wrapped = {name: self._wrap(name, getattr(dist, name)) for name in _NAMES}
        module = mappings()
        kept = [(module, own, wrapped[name]) for own, name in _KEPT_BY_MAPPINGS.items() if hasattr(module, own)]
        with replaced([*((dist, name, one) for name, one in wrapped.items()), *kept]):
            yield

    def _wrap(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        place = self._place

        @functools.wraps(original)
        def collective(*arguments: Any, **named: Any) -> Any:
            place.collective = _told(name, arguments, named)
            if name == "all_to_all_single" and self._group is not None and named.get("group") is self._group:
                self._check(*arguments, **named)
            place.inside = True
            result = original(*arguments, **named)
            place.inside = False
            return result

        return collective

    def _check(
        self, output: Any, input: Any, output_split_sizes: Any = None, input_split_sizes: Any = None, *_: Any, **__: Any
    ) -> None:
        pair = _sizes(input_split_sizes), _sizes(output_split_sizes)
        if pair == (None, None) or pair in self._allowed:  # without splits the parts are equal
            return
        expected = " or ".join(sorted(f"{list(one or ())} and {list(other or ())}" for one, other in self._allowed))
        raise WrongSplitsError(
            f"{self._place.at}: input_splits and output_splits: found {list(pair[0] or ())} and "
            f"{list(pair[1] or ())}, expected {expected}"
        )


def _told(name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> str:
    tensors = [one for one in (*arguments, *named.values()) if hasattr(one, "shape") and hasattr(one, "device")]
    shapes = ", ".join(f"{list(one.shape)} {str(one.dtype).removeprefix('torch.')}" for one in tensors)
    group = named.get("group")
    size = f", group of {group.size()}" if group is not None and hasattr(group, "size") else ""
    return f"{name} of {shapes}{size}"


def _sizes(splits: Any) -> Sizes:
    return None if splits is None else tuple(int(one) for one in splits)
