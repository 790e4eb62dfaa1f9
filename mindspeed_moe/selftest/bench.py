"""What every step works with on this rank, and the problem that it solves: traffic, and what the oracle says of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mindspeed_moe.bench.devices import DEVICES
from mindspeed_moe.dispatch_table import DISPATCHERS
from mindspeed_moe.selftest.collectives import Watched
from mindspeed_moe.selftest.differences import difference
from mindspeed_moe.selftest.dispatchers import Maker, plain
from mindspeed_moe.selftest.oracle import Expected, expect, scale_of, share_of
from mindspeed_moe.selftest.place import Place
from mindspeed_moe.selftest.pressure import Pressure
from mindspeed_moe.selftest.steps import MODES, Layout, Step
from mindspeed_moe.selftest.traffic import Traffic, draw_group


class Problem:
    """One micro-batch of one layer. mine: this rank's traffic; expected: its results.

    On the device before anything is started: to bring something there makes the host wait, and hides races.
    factors: [rows, 1], what the experts multiply their rows by.
    """

    def __init__(self, mine: Traffic, expected: Expected, factors: Sequence[float], device: str) -> None:
        self.mine, self.expected = mine, expected
        self._from_router = torch.from_numpy(mine.routing_map).to(device)
        self._routing_map = torch.from_numpy(expected.routing_map).to(device)
        self._hidden = torch.from_numpy(mine.hidden).to(device)
        self._probs = torch.from_numpy(mine.probs).to(device)
        self.weights = torch.from_numpy(mine.weights).to(device)
        self.factors = torch.tensor(factors, dtype=torch.float32).to(device).view(-1, 1)

    def from_router(self) -> torch.Tensor:
        """Return the map as the router leaves it, [T, E] bool; Megatron may write to it."""
        return self._from_router.clone()

    def routing_map(self) -> torch.Tensor:
        """Return the map as preprocess is given it: padded, in the mode of router padding."""
        return self._routing_map.clone()

    def hidden(self) -> torch.Tensor:
        """Return hidden states [S, H] that take a gradient."""
        return self._hidden.clone().requires_grad_()

    def probs(self) -> torch.Tensor:
        """Return probabilities [T, E] that take a gradient."""
        return self._probs.clone().requires_grad_()

    def splits(self, found: dict[str, Any]) -> list[str]:
        """Return what differs among attributes by name."""
        wanted = self.expected.splits
        told = (difference(name, plain(value), getattr(wanted, name)) for name, value in found.items())
        return [one for one in told if one]


@dataclass
class Bench:
    """group: the number of this rank's EP x TP group, and index: its number there; both of the layout in force.

    agree: exchanges what ranks have found so far; returns whether all of them found nothing.
    """

    device: str
    simulated: bool
    seed: int
    maker: Maker
    place: Place
    watched: Watched
    agree: Callable[[list[str]], bool]
    pressure: Pressure | None = None
    group: int = 0
    index: int = 0
    _problems: dict[Any, Problem] = field(default_factory=dict)

    def enter(self, group: int, index: int) -> None:
        """The layout has changed."""
        self.group, self.index = group, index
        self._problems.clear()

    def problem(self, step: Step, number: int = 0) -> Problem:
        """Return the n-th problem of a layout, dispatcher and mode: the same for every contestant."""
        key = step.layout, step.dispatcher, step.mode, number
        if key not in self._problems:
            self._problems[key] = self._draw(*key)
        return self._problems[key]

    def _draw(self, layout: Layout, dispatcher: str, mode: str, number: int) -> Problem:
        place = (layout.ep, layout.tp, layout.local_experts, DISPATCHERS.index(dispatcher), MODES.index(mode))
        group = draw_group(layout, dispatcher, mode, (self.seed, *place, self.group, number))
        expected = expect(layout, dispatcher, mode, group, self.index)
        first, share = self.index // layout.tp * layout.local_experts, share_of(self.index % layout.tp)
        numbers = expected.splits.tokens_per_local_expert
        factors = [float(scale_of(first + at) * share) for at, number in enumerate(numbers) for _ in range(number)]
        return Problem(group[self.index], expected, factors, self.device)

    @functools.cached_property
    def streams(self) -> Any:
        """torch.cuda or its counterpart; None on the host."""
        streams = DEVICES[self.device].streams
        return streams() if streams is not None else None

    def synchronize(self) -> None:
        """Wait until the device has nothing left to do."""
        if self.streams is not None:
            self.streams.synchronize()
