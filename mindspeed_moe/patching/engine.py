"""Collect, check, apply, undo. Nothing is changed before everything has been checked; a failure undoes all."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import mindspeed_moe.patching.target as at
from mindspeed_moe.errors import PatchConflictError, PatchError
from mindspeed_moe.patching.spec import PatchSpec
from mindspeed_moe.patching.target import MISSING, Slot, Switch

logger = logging.getLogger("mindspeed_moe.patching")

OnConflict = Literal["error", "skip", "replace"]


@dataclass(frozen=True)
class Swap:
    """One checked exchange: what stands at a slot, and what will.

    original: what ours passes on to when it is out. below: somebody's wrapper stands there and still calls a function
    of ours, from before we were taken out, with this switch: the wrapper stays, and that function passes on to `new`.
    """

    spec: PatchSpec
    slot: Slot
    new: Any
    original: Any
    below: Switch | None = None

    def __str__(self) -> str:
        stays = ", which stays around it" if self.below is not None else ""
        return f"{self.slot.path}: {at.describe(self.slot.raw)}{stays} -> {at.describe(self.new)}"

    def put(self) -> None:
        """Make the exchange."""
        if self.below is None:
            self.slot.put(self.new)
        else:
            self.below.to = at.unwrap(self.new)

    def take(self) -> str:
        """Undo the exchange; returns who has patched over it since and is left there, or an empty string."""
        switch, current = at.switch_of(at.unwrap(self.new)), self.slot.current()
        for one in (switch, self.below):
            if one is not None:
                one.to = self.original
        if current is self.new and self.below is None:
            self.slot.restore()
            _KEPT.pop(self.slot.place, None)
            return ""
        if at.switch_of(at.unwrap(current)) is not None:  # somebody has put back what they had found: ours
            self.slot.put(at.rewrap(current, self.original))
            return ""
        return "" if self._is_back(current) else f"{self.slot.path} was patched over by {at.locate(current)}"

    def holds_its_unit(self) -> bool:
        """Return whether somebody has patched over it in a way that would leave half of its unit in force."""
        passed_by = at.switch_of(at.unwrap(self.new)) is not None or self.spec.kind == "supply"
        current = self.slot.current()
        return not (passed_by or current is MISSING or current is self.new or self._is_back(current))

    def _is_back(self, current: Any) -> bool:
        return self.below is None and current is (self.slot.raw if self.slot.own else MISSING)


# Places that keep a patch of ours after it was to be taken out, because somebody has patched over a part of its unit.
_KEPT: dict[tuple[int, str], Swap] = {}


class Patches(Protocol):
    """Checked patches, whoever applies them: ours, a PatchSet, or another manager.

    swaps: what will stand where. skipped and unnecessary: as of PatchSet.
    """

    @property
    def swaps(self) -> tuple[Swap, ...]: ...  # noqa: D102
    @property
    def skipped(self) -> tuple[tuple[PatchSpec, str], ...]: ...  # noqa: D102
    @property
    def unnecessary(self) -> tuple[str, ...]: ...  # noqa: D102


class PatchSet:
    """Checked swaps that are applied and undone together.

    skipped: specifications that are not applied, with the reason: a conflict in their unit.
    unnecessary: targets of kind `supply` that exist already.
    """

    def __init__(
        self, swaps: tuple[Swap, ...], skipped: tuple[tuple[PatchSpec, str], ...], unnecessary: tuple[str, ...]
    ) -> None:
        self.swaps = swaps
        self.skipped = skipped
        self.unnecessary = unnecessary
        self._applied: list[Swap] = []

    def apply(self, *, log: bool = True) -> None:
        """Apply every swap; when one fails, all are undone and the failure is raised."""
        if self._applied:
            raise AssertionError("these patches are applied already")
        try:
            for swap in self.swaps:
                self._applied.append(swap)
                swap.put()
        except BaseException:
            self.revert(log=False)
            raise
        if log:
            for swap in self.swaps:
                logger.info("patched %s", swap)

    def revert(self, *, log: bool = True) -> tuple[str, ...]:
        """Put everything back, last first; returns a message for each slot that somebody has patched since.

        Their work is left alone, and may well call ours: that passes on to what stood there before. A unit in which
        something cannot pass on stays in force as a whole. A slot that cannot be restored does not keep the others from
        it; PatchError names it at the end.
        """
        left_alone, failed = [], []
        sizes = Counter(swap.spec.unit for swap in self._applied)
        holding = {one.spec.unit: one for one in self._applied if sizes[one.spec.unit] > 1 and one.holds_its_unit()}
        while self._applied:
            swap = self._applied.pop()
            if swap.spec.unit in holding:
                _KEPT[swap.slot.place] = swap
                continue
            try:
                message = swap.take()
            except Exception as error:
                failed.append(f"{swap.slot.path} could not be restored: {error!r}")
                continue
            if message:
                left_alone.append(f"{message}; left as it is")
        for unit, swap in holding.items():
            over = at.locate(swap.slot.current())
            left_alone.append(
                f"{swap.slot.path} was patched over by {over}; left as it is, and with it all patches of {unit!r}, "
                "which only work together"
            )
        if log:
            for message in left_alone:
                logger.warning("%s", message)
        if failed:
            raise PatchError("; ".join(failed))
        return tuple(left_alone)


def collect(specs: Iterable[tuple[PatchSpec, Any]], on_conflict: OnConflict) -> PatchSet:
    """Resolve and check specifications, each with its context, without changing anything.

    Raises PatchError for a missing target or a changed signature, PatchConflictError for a target that somebody
    else has patched when on_conflict is `error`, or for two specifications of one target.
    """
    swaps: list[Swap] = []
    conflicts: dict[str, str] = {}
    unnecessary: list[str] = []
    claimed: dict[str, PatchSpec] = {}
    specs = tuple(specs)
    for spec, context in specs:
        for path in (spec.target, *spec.aliases):
            if path in claimed:
                raise PatchConflictError(
                    f"{path} is claimed twice, by the units {claimed[path].unit!r} and {spec.unit!r}"
                )
            claimed[path] = spec
        if spec.kind == "supply":
            slot = at.find(spec.target)
            if slot.raw is MISSING:
                swaps.append(Swap(spec, slot, spec.build(None, context), MISSING))
            else:
                unnecessary.append(spec.target)
            continue
        slot = _untouched(at.require(spec.target))
        conflict = _conflict(spec, slot)
        below = switch_below(spec, slot.raw, slot.owner) if conflict else None
        if below is not None:
            swaps.append(Swap(spec, slot, _built(spec, slot, below.to, context), below.to, below))
            continue
        if conflict and is_left_alone(conflict, on_conflict):
            conflicts.setdefault(spec.unit, conflict)
            continue
        if not conflict:
            check_signature(spec, slot)
        swaps += _swaps(spec, slot, context)
    _refuse_one_slot_twice(swaps)
    kept = tuple(swap for swap in swaps if swap.spec.unit not in conflicts)
    skipped = tuple((spec, conflicts[spec.unit]) for spec, _ in specs if spec.unit in conflicts)
    return PatchSet(kept, skipped, tuple(unnecessary))


def patched_by_others(specs: Iterable[PatchSpec]) -> frozenset[str]:
    """Return the targets at which somebody else's code stands, and the classes that somebody put in place of others.

    A missing target is not looked at here.
    """
    found = set()
    for spec in specs:
        try:
            slot = at.require(spec.target) if spec.kind != "supply" else None
        except PatchError:
            continue
        if slot is None:
            continue
        if at.foreign_owner(slot, _home(spec, slot)):
            found |= {spec.target, spec.target.rpartition(".")[0]}
        elif not spec.over_others and at.foreign(slot, _home(spec, slot)):
            found.add(spec.target)
    return frozenset(found)


def is_left_alone(conflict: str, on_conflict: OnConflict) -> bool:
    """Return whether a target with a conflict is skipped, False where it is patched over; PatchConflictError else."""
    if on_conflict == "error":
        raise PatchConflictError(
            f"{conflict}; set `on_conflict: skip` to leave it, `replace` to patch over it, or disable the other"
        )
    return on_conflict == "skip"


def check_signature(spec: PatchSpec, slot: Slot) -> None:
    """Raise PatchError when the original takes other parameters than the patch was written for."""
    if spec.parameters is None:
        return
    found = at.parameters(slot.raw, through_wrappers=True)
    if found != spec.parameters:
        raise PatchError(
            f"{spec.target} has the parameters ({', '.join(found)}); this patch was written for "
            f"({', '.join(spec.parameters)})"
        )


def _refuse_one_slot_twice(swaps: list[Swap]) -> None:
    """Two paths can lead to one place, e.g. through a class that a second module imported."""
    taken: dict[tuple[int, str], Swap] = {}
    for swap in swaps:
        first = taken.setdefault(swap.slot.place, swap)
        if first is not swap:
            raise PatchConflictError(f"{swap.slot.path} is claimed twice: it is {first.slot.path}")


def _swaps(spec: PatchSpec, slot: Slot, context: Any) -> list[Swap]:
    original = at.unwrap(slot.raw)
    new = _built(spec, slot, original, context)
    aliases = [_untouched(at.require(alias)) for alias in spec.aliases]
    return [Swap(spec, one, new, original) for one in (slot, *aliases)]


def _built(spec: PatchSpec, slot: Slot, original: Any, context: Any) -> Any:
    function = spec.build(original, context)
    if spec.kind == "wrap" and getattr(function, "__wrapped__", None) is not original:
        raise PatchError(f"{spec.target}: the wrapper does not name the original as __wrapped__")
    if spec.parameters is not None:
        taken = at.parameters(function, through_wrappers=False)
        if taken != spec.parameters:
            raise PatchError(f"{spec.target}: the replacement takes {taken}, not {spec.parameters}")
    name_target(function, spec)
    return at.rewrap(slot.raw, function)


def name_target(function: Any, spec: PatchSpec) -> None:
    """Tell the switch of a function that was built, where there is one, which patch it belongs to."""
    switch = at.switch_of(function)
    if switch is not None:
        switch.path = spec.target


def switch_below(spec: PatchSpec, standing: Any, owner: Any) -> Switch | None:
    """Return the switch of a function of ours, out of force, that somebody's wrapper of a target still calls.

    None for everything else, and where `standing` is ours itself.
    """
    if standing is MISSING or spec.aliases or at.switch_of(at.unwrap(standing)) is not None:
        return None
    below = at.beneath(standing, owner)
    return below if below is not None and below.path == spec.target and below.to is not None else None


def _untouched(slot: Slot) -> Slot:
    """Where something of ours was left that is not in force, return the slot as it was before that."""
    kept, switch = _KEPT.get(slot.place), at.switch_of(at.unwrap(slot.raw))
    if kept is not None and slot.raw is kept.new:
        return kept.slot
    return replace(slot, raw=at.rewrap(slot.raw, switch.to)) if switch is not None and switch.to is not None else slot


def _conflict(spec: PatchSpec, slot: Slot) -> str | None:
    who = at.foreign(slot, _home(spec, slot))
    if who and not spec.over_others:
        return f"{spec.target} is patched already: {who} stands there"
    for alias in spec.aliases:
        held = _untouched(at.require(alias)).raw
        if held is not slot.raw:
            return f"{alias} should be {spec.target}, but {at.locate(held)} stands there"
    return None


def _home(spec: PatchSpec, slot: Slot) -> tuple[str, ...]:
    """Return the modules that the untouched original may come from."""
    return spec.home or (slot.module,)
