"""From configuration and environment to a plan and its checked patches. Nothing is changed here."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

from mindspeed_moe.conditions import launches_block
from mindspeed_moe.config import Config
from mindspeed_moe.contract import Generation, generation_of, prove
from mindspeed_moe.contract.generations import TOKEN_DISPATCHER
from mindspeed_moe.contract.probes import import_whole
from mindspeed_moe.dispatch_table import AUTO, DISPATCHERS, STOCK, Decision, lookup
from mindspeed_moe.environment import Environment
from mindspeed_moe.errors import ContractError, DeviceError
from mindspeed_moe.patching import PatchSet, PatchSpec, collect, patched_by_others
from mindspeed_moe.patching.target import describe
from mindspeed_moe.plan import Plan, PlannedPatch


def plugin_version() -> str:
    """Return the installed version of mindspeed-moe, `unknown` in an uninstalled tree."""
    try:
        return version("mindspeed-moe")
    except PackageNotFoundError:
        return "unknown"


def decide(config: Config, environment: Environment) -> tuple[str, Generation, tuple[Decision, ...]]:
    """Return device, contract generation and one decision a dispatcher; does not import Megatron.

    Raises DeviceError (also without torch), ContractError (Megatron missing or unknown) or UnsupportedError.
    """
    if environment.torch.version is None:
        raise DeviceError(f"torch: {environment.torch}")
    device = config_device(config, environment)
    megatron = environment.megatron_core
    if megatron.version is None:
        raise ContractError(
            f"megatron-core: {megatron}; install it or put its checkout on PYTHONPATH (extra: mindspeed-moe[megatron])"
        )
    generation = generation_of(megatron.version)
    decisions = tuple(lookup(device, dispatcher, generation.name, config) for dispatcher in DISPATCHERS)
    return device, generation, decisions


def config_device(config: Config, environment: Environment) -> str:
    """Return the device that the configuration means on this machine."""
    return environment.choose_device(config.device)


def make_plan(config: Config, environment: Environment) -> tuple[Plan, PatchSet]:
    """Decide, prove the contract, and check every patch; imports Megatron.

    Raises one of the package's errors; nothing has been changed then, nor when it returns.
    """
    if not config.enabled:
        note = "enabled: false, nothing is patched"
        # Turning the plugin off must work where it cannot be turned on: the device is not looked for.
        return Plan(config, environment, config.device, "", (), (), (note,)), PatchSet((), (), ())
    device, generation, decisions = decide(config, environment)
    from mindspeed_moe.patches import DEVICE_PATCHES, DISPATCHER_PATCHES, EXPERTS_PATCHES
    from mindspeed_moe.programs import build

    specs: list[tuple[PatchSpec, object]] = [(spec, None) for spec in DEVICE_PATCHES.get(device, ())]
    for decision in decisions:
        program = build(decision, generation, plugin_version(), config.preprocess.max_slots)
        if program is not None:
            specs += [(spec, program) for spec in DISPATCHER_PATCHES[decision.dispatcher]]
            if decision.tokens_per_expert == AUTO:
                specs += [(spec, program) for spec in EXPERTS_PATCHES]
    wanted = [(spec, context) for spec, context in specs if spec.is_for(generation.name)]
    import_whole(TOKEN_DISPATCHER)
    patched = patched_by_others(spec for spec, _ in wanted)
    prove(generation, str(environment.megatron_core.version), patched)
    patches = collect(wanted, config.on_conflict)
    return _plan(config, environment, device, generation, decisions, patches), patches


def _plan(
    config: Config,
    environment: Environment,
    device: str,
    generation: Generation,
    decisions: tuple[Decision, ...],
    patches: PatchSet,
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
            decision = _left_alone(decision, why)
        settled.append(decision)
    blocking = launches_block(device, environment.variables)
    if blocking:
        notes.append(f"{blocking} is set: every launch waits; results are the same, times say nothing")
    if device == "cpu":
        notes.append("device cpu: Megatron runs on stand-ins for torch.cuda; for laptops and CI")
    return Plan(config, environment, device, str(generation), tuple(settled), tuple(planned), tuple(notes))


def _left_alone(decision: Decision, why: str) -> Decision:
    return replace(
        decision,
        implementation=STOCK,
        row=None,
        counts="",
        exchange="",
        exchange_group="",
        stream="",
        tokens_per_expert="",
        reason="on_conflict: skip",
        rejected=((decision.implementation, why), *decision.rejected),
    )
