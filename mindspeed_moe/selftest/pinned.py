"""Whether `packed` copies to the host as it says: into pinned memory, without blocking, and never elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from mindspeed_moe.bench.places import replaced


class Copies:
    """Copies from the device to the host that were made through Tensor.copy_: how many, and how many were slow ones."""

    def __init__(self) -> None:
        self._seen = self._slow = 0

    @classmethod
    @contextlib.contextmanager
    def watching(cls, implementation: str, on_device: bool) -> Iterator[Copies]:
        """Watch until the block ends; other implementations than packed promise nothing."""
        copies = cls()
        if implementation != "packed" or not on_device:
            yield copies
            return
        original = torch.Tensor.copy_

        def copy(target: torch.Tensor, source: Any, *arguments: Any, **named: Any) -> torch.Tensor:
            copies.note(target, source, bool(named.get("non_blocking", arguments and arguments[0])))
            return original(target, source, *arguments, **named)

        with replaced([(torch.Tensor, "copy_", copy)]):
            yield copies

    def note(self, target: torch.Tensor, source: Any, non_blocking: bool) -> None:
        """Take note of one copy."""
        if target.device.type != "cpu" or not isinstance(source, torch.Tensor) or source.device.type == "cpu":
            return
        self._seen += 1
        if not (non_blocking and target.is_pinned()):
            self._slow += 1

    def problems(self) -> list[str]:
        """Return what is wrong, in words."""
        if not self._slow:
            return []
        return [f"copies to the host: {self._slow} of {self._seen} go to pageable memory, or block; expected none"]
