"""The same patches, put in place by MindSpeed's manager, so that its wrappers go around ours and `repatch` keeps them.

Replacements and wraps of what MindSpeed patches too go through the manager. Names that a release lacks, and a device's
stand-ins, go through our own engine: the manager cannot add what does not exist, and nobody else touches those.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import mindspeed_moe.patching.target as at
from mindspeed_moe.contract.generations import ALLTOALL, LEGACY
from mindspeed_moe.contract.requirements import UNITS
from mindspeed_moe.errors import MindSpeedError
from mindspeed_moe.mindspeed.tree import Tree, require_entry
from mindspeed_moe.patching import PatchSet, PatchSpec, collect
from mindspeed_moe.patching.engine import OnConflict, Swap, check_signature, is_left_alone, name_target, switch_below

logger = logging.getLogger("mindspeed_moe.mindspeed")

# (target, name of MindSpeed's replacement) -> why ours may take its place
TAKEN_OVER = {
    (f"{ALLTOALL}._maybe_dtoh_and_synchronize", "maybe_dtoh_and_synchronize"): (
        "fused permute without triton: it copies the chunk table to the host too; ours has it there already"
    ),
    (f"{LEGACY}.preprocess", "ascend_gmm_preprocess"): (
        "grouped matmul with alltoall_seq: it leaves the counts on the device; ours does where the experts read them so"
    ),
}


@dataclass(frozen=True)
class Registration:
    """What is handed to the manager: swap.new as a replacement, or as a wrapper that it calls with what stands there.

    beneath: the replacement that MindSpeed had registered. over: what somebody had put there around the manager,
    MISSING when nobody had. Both are given back in the end. built: our functions, and what each stands before.
    below: `over` calls a function of ours, from before we were taken out, with this switch. Then the manager is given
    `over`, and the function passes on to the one that was built.
    """

    swap: Swap
    beneath: Any
    over: Any
    built: list[tuple[Any, Any]]
    below: at.Switch | None = None

    def turn_on(self) -> None:
        """Have a wrapper that stays call ours again."""
        if self.below is not None:
            self.below.to = self.built[0][0]

    def turn_off(self) -> None:
        """Pass on whoever has kept a function of ours."""
        if self.below is not None:
            self.below.to = self.swap.original
        for function, original in self.built:
            switch = at.switch_of(function)
            if switch is not None:
                switch.to = original


class ManagedPatches:
    """Checked patches, some for the manager and some for our own engine; applied and undone together.

    The same face as PatchSet. Applying only registers with the manager; whoever runs its pass applies.
    """

    def __init__(
        self, tree: Tree, own: PatchSet, registrations: tuple[Registration, ...], skipped: dict[PatchSpec, str]
    ) -> None:
        self._tree = tree
        self._own = own
        self._registrations = registrations
        self.swaps = own.swaps + tuple(one.swap for one in registrations)
        self.skipped = own.skipped + tuple(skipped.items())
        self.unnecessary = own.unnecessary
        self._introduced: list[str] = []
        self.left: dict[str, Any] = {}  # by path, what somebody had put around ours when they came out

    def apply(self, *, log: bool = True) -> None:
        """Apply our own part, and register the rest with the manager; when one fails, all are undone."""
        self._own.apply(log=log)
        try:
            for one in self._registrations:
                self._register(one.swap)
                one.turn_on()
        except BaseException:
            self.revert(log=False)
            raise
        if log:
            for one in self._registrations:
                logger.info("registered with MindSpeed's manager: %s", one.swap)

    def in_force(self) -> bool:
        """Return whether the manager has everything and has applied it; `repatch` without the feature takes it out."""
        entries = [self._tree.manager.patches_info.get(one.swap.slot.path) for one in self._registrations]
        return all(
            entry is not None and entry.is_applied and _holds(entry, one.swap)
            for entry, one in zip(entries, self._registrations, strict=True)
        )

    def revert(self, *, log: bool = True) -> tuple[str, ...]:
        """Take ours out of the manager, put back what was beneath, and undo our own part; messages as of PatchSet.

        Whoever has patched over us since, around the manager, is left alone: that may well call ours, which passes on
        to what stood there before.
        """
        for one in self._registrations:
            one.turn_off()
        left_alone = [message for one in self._registrations if (message := self._take_out(one))]
        if log:
            for message in left_alone:
                logger.warning("%s", message)
        return (*left_alone, *self._own.revert(log=log))

    def _take_out(self, one: Registration) -> str | None:
        """Take one registration out; returns a message when somebody else stands there, and is left."""
        path, patches = one.swap.slot.path, self._tree.manager.patches_info
        entry = patches.get(path)
        if entry is None:
            return None
        if _holds(entry, one.swap):
            if one.swap.spec.kind == "wrap":
                entry.wrappers.remove(one.swap.new)
            else:
                entry.patch_func = one.beneath
        elif not _is_empty(entry):
            return None  # MindSpeed has registered others in the meantime: a pass is under way that will apply them
        message = None
        if entry.orig_module is not None:
            standing = vars(entry.orig_module).get(entry.orig_func_name)
            if standing is not one.over and _is_over(entry, standing):
                message = f"{path} was patched over by {at.locate(standing)}; left as it is"
                self.left[path] = standing
            else:
                entry.is_applied = False
                entry.apply_patch()
                if one.over is not at.MISSING:
                    setattr(entry.orig_module, entry.orig_func_name, one.over)
        if _is_empty(entry) and path in self._introduced:
            del patches[path]
        return message

    def _register(self, swap: Swap) -> None:
        path, manager = swap.slot.path, self._tree.manager
        entry = manager.patches_info.get(path)
        if entry is not None and _is_empty(entry):
            # Left over from before a `repatch`: it would patch the class that stood there then.
            entry.is_applied = False
            entry.apply_patch()
            del manager.patches_info[path]
            entry = None
        if entry is None:
            self._introduced.append(path)
        manager.register_patch(path, swap.new, force_patch=True)


def collect_managed(tree: Tree, specs: Iterable[tuple[PatchSpec, Any]], on_conflict: OnConflict) -> ManagedPatches:
    """Resolve and check specifications, as `patching.collect` does, against what MindSpeed's manager holds.

    A replacement of MindSpeed's that TAKEN_OVER names is no conflict. Nothing is changed.
    """
    shared: list[tuple[PatchSpec, Any]] = []
    alone: list[tuple[PatchSpec, Any]] = []
    for spec, context in specs:
        managed = spec.unit in UNITS and spec.kind != "supply"
        if managed and require_entry(tree, spec.target) is None and not spec.over_others:
            # Beneath somebody's wrapper the manager has nothing to do, and would take that off.
            slot = at.require(spec.target)
            managed = switch_below(spec, slot.raw, slot.owner) is None
        goes_to = shared if managed else alone
        goes_to.append((spec, context))
    own = collect(alone, on_conflict)
    refuse_wrong_wrappers(tree, f"{ALLTOALL}.__init__")
    registrations: list[Registration] = []
    conflicts: dict[str, str] = {}
    for spec, context in shared:
        slot, beneath, over, conflict = _look(tree, spec)
        below = None if beneath is not None or spec.over_others else switch_below(spec, over, slot.owner)
        if conflict and below is None and is_left_alone(conflict, on_conflict):
            conflicts.setdefault(spec.unit, conflict)
            continue
        original = at.unwrap(slot.raw) if beneath is None else beneath
        original = original if below is None else below.to
        new, built = _new(spec, original, context)
        if below is not None:
            new = _keeping(over)
        registrations.append(Registration(Swap(spec, slot, new, original), beneath, over, built, below))
    kept = tuple(one for one in registrations if one.swap.spec.unit not in conflicts)
    skipped = {spec: conflicts[spec.unit] for spec, _ in shared if spec.unit in conflicts}
    return ManagedPatches(tree, own, kept, skipped)


def refuse_wrong_wrappers(tree: Tree, path: str) -> None:
    """Raise MindSpeedError when a wrapper of MindSpeed's does not take a parameter of what it wraps.

    On core_r0.17.0 and core_r0.18.0 --moe-permute-fusion wraps the dispatcher's constructor so that no layer can be
    built; that fails later, far from its cause.
    """
    entry = require_entry(tree, path)
    if entry is None or not entry.wrappers:
        return
    original = entry.orig_func if entry.orig_module is not None else at.require(path).raw
    wanted = inspect.signature(original, follow_wrapped=False).parameters
    for wrapper in entry.wrappers:
        taken = inspect.signature(wrapper(original), follow_wrapped=False).parameters
        if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values()):
            continue
        missing = [name for name in wanted if name not in taken]
        if missing:
            raise MindSpeedError(
                f"MindSpeed in {tree.folder} wraps {path} with {at.describe(wrapper)}, which does not take "
                f"{', '.join(missing)}: with this Megatron-Core no layer can be built, with or without mindspeed_moe; "
                "leave the flag out that asks for it (--moe-permute-fusion)"
            )


def _look(tree: Tree, spec: PatchSpec) -> tuple[at.Slot, Any, Any, str | None]:
    """Return the slot with the original that the manager knows, then `beneath` and `over`, and a conflict or None."""
    slot, entry = at.require(spec.target), require_entry(tree, spec.target)
    beneath, over, conflict = None, at.MISSING, None
    if entry is not None and not _ours(entry.patch_func):
        beneath = entry.patch_func
    # Of another owner, when MindSpeed has put a class of its own in the place of the whole class, or has taken it away.
    if entry is not None and entry.orig_module is slot.owner:
        if _is_over(entry, slot.raw):
            over = slot.raw
            conflict = f"{spec.target} is patched already: {at.describe(slot.raw)} stands there"
        # What stands there is the manager's, or left over from before a `repatch`.
        slot = replace(slot, raw=entry.orig_func)
    if conflict or spec.over_others:
        return slot, beneath, over, None if spec.over_others else conflict
    if beneath is not None and (spec.target, getattr(beneath, "__name__", "")) not in TAKEN_OVER:
        return slot, beneath, over, f"{spec.target} is patched by MindSpeed already: {at.describe(beneath)}"
    who = at.foreign(slot, spec.home or (slot.module,))
    if who:
        return slot, beneath, slot.raw, f"{spec.target} is patched already: {who} stands there"
    check_signature(spec, slot)
    return slot, beneath, over, None


def _new(spec: PatchSpec, original: Any, context: Any) -> tuple[Any, list[tuple[Any, Any]]]:
    """Return what the manager is given, and the list of our functions in it, which a wrap fills when it is applied."""
    built: list[tuple[Any, Any]] = []

    def build(stands_before: Any) -> Any:
        function = spec.build(stands_before, context)
        name_target(function, spec)
        built.append((function, stands_before))
        return function

    if spec.kind != "wrap":
        return build(original), built

    # The manager tells wrappers from replacements by the end of their name, and calls them when it applies.
    def mindspeed_moe_wrapper(original: Any) -> Any:
        return build(original)

    return mindspeed_moe_wrapper, built


def _keeping(theirs: Any) -> Any:
    """Return their wrapper under a name that the manager takes for a replacement's, whatever theirs is called."""

    def preprocess(*args: Any, **kwargs: Any) -> Any:
        return theirs(*args, **kwargs)

    return preprocess


def _is_over(entry: Any, standing: Any) -> bool:
    """Return whether somebody has put something around the manager, which forgets with a removal what was its own."""
    if entry.is_applied:
        return standing is not entry.final_patch_func
    return standing is not entry.orig_func and not _module(standing).startswith(("mindspeed", "megatron.core."))


def _holds(entry: Any, swap: Swap) -> bool:
    return bool(swap.new in entry.wrappers if swap.spec.kind == "wrap" else entry.patch_func is swap.new)


def _is_empty(entry: Any) -> bool:
    return entry.patch_func is None and not entry.wrappers


def _ours(function: Any) -> bool:
    return _module(function).startswith("mindspeed_moe.")


def _module(function: Any) -> str:
    return str(getattr(at.unwrap(function), "__globals__", {}).get("__name__"))
