"""enable, disable, status: one plan at a time in a process, safe to call from several threads."""

from __future__ import annotations

import threading
from typing import Protocol

from mindspeed_moe import lifetime
from mindspeed_moe.config import Config, load_config
from mindspeed_moe.config.load import Source
from mindspeed_moe.environment import Environment, mindspeed_importable, probe_environment
from mindspeed_moe.errors import AlreadyEnabledError, MindSpeedError
from mindspeed_moe.log import logger
from mindspeed_moe.patching import PatchSet
from mindspeed_moe.plan import Plan
from mindspeed_moe.planning import plan_alone
from mindspeed_moe.verify.public import now_comparing


class _Session(Protocol):
    """What is enabled: by our own engine, or as a feature of MindSpeed.

    config: what `enable` was given. plan: what is in force now.
    """

    @property
    def config(self) -> Config: ...
    @property
    def plan(self) -> Plan: ...
    def leave(self) -> tuple[str, ...]: ...


class _Alone:
    """Our own engine's patches."""

    def __init__(self, plan: Plan, patches: PatchSet) -> None:
        self.config, self.plan = plan.config, plan
        self._patches = patches

    def leave(self) -> tuple[str, ...]:
        return self._patches.revert(log=self.plan.environment.rank == 0)


# A notebook reloads modules: what is enabled stays enabled then.
_lock = globals().get("_lock") or threading.RLock()
_active: _Session | None = globals().get("_active")


def enable(config: Source = None) -> Plan:
    """Patch Megatron-Core as configured; returns the plan that is now in force.

    config: a YAML file's path, a mapping, or None for the defaults. A second call with the same configuration
    returns the same plan. Where MindSpeed is on the path, patches go through its manager, as a feature of it: at once
    when its adaptor has run, else when it runs, and the plan says that it waits.

    Raises AlreadyEnabledError for another configuration, or one of the package's errors; after any error Megatron is
    as it was.
    """
    global _active
    with _lock:
        wanted = load_config(config)
        if _active is None:
            _active = _begin(wanted, probe_environment())
        elif _active.config.model_dump() != wanted.model_dump():  # the class may have been reloaded since
            raise AlreadyEnabledError(
                f"mindspeed_moe is enabled with another configuration; call disable() first. "
                f"In force: {_active.config!r}. Asked for: {wanted!r}"
            )
        return _active.plan


def disable() -> tuple[str, ...]:
    """Put everything back as it was before `enable`; does nothing when nothing is enabled.

    Returns a message for each target that somebody has patched over since; their work is left alone.
    """
    global _active
    with _lock:
        if _active is None:
            return ()
        session = _active
        _active = None
        try:
            return session.leave()
        finally:
            lifetime.end()


def status() -> Plan | None:
    """Return the plan in force, None when nothing is enabled."""
    active = _active
    return active.plan if active else None


def _begin(config: Config, environment: Environment) -> _Session:
    if config.mindspeed == "auto" and mindspeed_importable():
        from mindspeed_moe.mindspeed.attach import attach  # never imported without MindSpeed

        attachment: _Session | Plan | None
        try:
            attachment = attach(config, environment)
        except MindSpeedError as error:
            if config.enabled and config.on_conflict == "error":
                raise
            note = f"{error}; nothing is patched (on_conflict: {config.on_conflict}, enabled: {config.enabled})"
            if environment.rank == 0:
                logger.warning("%s", note)
            attachment = Plan(config, environment, "", "", (), (), (note,))
        if isinstance(attachment, Plan):
            now_comparing(None)
            return _Alone(attachment, PatchSet((), (), ()))
        if attachment is not None:
            return attachment
    plan, patches, in_force = plan_alone(config, environment, object())
    first_rank = environment.rank == 0
    patches.apply(log=first_rank)
    in_force()
    if first_rank:
        for note in plan.notes:
            logger.info("%s", note)
    return _Alone(plan, patches)
