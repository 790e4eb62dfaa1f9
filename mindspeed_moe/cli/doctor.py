"""`mindspeed-moe doctor`: what is here, what would be decided and patched, and what is in the way. Changes nothing."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

from mindspeed_moe.cli.contract import compare_installed
from mindspeed_moe.cli.launch import Launch, judge_launch, launch_config_file
from mindspeed_moe.cli.releases import report_releases
from mindspeed_moe.conditions import CONDITIONS, group_memory
from mindspeed_moe.config import Config, load_config
from mindspeed_moe.dispatch_table import Decision
from mindspeed_moe.environment import (
    CONFIG_VARIABLE,
    Environment,
    configured_file,
    mindspeed_importable,
    probe_environment,
)
from mindspeed_moe.errors import MindSpeedError, MindSpeedMoEError
from mindspeed_moe.plan import Plan
from mindspeed_moe.planning import decide, make_plan
from mindspeed_moe.stacks import STACKS, stack_of
from mindspeed_moe.tables import condition_table, decision_table, environment_table, patch_table, render

NOT_READY = 1


@dataclass
class Diagnosis:
    """What doctor found. plan is None when a problem stands in the way of one; decisions may be there without."""

    environment: Environment
    config: Config
    config_source: str
    decisions: tuple[Decision, ...] = ()
    plan: Plan | None = None
    launch: Launch | None = None
    problems: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "config_source": self.config_source,
            "environment": self.environment.to_dict(),
            "conditions": [asdict(condition) for condition in CONDITIONS],
            "group_memory": {
                group: cost
                for decision in self.decisions[:1]
                for group, cost in group_memory(decision.device, self.environment.variables).items()
            },
            "plan": self.plan.to_dict() if self.plan else None,
            "launch": self.launch.to_dict() if self.launch else None,
            "problems": self.problems,
            "hints": self.hints,
        }


def diagnose(config_file: str | None, environment: Environment, words: tuple[str, ...] = ()) -> Diagnosis:
    """Plan without applying, and say what is missing, also for the launch whose command line is `words`.

    Raises ConfigError for an unusable configuration, or a launch that cannot be read.
    """
    file = config_file or launch_config_file(words) or configured_file(arguments=())
    config = load_config(file)
    launch = judge_launch(words, config, environment) if words else None
    if launch is not None and launch.switch is not None:
        # It wins, so what is planned here is what the launch would get.
        config = config.model_copy(update={"enabled": launch.switch})
    found = Diagnosis(environment, config, file or "defaults", launch=launch)
    if file is None:
        found.hints.append(f"no configuration named: defaults are used (--config FILE or {CONFIG_VARIABLE})")
    try:
        if found.config.enabled and environment.torch.version:
            _, _, found.decisions = decide(found.config, environment)
        if environment.torch.version is None:
            found.problems.append(f"torch: {environment.torch}")
        else:
            found.plan, _ = make_plan(found.config, environment)
            found.decisions = found.plan.decisions
            found.hints += found.plan.notes
    except MindSpeedMoEError as error:
        found.problems.append(f"{type(error).__name__}: {error}")
    if found.config.mindspeed == "auto" and mindspeed_importable():
        _look_at_mindspeed(found)
    found.hints += _hints(environment, asked=bool(words)) + _tried(environment)
    if launch is not None:
        found.problems += launch.problems
        found.hints += launch.hints
    return found


def _look_at_mindspeed(found: Diagnosis) -> None:
    """Import MindSpeed's managers, which patches nothing, and say what keeps the plugin from being a feature of it."""
    from mindspeed_moe.mindspeed.tree import load_tree

    try:
        tree = load_tree()
    except MindSpeedError as error:
        found.problems.append(f"{type(error).__name__}: {error}")
        return
    if not tree.removes:
        found.hints.append(
            f"MindSpeed in {tree.folder} cannot take patches back: import its adaptor above mindspeed_moe.adaptor. It "
            "does not tell Megatron's parser of --moe-npu-preprocess and --mindspeed-moe-config: use "
            "MINDSPEED_MOE_CONFIG; a method that it has replaced is a conflict, which `on_conflict` decides"
        )


def _hints(environment: Environment, *, asked: bool) -> list[str]:
    hints = []
    if len(environment.megatron_folders) > 1:
        in_use, *others = environment.megatron_folders
        hints.append(
            f"more than one megatron.core is on the path: {in_use} is in use ({environment.megatron_core}), "
            f"not {', '.join(others)}; take one of them off PYTHONPATH or uninstall it"
        )
    if environment.torch_npu.version and "npu" not in environment.available:
        hints.append(
            f"torch-npu {environment.torch_npu} is installed but no NPU can be used ({environment.devices['npu']}); "
            f"without CANN, TORCH_DEVICE_BACKEND_AUTOLOAD=0 keeps it from breaking `import torch`"
        )
    if len(environment.plugin_folders) > 1:
        in_use, *others = environment.plugin_folders
        hints.append(
            f"more than one mindspeed_moe is on the path: {in_use} is in use, not {', '.join(others)}; uninstall one"
        )
    if environment.mindspeed.version or environment.mindspeed.problem == "a source checkout without metadata":
        hints.append(
            "MindSpeed is on the path: patches go through its manager, when its adaptor runs (`mindspeed: off` keeps "
            "out of it)"
            + (
                ""
                if asked
                else "; `doctor -- pretrain_gpt.py ARGS...` says what the flags of a launch do to the plugin"
            )
        )
    if "npu" in environment.available:
        hints.append("on an NPU, torch_npu.contrib.transfer_to_npu must be imported before Megatron (MindSpeed does)")
    return hints


def _tried(environment: Environment) -> list[str]:
    """Say how far what is here is what the suite runs on."""
    if environment.torch.version is None:
        return []
    stack = stack_of(environment.torch.version)
    if stack is None:
        return [
            f"torch {environment.torch} is on none of the stacks that the plugin is tried on: "
            + "; ".join(map(str, STACKS.values()))
        ]
    here, megatron = environment, environment.megatron_core.version
    others = []
    if ".".join(here.python.split(".")[:2]) != stack.python:
        others.append(f"Python {here.python}")
    if here.torch_npu.version not in (None, stack.torch_npu):
        others.append(f"torch-npu {here.torch_npu}")
    if megatron not in (None, *stack.megatron_core):
        others.append(f"megatron-core {megatron}")
    told = f"torch {here.torch} is that of stack {stack}, tried with megatron-core {', '.join(stack.megatron_core)}"
    return [told + (f"; never tried there: {', '.join(others)}" if others else "")]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")
@click.option("--config", type=click.Path(path_type=Path), help="The YAML file to look at.")
@click.option(
    "--contract",
    is_flag=True,
    help="Only compare the installed megatron-core with its contract, line by line, whatever the configuration uses.",
)
@click.option(
    "--releases",
    is_flag=True,
    help="Only show what runs with which release on which device, why, what the suite has run, and the ledgers.",
)
@click.argument("launch", nargs=-1, type=click.UNPROCESSED)
def doctor(as_json: bool, config: Path | None, contract: bool, releases: bool, launch: tuple[str, ...]) -> int:
    """Show the environment, the decisions with their reasons, the patches, and what is in the way.

    LAUNCH, behind a --, is the command line of a training launch, or a YAML file with its arguments: it is read, not
    run, and doctor says which of its flags bypass the plugin or exclude it.

    Exit code 0: the plugin can be enabled, and takes effect in that launch; 1: something is missing or in the way,
    doctor cannot tell whether it takes effect, or with --contract it has drifted; 2: the configuration or the launch
    cannot be read.
    """
    if contract + releases + bool(launch) > 1:
        raise click.UsageError("--contract and --releases exclude each other, and a launch")
    if releases:
        matrix = report_releases()
        click.echo(json.dumps(matrix.to_dict(), indent=2) if as_json else render(*matrix.parts()))
        return 0
    if contract:
        report = compare_installed(probe_environment())
        click.echo(json.dumps(report.to_dict(), indent=2) if as_json else render(*report.parts()))
        return 0 if report.kept else NOT_READY
    found = diagnose(str(config) if config else None, probe_environment(), launch)
    if as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        parts: list[Any] = [environment_table(found.environment), f"configuration: {found.config_source}"]
        if found.decisions:
            parts.append(decision_table(found.decisions))
        if any(decision.row for decision in found.decisions):
            parts.append(condition_table(found.decisions[0].device, found.environment.variables))
        if found.plan and found.plan.patches:
            parts.append(patch_table(found.plan.patch_rows()))
        if found.launch:
            parts += found.launch.parts()
        parts += [f"problem: {problem}" for problem in found.problems]
        parts += [f"hint: {hint}" for hint in found.hints]
        click.echo(render(*parts))
    return NOT_READY if found.problems else 0
