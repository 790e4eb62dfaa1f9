"""What is known of one verified call, and of the layer that it belongs to."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from mindspeed_moe.preprocess.site import Site
from mindspeed_moe.verify.values import Difference, Value, first_difference, plain
from mindspeed_moe.verify.witness import Shadow


@dataclass(frozen=True)
class Moment:
    """When a call of a layer was.

    call: how many calls of the layer came before. step: training step. micro_batch: of the step, from 0; calls with
    gradients and calls without (recomputation's first pass, evaluation) are counted apart.
    """

    call: int
    step: int
    micro_batch: int
    gradients: bool

    def __str__(self) -> str:
        kind = "" if self.gradients else " without gradients"
        return f"training step {self.step}, micro-batch {self.micro_batch}{kind} (call {self.call} of the layer)"


@dataclass
class Record:
    """A call from its start until the next but one of its layer.

    site: layout and group. routing_map: [T, E] bool on the host. every: counts of all ranks, [EP * TP * E] int64.
    wanted: what the reference has set, by name. seen: what stood on the device when it was handed out, by name.
        All of these are on the host once `arrived` has been waited for; None: they are there.
    handed: what was handed out by preprocess, by name. found: what was read and compared, by name.
    early: what stood on the host for a reader while the call was under way, by name; to be compared afterwards.
    left: what stood on the dispatcher right after the chosen implementation, by name. theirs: of these, what somebody
        else has set anew since: what was left is compared all the same.
    enter: makes the device current in another thread, which asks for `arrived`; None on the host.
    """

    moment: Moment
    site: Site
    implementation: str
    topk: int
    routing_map: torch.Tensor
    every: torch.Tensor | None
    wanted: dict[str, Any]
    seen: dict[str, torch.Tensor]
    handed: dict[str, Any]
    arrived: Any = None
    enter: Callable[[], None] | None = None
    found: dict[str, Value] = field(default_factory=dict)
    early: dict[str, Value] = field(default_factory=dict)
    left: dict[str, Any] = field(default_factory=dict)
    theirs: set[str] = field(default_factory=set)

    def wait(self) -> None:
        """Wait until what was copied to the host is there; from any thread."""
        arrived = self.arrived
        if arrived is not None:
            arrived.synchronize()
            self.arrived = None

    @property
    def is_there(self) -> bool:
        """Whether `wait` would return at once."""
        arrived = self.arrived
        return arrived is None or bool(arrived.query())

    def judge(self, name: str, found: Any, wanted: Any) -> Difference | None:
        """Compare two values, keep both under `name`, and return where they differ first."""
        self.found[name], self.wanted[name] = plain(found), plain(wanted)
        return first_difference(name, self.found[name], self.wanted[name])

    def judge_again(self, name: str, found: Any, wanted: Value) -> Difference | None:
        """Compare what an earlier call handed out with what it was; it is kept only where it differs.

        A dump would grow with every call that backward has still to come back to.
        """
        difference = first_difference(name, plain(found), wanted)
        return None if difference is None else self.judge(name, found, wanted)


@dataclass
class _HandedOut:
    """Something on the host that a consumer may keep: it must stay what it was. value: as long as somebody has it."""

    name: str
    call: int
    value: Any
    wanted: Value


@dataclass
class LayerState:
    """A dispatcher under verification. calls: how many there were. record: of the last verified one.

    before: of the one before it. On a device a rank may have started a call when it hears that the last one has failed
    on another rank. compared: whether all of a call was compared yet.
    """

    shadow: Shadow
    calls: int = 0
    record: Record | None = None
    before: Record | None = None
    done: bool = True
    compared: bool = False
    counted: dict[bool, tuple[int, int]] = field(default_factory=dict)  # with gradients -> step, its calls of that kind
    handed_out: list[_HandedOut] = field(default_factory=list)

    def keep(self, record: Record) -> None:
        """Keep a call's record, and the last one's."""
        self.before, self.record = self.record, record

    def forget(self, call: int) -> None:
        """A call begins that is not verified: what is older than the last one, no other rank asks for."""
        if self.record is not None and call > self.record.moment.call + 1:
            self.record = self.before = None

    def of_call(self, call: int) -> Record | None:
        """Return the record of a call, None when there is none, or none any more."""
        return next((one for one in (self.record, self.before) if one is not None and one.moment.call == call), None)

    def count(self, step: int, gradients: bool) -> int:
        """Return how many calls of this kind the step had before this one."""
        last, calls = self.counted.get(gradients, (step, 0))
        before = calls if last == step else 0
        self.counted[gradients] = step, before + 1
        return before

    def keep_in_view(self, name: str, call: int, value: Any, wanted: Value) -> None:
        """Look at an array or a tensor on the host again for as long as somebody holds it."""
        if value is not None and not isinstance(value, int):
            self.handed_out.append(_HandedOut(name, call, weakref.ref(value), wanted))

    def still_held(self) -> Iterator[tuple[str, Any, Value]]:
        """Yield what somebody still holds of earlier calls: a name for it, the value, and what it was."""
        self.handed_out = [one for one in self.handed_out if one.value() is not None]
        for one in self.handed_out:
            yield f"{one.name} that call {one.call} handed out", one.value(), one.wanted
