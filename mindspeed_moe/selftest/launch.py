"""From a launch to a report: the plan, the world of processes, the run under a watch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from mindspeed_moe.bench.machine import is_simulated
from mindspeed_moe.config import load_config
from mindspeed_moe.contract import Generation
from mindspeed_moe.environment import Environment, leave_errors_of_collectives_to_us
from mindspeed_moe.errors import ConfigError, ContractError
from mindspeed_moe.planning import decide, machine_here, versions_here
from mindspeed_moe.preprocess.agreement import compare
from mindspeed_moe.selftest.dispatchers import Maker, has_router_padding
from mindspeed_moe.selftest.place import Place
from mindspeed_moe.selftest.report import Report, Stop
from mindspeed_moe.selftest.run import Runner
from mindspeed_moe.selftest.steps import Facts, plan_steps
from mindspeed_moe.selftest.verdicts import Verdicts
from mindspeed_moe.world.joined import joined_world
from mindspeed_moe.world.signals import ended_like_interrupted
from mindspeed_moe.world.watch import Command, Watch

_GRACE = timedelta(seconds=30)  # after the limit of a step, so that the watch speaks before a collective gives up


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for. only: parts of names of steps, all of which must occur."""

    only: tuple[str, ...] = ()
    load: bool = True
    seed: int = 0
    step_limit: timedelta = timedelta(seconds=60)


def selftest_here(
    environment: Environment,
    device: str,
    wanted: Wanted,
    *,
    progress: Callable[[int, int, str], object],
    tell: Callable[[Report], object],
) -> Report:
    """Run the plan on the ranks of this launch; returns the report, with the same verdicts on every rank.

    progress: told of done and planned steps, and of what comes. tell: called with the report on one rank, while all
    are still there: a launcher ends the others as soon as one has ended with a failure. Nothing may return then: a
    failing collective, a rank that dies or a step that is not done in time ends all ranks.
    Raises one of the package's errors where the plugin cannot be enabled at all, or nothing is left to run.
    """
    generation = _generation(environment, device)
    facts = facts_of(generation, device, environment.world_size)
    steps, left_out = plan_steps(facts, lambda name: all(part in name for part in wanted.only), load=wanted.load)
    if not steps:
        raise ConfigError(f"--only {' '.join(wanted.only)}: no step has such a name, as in 'EP 2, TP 1, L 2; alltoall'")
    simulated = device == "npu" and is_simulated(environment)
    report = Report(_head(environment, device, simulated=simulated), wanted.seed, len(steps), left_out)
    place = Place()

    def stop(problem: str, standings: Mapping[int, str]) -> None:
        report.stop = Stop(problem, standings)
        tell(report)

    def run(store: Any, watch: Watch) -> None:
        rank, limit = environment.rank, wanted.step_limit + _GRACE
        verdicts = Verdicts(store, rank, environment.world_size, limit)

        def reached(name: str) -> None:
            watch.step(name)
            progress(len(report.outcomes), len(steps), name)

        maker = Maker(generation, device)
        runner = Runner(maker, verdicts, place, reached, rank=rank, seed=wanted.seed, simulated=simulated)
        for outcome in runner.run(steps):
            report.outcomes.append(outcome)  # one by one: the watch reads what there is
        reached("telling")
        if rank == 0:
            tell(report)
        verdicts.agree("telling", ())

    leave_errors_of_collectives_to_us()
    command, limit = Command("selftest", place.describe, stop), wanted.step_limit
    running = False
    try:
        with (
            ended_like_interrupted(),
            joined_world(environment, device, limit, command, limit + _GRACE) as (store, watch),
            warnings.catch_warnings(),
        ):
            # Of collectives whose names newer releases of torch change.
            warnings.simplefilter("ignore", FutureWarning)
            watch.step("comparing what the ranks were asked for")
            common = _common(environment, device, wanted, len(steps))
            compare(store, tuple(range(environment.world_size)), environment.rank, common, limit + _GRACE)
            running = True
            run(store, watch)
    except Exception as error:
        if not running:
            raise
        # The watch has told it, on one rank, with where everybody stands; here it is no user's error.
        report.stop = report.stop or Stop(f"rank {environment.rank} ends: {error}", {})
    return report


def facts_of(generation: Generation, device: str, world_size: int) -> Facts:
    """Return what a plan depends on, of the installed release."""
    return Facts(device, generation.name, world_size, has_router_padding(generation), generation.unfolded_table)


def _generation(environment: Environment, device: str) -> Generation:
    try:
        return decide(load_config({"device": device}), environment)[1]
    except ContractError as error:
        raise ContractError(
            f"selftest runs the plugin in Megatron's dispatchers, and cannot without: {error}"
        ) from None


def _common(environment: Environment, device: str, wanted: Wanted, steps: int) -> dict[str, str | int]:
    """Return what all ranks must have in common."""
    versions: dict[str, Any] = versions_here(environment).model_dump()
    return {
        **{f"versions.{key}": value for key, value in versions.items()},
        "device": device,
        "steps": steps,
        "seed": wanted.seed,
        "only": " ".join(wanted.only),
    }


def _head(environment: Environment, device: str, *, simulated: bool) -> str:
    machine = machine_here(environment, device)
    told = f"{environment.world_size} ranks on {device}{' (simulated)' if simulated else ''}: {machine.name}"
    return f"{told}; megatron-core {environment.megatron_core.version}, torch {environment.torch.version}" + (
        f", torch-npu {environment.torch_npu.version}" if device == "npu" else ""
    )
