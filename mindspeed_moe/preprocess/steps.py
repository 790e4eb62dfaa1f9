"""Which training step this is: one begins when an optimizer has stepped since the last forward pass."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from mindspeed_moe import lifetime


class Steps:
    """Counts steps from 0, the one that is under way when this is made.

    Every optimizer of torch's tells when it has stepped; several in one step (dense and expert parameters) count once,
    because a forward pass must lie between. A step that an optimizer skips (gradients that are not finite) is counted
    together with the next.
    """

    def __init__(self) -> None:
        self.current = 0
        self.under_way = False  # a step's first pass with gradients has come: `forward` has nothing to do
        self._numbered = False  # by somebody else than Megatron
        self._passed = False
        self._listening = False
        self._lock = threading.Lock()
        self._ends: list[Callable[[int], None]] = []

    def at_step_end(self, tell: Callable[[int], None]) -> None:
        """Have `tell` called with the number of each step that ends."""
        self._ends.append(tell)

    def forward(self, gradients: bool = True) -> int:
        """A layer's forward pass begins, in training or (without gradients) perhaps not; returns the step's number."""
        if not self.under_way:
            self._begin(gradients)
        return self.current

    @property
    def latest(self) -> int:
        """The number of the latest step with a forward pass that trains."""
        return self.current if self._passed else max(self.current - 1, 0)

    def set(self, step: int) -> None:
        """Give the step under way a number, such as that of a checkpoint from which training goes on."""
        self.current, self._numbered = step, True

    def _begin(self, gradients: bool) -> None:
        """A step's first forward pass. Megatron's training loop knows its number, after skipped steps too."""
        iteration = _megatrons("curr_iteration")
        if not self._listening:
            self._listen()
            iteration = _megatrons("iteration") if iteration is None else iteration  # of the checkpoint
        if iteration is not None and not self._numbered:
            # Megatron evaluates under the number of the step that has just ended.
            self.current = iteration if gradients else max(self.current, iteration)
        if gradients:
            self._passed = self.under_way = True

    def _listen(self) -> None:
        with self._lock:
            if self._listening:
                return
            self._listening = True
        handle = register_optimizer_step_post_hook(self._stepped)

        def stop() -> None:
            handle.remove()
            self._listening = self.under_way = False

        lifetime.at_end(stop)

    def _stepped(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if not self._passed:
            return
        self._passed = self.under_way = False
        ended, self.current = self.current, self.current + 1
        for tell in self._ends:
            tell(ended)


def _megatrons(name: str) -> int | None:
    """Return a number of Megatron's training loop, None outside of one.

    Source: `megatron/training/training.py` of 0.10 to 0.16: `train` sets args.curr_iteration in each step, from 0.
    """
    args = getattr(sys.modules.get("megatron.training.global_vars"), "_GLOBAL_ARGS", None)
    number = getattr(args, name, None)
    return number if isinstance(number, int) else None
