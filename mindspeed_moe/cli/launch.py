"""`mindspeed-moe doctor -- pretrain_gpt.py ARGS...`: what a launch's own flags do to the plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from mindspeed_moe.config import Config
from mindspeed_moe.environment import CONFIG_FLAG, Environment, configured_file
from mindspeed_moe.errors import ConfigError
from mindspeed_moe.mindspeed.arguments import (
    SWITCH,
    SWITCH_FLAG,
    flatten,
    parse_command_line,
    read_switch,
)
from mindspeed_moe.mindspeed.conflict import INEFFECTIVE, Verdict
from mindspeed_moe.mindspeed.groups import GroupCost, group_costs
from mindspeed_moe.mindspeed.verdicts import verdicts
from mindspeed_moe.tables import plain_table

_YAML = (".yaml", ".yml")


@dataclass
class Launch:
    """What was read of a launch, and what follows. Problems are what keeps the plugin from having an effect."""

    arguments: Mapping[str, Any]
    verdicts: tuple[Verdict, ...]
    groups: tuple[GroupCost, ...]
    problems: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "verdicts": [
                {"feature": one.conflict.feature, "effect": one.effect, "reason": one.conflict.reason}
                for one in self.verdicts
            ],
            "groups": [asdict(one) for one in self.groups],
        }

    def parts(self) -> list[Table]:
        """Return the tables."""
        found = plain_table("Launch", "feature", "effect on mindspeed_moe", "why")
        for one in self.verdicts:
            found.add_row(one.conflict.feature, one.effect, one.conflict.reason)
        if not self.verdicts:
            found.add_row("-", "effective", "no flag of this launch touches it")
        costs = plain_table(
            "Groups that counts can travel on", "exchange_group", "buffer", "a rank's memory", "because"
        )
        for cost in self.groups:
            costs.add_row(cost.exchange_group, f"{cost.buffer_mb} MB", f"{cost.total_mb} MB", cost.source)
        return [found, costs] if self.groups else [found]


def read_launch(words: Sequence[str]) -> dict[str, Any]:
    """Return a launch's arguments: flags, Megatron's --yaml-cfg, YAML files and KEY=VALUE words, by their last names.

    A flag wins over a file. Raises ConfigError for a file that cannot be read, or a shell script.
    """
    flags = parse_command_line(words)
    found: dict[str, Any] = {}
    loose = [word for word in words if not word.startswith("-")]
    files = [word for word in loose if word.endswith(_YAML) and not _belongs_to(words, word, CONFIG_FLAG)]
    for word in words:
        if word.startswith("--yaml-cfg="):
            files.append(word.partition("=")[2])
    for file in files:
        found.update(flatten(_load(file)))
    for word in loose:
        if word.endswith(".sh"):
            raise ConfigError(f"{word}: a shell script is not run to read it; give the command that it starts")
        key, equals, value = word.partition("=")
        if equals and key:
            found.update(flatten({key: yaml.safe_load(value)}))
    if not found and not flags:
        raise ConfigError(f"{' '.join(words)}: names no flag, no YAML file and no KEY=VALUE: there is nothing to judge")
    return {**found, **flags}


def judge_launch(words: Sequence[str], config: Config, environment: Environment) -> Launch:
    """Read a launch and say what its flags do to the plugin, under this configuration and this megatron-core."""
    args = read_launch(words)
    hit = verdicts(args, environment.megatron_core.version)
    on_npu = "npu" in environment.available or any(name.startswith("hccl") for name in args)
    groups = group_costs(args, environment.variables) if on_npu else ()
    launch = Launch(args, hit, groups)
    launch.problems += [str(verdict) for verdict in hit if verdict.effect in INEFFECTIVE]
    switch = read_switch(args)
    if switch is False:
        launch.problems.append(f"{SWITCH}: False: the launch switches mindspeed_moe off")
    elif switch is None and not config.enabled:
        launch.problems.append(f"enabled: false, and no {SWITCH_FLAG}: mindspeed_moe is off")
    if switch is not None and switch is not config.enabled and "enabled" in config.model_fields_set:
        launch.hints.append(f"{SWITCH}: {switch} of the launch wins over `enabled: {str(config.enabled).lower()}`")
    level = args.get("optimization_level")
    if level is not None and str(level) in ("0", "1"):
        launch.problems.append(f"--optimization-level {level}: MindSpeed leaves accelerations out, this plugin too")
    if switch is not None and str(environment.mindspeed) == "not installed":
        launch.problems.append(
            f"{SWITCH_FLAG} is an argument of MindSpeed's, which is not installed: Megatron refuses it"
        )
    return launch


def launch_config_file(words: Sequence[str]) -> str | None:
    """Return the plugin's file that the launch names, None when it names none."""
    return configured_file(words, {})


def _belongs_to(words: Sequence[str], word: str, flag: str) -> bool:
    position = list(words).index(word)
    return position > 0 and words[position - 1] == flag


def _load(file: str) -> Mapping[str, Any]:
    try:
        data = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    if not isinstance(data, Mapping):
        raise ConfigError(f"{file}: expected a mapping of keys at the top")
    return data
