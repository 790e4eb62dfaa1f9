"""enable, disable, status: one plan at a time in a process, safe to call from several threads."""

from __future__ import annotations

import threading

from mindspeed_moe.config import load_config
from mindspeed_moe.config.load import Source
from mindspeed_moe.environment import probe_environment
from mindspeed_moe.errors import AlreadyEnabledError
from mindspeed_moe.log import logger
from mindspeed_moe.patching import PatchSet
from mindspeed_moe.plan import Plan
from mindspeed_moe.planning import make_plan

_lock = threading.RLock()
_active: tuple[Plan, PatchSet] | None = None


def enable(config: Source = None) -> Plan:
    """Patch Megatron-Core as configured; returns the plan that is now in force.

    config: a YAML file's path, a mapping, or None for the defaults. A second call with the same configuration
    returns the same plan. Raises AlreadyEnabledError for another configuration, or one of the package's errors;
    after any error Megatron is as it was.
    """
    global _active
    with _lock:
        wanted = load_config(config)
        if _active is not None:
            plan = _active[0]
            if plan.config == wanted:
                return plan
            raise AlreadyEnabledError(
                f"mindspeed_moe is enabled with another configuration; call disable() first. "
                f"In force: {plan.config!r}. Asked for: {wanted!r}"
            )
        plan, patches = make_plan(wanted, probe_environment())
        first_rank = plan.environment.rank == 0
        patches.apply(log=first_rank)
        if first_rank:
            for note in plan.notes:
                logger.info("%s", note)
        _active = (plan, patches)
        return plan


def disable() -> tuple[str, ...]:
    """Put everything back as it was before `enable`; does nothing when nothing is enabled.

    Returns a message for each target that somebody has patched over since; their work is left alone.
    """
    global _active
    with _lock:
        if _active is None:
            return ()
        plan, patches = _active
        _active = None
        return patches.revert(log=plan.environment.rank == 0)


def status() -> Plan | None:
    """Return the plan in force, None when nothing is enabled."""
    active = _active
    return active[0] if active else None
