"""The plugin as one feature of MindSpeed: listed, switched by its arguments, registered again in every pass.

MindSpeed's adaptor may run before or after this. Before: the feature is registered and applied at once. After: it only
waits in the list, and whatever the adaptor or `repatch` does with the list, it stays there.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mindspeed_moe import lifetime, log
from mindspeed_moe.config import Config, load_config
from mindspeed_moe.contract.generations import TOKEN_DISPATCHER
from mindspeed_moe.environment import Environment, launch_words
from mindspeed_moe.errors import MindSpeedError, MindSpeedMoEError
from mindspeed_moe.mindspeed.arguments import (
    FEATURE,
    SWITCH,
    add_arguments,
    as_mapping,
    parse_command_line,
    read_config_file,
    read_switch,
)
from mindspeed_moe.mindspeed.conflict import BYPASSED, REFUSED, Conflict
from mindspeed_moe.mindspeed.managed import ManagedPatches, collect_managed
from mindspeed_moe.mindspeed.tree import ADAPTORS, Tree, adaptor_ran, before, keep_listed, launch_arguments, load_tree
from mindspeed_moe.mindspeed.verdicts import verdicts
from mindspeed_moe.patching.target import find, locate
from mindspeed_moe.plan import Plan
from mindspeed_moe.planning import decide, left_alone, plan_with
from mindspeed_moe.verify.public import now_comparing

logger = logging.getLogger("mindspeed_moe.mindspeed")

OPTIMIZATION_LEVEL = 2  # of MindSpeed's levels, that of accelerations


class Attachment:
    """The plugin inside of MindSpeed: its feature, and the patches that the last pass registered.

    plan: what is in force, what waits for MindSpeed's adaptor, or why nothing is patched.
    """

    def __init__(self, tree: Tree, config: Config, environment: Environment) -> None:
        self.config = config
        self._tree = tree
        self._environment = environment
        self._files: dict[str, Config] = {}
        self._enabling = object()  # in all passes the same: ranks are compared after each
        self._patches: ManagedPatches | None = None
        self._registered: Plan | None = None
        self._off = ""
        self._told_to_wait = False
        self._waiting = plan_without_patches(config, environment, _what_it_waits_for())
        self._feature = _make_feature(tree.base, self)
        self._around: dict[str, Any] = {}  # by path, somebody's wrappers that were left when ours came out
        self._guards: list[Callable[[], None]] = []

    # ---------------------------------------------------------------------------------------------- whole

    @property
    def plan(self) -> Plan:
        """The plan as it is now; MindSpeed may have taken our patches out since."""
        registered, patches, off = self._registered, self._patches, self._off
        if registered is not None and patches is not None and patches.in_force():
            return registered
        if not off and not adaptor_ran():
            return self._waiting
        return plan_without_patches(self.config, self._environment, off or _TAKEN_OUT)

    def join(self) -> None:
        """List the feature; where the adaptor has run already, register and apply it at once."""
        present = [one for one in self._tree.features.FEATURES_LIST if _is_our_name(one)]
        if present:
            raise MindSpeedError(
                f"MindSpeed lists a feature {SWITCH} already, of {type(present[0]).__module__}: "
                "is there a second copy of mindspeed_moe on the path?"
            )
        self._list()
        self._guards.append(keep_listed(self._tree.features, self._feature))
        if self._tree.removes:
            self._guards.append(before(self._tree.manager, "remove_patches", lambda: self._take_out(log_it=False)))
        if not adaptor_ran():
            self._say(logging.WARNING, self._waiting.notes[-1])
            self._told_to_wait = True
            _nothing_in_force()
            return
        args = launch_arguments(self._tree)
        in_force = _nothing_in_force
        if self.is_wanted(args):
            in_force = self._register(self._tree.manager, args)
            self._tree.manager.apply_patches()
        in_force()

    def leave(self, *, log_it: bool = True) -> tuple[str, ...]:
        """Undo everything: patches, the place in the list, the guards."""
        while self._guards:
            self._guards.pop()()
        listed = self._tree.features.FEATURES_LIST
        listed[:] = [one for one in listed if one is not self._feature]
        return self._take_out(log_it=log_it)

    # ---------------------------------------------------------------------------------------------- hooks

    def is_wanted(self, args: Any) -> bool:
        """Return whether a pass of MindSpeed is to register us: the switch, else `enabled` of the file.

        Called in every pass, with a Namespace of strings, Megatron's Namespace or a config.
        """
        config, switch = self._config_of(args), read_switch(args)
        if switch is not None and switch is not config.enabled and "enabled" in config.model_fields_set:
            self._say(
                logging.WARNING,
                f"{SWITCH}: {switch} from the launch is in force, not `enabled: {str(config.enabled).lower()}` of the "
                "configuration",
            )
        level = as_mapping(args).get("optimization_level", OPTIMIZATION_LEVEL)
        if int(level) < OPTIMIZATION_LEVEL:
            self._off = f"optimization_level {level}: MindSpeed leaves accelerations out, and so does this plugin"
        elif not (config.enabled if switch is None else switch):
            self._off = f"{SWITCH}: {switch}" if switch is not None else "enabled: false"
        else:
            self._off = ""
            return True
        self._say(logging.INFO, f"{self._off}: nothing is patched")
        self._take_out(log_it=False)
        return False

    def register(self, manager: Any, args: Any) -> None:
        """Decide, check, and register everything with MindSpeed's manager; nothing of it when something fails.

        What MindSpeed itself keeps from working is an error or, with on_conflict: skip, stock, as in `enable`.
        """
        self._register(manager, args)()

    def _register(self, manager: Any, args: Any) -> Callable[[], None]:
        """As `register`; returns what is to be called when nothing can fail any more."""
        self._take_out(log_it=False)
        config = self._config_of(args).model_copy(update={"enabled": True})
        try:
            hit = judge(args, self._environment)
            collect = functools.partial(collect_managed, replace(self._tree, manager=manager))
            wanted = with_left_out(config, hit)
            plan, patches, in_force = plan_with(collect, wanted, self._environment, self._enabling)
            self._name_what_was_taken_off()
            patches.apply(log=self._environment.rank == 0)
        except MindSpeedError as error:
            if config.on_conflict == "error":
                raise
            self._off = f"{error}; nothing is patched (on_conflict: {config.on_conflict})"
            self._say(logging.WARNING, self._off)
            return _nothing_in_force
        for note in plan.notes:
            self._say(logging.INFO, note)
        told = (str(row) for row in hit if row.effect == BYPASSED)
        self._registered = replace(plan, notes=(*plan.notes, *told, "patches go through MindSpeed's manager"))
        self._patches = patches
        # As loud as what it follows: who has read the one must see the other.
        self._say(logging.WARNING if self._told_to_wait else logging.INFO, "mindspeed_moe is in force under MindSpeed")
        return in_force

    def validate(self, args: Any) -> None:
        """Say, or refuse, what typed arguments do to the plugin; Megatron's Namespace or a TransformerConfig."""
        if self._registered is None:
            return
        try:
            judge(args, self._environment)
        except MindSpeedError as error:
            if self._registered.config.on_conflict == "error":
                raise
            self._off = f"{error}; nothing is patched any more (on_conflict: {self._registered.config.on_conflict})"
            self._say(logging.WARNING, self._off)
            self._take_out(log_it=True)

    # ---------------------------------------------------------------------------------------------- parts

    def _config_of(self, args: Any) -> Config:
        """Return the configuration: of the file that these arguments name, else the one that `enable` was given."""
        file = read_config_file(args)
        if file is None:
            return self.config
        if file not in self._files:
            self._files[file] = load_config(file)
        return self._files[file]

    def _list(self) -> None:
        add = getattr(self._tree.features, "add_feature", None)
        if add is None:
            self._tree.features.FEATURES_LIST.append(self._feature)
        else:
            add(self._feature)

    def _take_out(self, *, log_it: bool) -> tuple[str, ...]:
        patches, self._patches, self._registered = self._patches, None, None
        lifetime.end()
        if patches is None:
            return ()
        messages = patches.revert(log=log_it and self._environment.rank == 0)
        self._around = patches.left
        return messages

    def _name_what_was_taken_off(self) -> None:
        """MindSpeed's pass puts its own, or Megatron's, over whatever stands at a path that it knows."""
        around, self._around = self._around, {}
        for path, theirs in around.items():
            if find(path).raw is not theirs:
                told = "stood around mindspeed_moe; MindSpeed has taken it off, as it does without mindspeed_moe too"
                self._say(logging.WARNING, f"{path}: {locate(theirs)} {told}")

    def _say(self, level: int, message: str) -> None:
        if self._environment.rank == 0:
            log.once(level, message)


def attach(config: Config, environment: Environment) -> Attachment | Plan | None:
    """Become a feature of the MindSpeed on the path; returns what `disable` undoes.

    None: this MindSpeed cannot take patches back (0.8, 0.10) and has patched already, so that nothing of it will undo
    ours: our own engine is to be used. A plan: likewise, and the launch says that nothing is to be patched.

    Raises MindSpeedError when the tree is broken or unknown, or is such a one and has not patched yet; and whatever a
    registration raises. Nothing is left listed or patched then.
    """
    tree = load_tree()
    if not tree.removes:
        if adaptor_ran():
            return _beside(config, environment)
        raise MindSpeedError(
            f"MindSpeed in {tree.folder} cannot take patches back, so that it must patch before mindspeed_moe does: "
            "import mindspeed.megatron_adaptor above mindspeed_moe.adaptor"
        )
    attachment = Attachment(tree, config, environment)
    try:
        attachment.join()
    except BaseException:
        attachment.leave(log_it=False)
        raise
    return attachment


def _beside(config: Config, environment: Environment) -> Plan | None:
    """Read and judge the launch for a MindSpeed that knows nothing of us; a plan when nothing is to be patched."""
    args = parse_command_line(launch_words())
    switch = read_switch(args)
    if switch is False:
        return plan_without_patches(config, environment, f"{SWITCH}: False")
    judge(args, environment)
    return None


def judge(args: Any, environment: Environment) -> tuple[Conflict, ...]:
    """Return the rows that a launch hits; says on rank 0 what bypasses us. MindSpeedError for one that excludes us."""
    hit = verdicts(as_mapping(args), environment.megatron_core.version, whole=False)
    for row in hit:
        if row.effect == REFUSED:
            raise MindSpeedError(f"{row}; leave that flag out, or set `on_conflict: skip` or `enabled: false`")
        if row.effect == BYPASSED and environment.rank == 0:
            log.once(logging.WARNING, str(row))
    return hit


def with_left_out(config: Config, hit: tuple[Conflict, ...]) -> Config:
    """Return the configuration with those dispatchers stock that a feature of the launch uses in a way of its own."""
    left = dict.fromkeys((name for row in hit for name in row.leaves), "stock")
    return config.model_copy(update={"dispatchers": config.dispatchers.model_copy(update=left)})


def plan_without_patches(config: Config, environment: Environment, note: str) -> Plan:
    """Return what `status` says while nothing is patched: every dispatcher stock, and why.

    Nothing here may fail: turning the plugin off must work where it cannot be turned on.
    """
    try:
        device, generation, decisions = decide(config, environment)
    except MindSpeedMoEError:
        return Plan(config, environment, config.device, "", (), (), (note,))
    stock = tuple(left_alone(one, note, "not in force") if one.row else one for one in decisions)
    return Plan(config, environment, device, str(generation), stock, (), (note,))


def _nothing_in_force() -> None:
    now_comparing(None)


_TAKEN_OUT = "not in force: MindSpeed, or somebody through its manager, has taken the patches out since"


def _make_feature(base: type, attachment: Attachment) -> Any:
    """Return an object of a class of MindSpeed's; made here, for there is no such base without MindSpeed."""

    class MoENpuPreprocessFeature(base):  # type: ignore[misc]
        """Hands MindSpeed's calls on. Tolerant of every kind of arguments, and idempotent, as its hooks must be."""

        def __init__(self) -> None:
            super().__init__(FEATURE, optimization_level=OPTIMIZATION_LEVEL)

        def is_need_apply(self, args: Any) -> bool:
            return attachment.is_wanted(args)

        def register_args(self, parser: Any) -> None:
            add_arguments(parser)

        def validate_args(self, args: Any) -> None:
            attachment.validate(args)

        def register_patches(self, patch_manager: Any, args: Any) -> None:
            attachment.register(patch_manager, args)

    return MoENpuPreprocessFeature()


def _what_it_waits_for() -> str:
    told = (
        f"mindspeed_moe is not in force yet: MindSpeed is on the path, and it waits for the import of its adaptor "
        f"({' or '.join(ADAPTORS)}); in a launch without MindSpeed, set `mindspeed: off`"
    )
    if TOKEN_DISPATCHER in sys.modules:
        told += (
            "; Megatron's dispatchers are imported already, which is not too late for mindspeed_moe (it replaces "
            "methods), but for what MindSpeed puts there before Megatron is imported"
        )
    return told


def _is_our_name(feature: Any) -> bool:
    return bool(getattr(feature, "feature_name", None) == SWITCH)
