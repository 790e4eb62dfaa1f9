"""From configuration and environment to a plan and its checked patches. Nothing is changed here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

from mindspeed_moe.conditions import launches_block
from mindspeed_moe.config import Config
from mindspeed_moe.config.tuned import Machine, Tuned, Versions, read_tuned, require_fit
from mindspeed_moe.contract import Generation, generation_of, prove
from mindspeed_moe.contract.generations import TOKEN_DISPATCHER
from mindspeed_moe.contract.probes import import_whole
from mindspeed_moe.dispatch_table import AUTO, DISPATCHERS, REFERENCE, STOCK, Decision, lookup, rows_of
from mindspeed_moe.environment import Environment
from mindspeed_moe.errors import ConfigError, ContractError, DeviceError
from mindspeed_moe.patching import Patches, PatchSet, PatchSpec, collect, patched_by_others
from mindspeed_moe.patching.engine import OnConflict
from mindspeed_moe.patching.target import describe
from mindspeed_moe.plan import Plan, PlannedPatch
from mindspeed_moe.preprocess.experts import ExpertsOf
from mindspeed_moe.verify.public import now_comparing

TUNED = "alltoall"  # the dispatcher that a tuned file was measured for


def plugin_version() -> str:
    """Return the installed version of mindspeed-moe, `unknown` in an uninstalled tree."""
    try:
        return version("mindspeed-moe")
    except PackageNotFoundError:
        return "unknown"


def machine_here(environment: Environment, device: str) -> Machine:
    """Return what a tuned file says of the machine that it was measured on."""
    return Machine.model_validate(
        {
            "device": device,
            "name": environment.processor if device == "cpu" else environment.devices[device],
            "cpu": environment.processor,
            "world_size": environment.world_size,
        }
    )


def versions_here(environment: Environment) -> Versions:
    """Return what a tuned file says of the versions that it was measured with."""
    return Versions(
        mindspeed_moe=plugin_version(),
        megatron_core=environment.megatron_core.version or "",
        torch=environment.torch.version or "",
        torch_npu=environment.torch_npu.version or "",
    )


def tuned_for(config: Config, environment: Environment, device: str) -> Tuned | None:
    """Return the tuned file of a configuration; ConfigError when it is broken, stale or foreign."""
    if config.tuned is None:
        return None
    tuned = read_tuned(config.tuned)
    here = machine_here(environment, device)
    if environment.world_size == 1:  # doctor, outside of the launch; the layer's own sizes are compared at run time
        here = here.model_copy(update={"world_size": tuned.machine.world_size})
    require_fit(tuned, config.tuned, here, versions_here(environment))
    return tuned


def _require_offered(tuned: Tuned, path: str, device: str, generation: Generation) -> None:
    """Raise ConfigError for choices that `packed` does not have here: somebody has edited the file."""
    rows = rows_of(device, TUNED, generation.name)
    packed = next((row for row in rows if row.implementation == "packed"), None)
    if packed is None:
        raise ConfigError(f"tuned: {path}: there is no `packed` for device {device}, generation {generation}")
    for choice, value in tuned.chosen().items():
        offered = getattr(packed, choice)
        if value not in offered:
            raise ConfigError(f"tuned: {path}: choices.{choice}: {value!r}; allowed here: {', '.join(offered)}")


def decide(config: Config, environment: Environment) -> tuple[str, Generation, tuple[Decision, ...]]:
    """Return device, contract generation and one decision a dispatcher; does not import Megatron.

    Raises DeviceError (also without torch), ContractError (Megatron missing or unknown), UnsupportedError, or
    ConfigError for a tuned file that does not fit.
    """
    return _decide(config, environment)[:3]


def _decide(config: Config, environment: Environment) -> tuple[str, Generation, tuple[Decision, ...], Tuned | None]:
    if environment.torch.version is None:
        raise DeviceError(f"torch: {environment.torch}")
    device = config_device(config, environment)
    megatron = environment.megatron_core
    if megatron.version is None:
        advice = "install it or put its checkout on PYTHONPATH (extra: mindspeed-moe[megatron])"
        absent = not environment.megatron_folders
        raise ContractError(f"megatron-core: {megatron}" + (f"; {advice}" if absent else ""))
    generation = generation_of(megatron.version)
    tuned = tuned_for(config, environment, device)
    if tuned is not None:
        _require_offered(tuned, str(config.tuned), device, generation)
        config = config.with_choices(tuned.chosen())
    decisions = tuple(lookup(device, dispatcher, generation.name, config) for dispatcher in DISPATCHERS)
    return device, generation, decisions, tuned


def config_device(config: Config, environment: Environment) -> str:
    """Return the device that the configuration means on this machine."""
    return environment.choose_device(config.device)


AnyPatches = TypeVar("AnyPatches", bound=Patches)


def make_plan(config: Config, environment: Environment) -> tuple[Plan, PatchSet]:
    """Decide, prove the contract, and check every patch for our own engine, as `plan_with`; one plan of several."""
    return plan_alone(config, environment, None)[:2]


def plan_alone(config: Config, environment: Environment, enabling: object) -> tuple[Plan, PatchSet, Callable[[], None]]:
    """As `plan_with`, for our own engine; nothing to patch where the configuration says `enabled: false`."""
    if not config.enabled:
        note = "enabled: false, nothing is patched"
        # Turning the plugin off must work where it cannot be turned on: the device is not looked for.
        plan = Plan(config, environment, config.device, "", (), (), (note,))
        return plan, PatchSet((), (), ()), lambda: now_comparing(None)
    return plan_with(collect, config, environment, enabling)


def plan_with(
    collect: Callable[[Iterable[tuple[PatchSpec, Any]], OnConflict], AnyPatches],
    config: Config,
    environment: Environment,
    enabling: object,
) -> tuple[Plan, AnyPatches, Callable[[], None]]:
    """Decide, prove the contract, and have `collect` check every patch; imports Megatron.

    enabling: stands for the `enable` of a launch, whose ranks are compared; None for one plan of several side by side.
    Returns with both what is to be called once the patches are in place: what scripts ask and set is of this plan then.
    Raises one of the package's errors; nothing has been changed then, nor when it returns.
    """
    device, generation, decisions, tuned = _decide(config, environment)
    from mindspeed_moe.patches import DEVICE_PATCHES, DISPATCHER_PATCHES, EXPERTS_PATCHES, catalogue
    from mindspeed_moe.preprocess.agreement import LaunchAgreement
    from mindspeed_moe.programs import build
    from mindspeed_moe.watching import common_settings, now_watching, watched_as

    watched = watched_as(config, environment, device, versions_here(environment).model_dump())
    facts = {"mindspeed_moe": plugin_version(), **common_settings(config)}
    measured_for = (tuned.shape.experts, tuned.shape.ep, tuned.shape.tp) if tuned else None
    launch = None if enabling is None else LaunchAgreement.planned(facts, enabling)
    experts = ExpertsOf() if launch is None else ExpertsOf(launch.tell)
    specs: list[tuple[PatchSpec, Any]] = [(spec, None) for spec in DEVICE_PATCHES.get(device, ())]
    for decision in decisions:
        tuned_sizes = measured_for if decision.dispatcher == TUNED else None
        program = build(decision, generation, facts, config.preprocess.max_slots, tuned_sizes, experts, watched, launch)
        if program is not None:
            specs += [(spec, program) for spec in DISPATCHER_PATCHES[decision.dispatcher]]
    experts.served = any(decision.row is not None for decision in decisions)
    if experts.served or launch is not None:  # stock everywhere is told, too: other ranks may have something else
        specs += [(spec, experts) for spec in EXPERTS_PATCHES]
    wanted = [(spec, context) for spec, context in specs if spec.is_for(generation.name) and spec.needed(context)]
    import_whole(TOKEN_DISPATCHER)
    # Of all targets, those that stay stock included: what somebody else has put there says nothing about the release.
    patched = patched_by_others(spec for spec in catalogue() if spec.is_for(generation.name))
    units = {spec.unit for spec, _ in wanted}
    if not experts.served:  # nothing of a layer is read then, and stock is the way out when a contract is broken
        units -= {spec.unit for spec in EXPERTS_PATCHES}
    prove(generation, str(environment.megatron_core.version), patched, units)
    patches = collect(wanted, config.on_conflict)
    plan = _plan(config, environment, device, generation, decisions, patches, tuned)
    if launch is not None:
        # As it came out: what a tuned file chooses may differ between groups, which compare it before they exchange.
        launch.add({one.dispatcher: one.implementation for one in plan.decisions})

    def in_force() -> None:
        now_watching(watched)
        if launch is not None:
            launch.in_force()

    return plan, patches, in_force


def _plan(
    config: Config,
    environment: Environment,
    device: str,
    generation: Generation,
    decisions: tuple[Decision, ...],
    patches: Patches,
    tuned: Tuned | None,
) -> Plan:
    planned = [
        PlannedPatch(swap.slot.path, swap.spec.unit, swap.spec.kind, "apply", describe(swap.new))
        for swap in patches.swaps
    ]
    planned += [PlannedPatch(spec.target, spec.unit, spec.kind, "skipped", why) for spec, why in patches.skipped]
    planned += [PlannedPatch(target, "", "supply", "unnecessary", "exists already") for target in patches.unnecessary]
    notes = [
        f"dispatcher {decision.dispatcher} stays stock: {decision.reason}"
        for decision in decisions
        if decision.row is None and decision.rejected and decision.reason != "asked for"
    ]
    settled = []
    for decision in decisions:
        why = next((why for spec, why in patches.skipped if spec.unit == decision.dispatcher), None)
        if why and decision.row is not None:
            notes.append(f"dispatcher {decision.dispatcher} stays as it is: {why} (on_conflict: skip)")
            decision = left_alone(decision, why)
        settled.append(decision)
    notes += _told_of_watching(config, settled)
    blocking = launches_block(device, environment.variables)
    if blocking:
        notes.append(f"{blocking} is set: every launch waits; results are the same, times say nothing")
    if tuned is not None:
        notes.append(_told(tuned, config))
    if device == "cpu":
        notes.append("device cpu: Megatron runs on stand-ins for torch.cuda; for laptops and CI")
    return Plan(config, environment, device, str(generation), tuple(settled), tuple(planned), tuple(notes))


def _told_of_watching(config: Config, decisions: list[Decision]) -> list[str]:
    """Say which dispatchers `verify` and `telemetry` look at, and which they cannot."""
    wanted = []
    if config.verify != "off":
        wanted.append((f"verify: {config.verify}", "compared with `reference`", "is what the others are compared with"))
    if config.telemetry.enabled:
        written = f"its load goes to {config.telemetry.folder} ({', '.join(config.telemetry.writers)})"
        wanted.append(("telemetry", written, "copies counts one by one: its load is not kept"))
    told = []
    for what, done, not_done in wanted:
        for decision in decisions:
            if decision.implementation == REFERENCE:
                told.append(f"{what}: dispatcher {decision.dispatcher} runs `reference`, which {not_done}")
            elif decision.row is not None:
                told.append(f"{what}: dispatcher {decision.dispatcher}, {done}")
            else:
                told.append(f"{what}: dispatcher {decision.dispatcher} is stock, which is left alone")
    return told


def _told(tuned: Tuned, config: Config) -> str:
    """Say what a tuned file decides here, and what it does not."""
    own = config.preprocess.model_dump()
    taken = [f"{key} {value}" for key, value in tuned.chosen().items() if own[key] == AUTO]
    kept = [f"{key} {own[key]}" for key in tuned.chosen() if own[key] != AUTO]
    told = f"tuned: {config.tuned} is in force: {', '.join(taken) or 'the defaults stay'} ({tuned.reason})"
    return told + (f"; the configuration's own win: {', '.join(kept)}" if kept else "")


def left_alone(decision: Decision, why: str, reason: str = "on_conflict: skip") -> Decision:
    """Return the decision for a dispatcher that stays stock all the same; why: what kept its row from being applied."""
    return replace(
        decision,
        implementation=STOCK,
        row=None,
        counts="",
        exchange="",
        exchange_group="",
        stream="",
        tokens_per_expert="",
        reason=reason,
        rejected=((decision.implementation, why), *decision.rejected),
    )
