"""`mindspeed-moe doctor -- pretrain_gpt.py ARGS...`: what a launch's own flags do to the plugin."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from mindspeed_moe.config import Config
from mindspeed_moe.config.model import Dispatchers, Preprocess
from mindspeed_moe.config.yaml_file import parse_yaml, read_yaml
from mindspeed_moe.environment import Environment, configured_file
from mindspeed_moe.errors import ConfigError
from mindspeed_moe.mindspeed.arguments import (
    CONFIG,
    FEATURE,
    NO_SWITCH,
    SWITCH,
    SWITCH_FLAG,
    flatten,
    is_set,
    parse_command_line,
    read_switch,
)
from mindspeed_moe.mindspeed.conflict import INEFFECTIVE, Conflict
from mindspeed_moe.mindspeed.groups import GroupCost, group_costs
from mindspeed_moe.mindspeed.verdicts import asked_about, unknown_flags, verdicts
from mindspeed_moe.tables import plain_table

_YAML = (".yaml", ".yml")
DISPATCHER_TYPES = ("allgather", "alltoall", "alltoall_seq", "flex")  # of megatron-core, oldest to newest
_OVERRIDE = re.compile(r"\+{0,2}[A-Za-z_][\w.@/-]*=")
# What decides whether the plugin takes effect, and its names.
_DECIDING = {
    "the number of experts": ("num_experts", "num_moe_experts"),
    "the dispatcher's type": ("moe_token_dispatcher_type",),
}
# Flags that take these from somewhere else.
_ELSEWHERE = {
    "config_name": "hydra's files may say it",
    "config_path": "hydra's files may say it",
    "config_dir": "hydra's files may say it",
    "mm_model": "MindSpeed-MM takes it from the model's file",
    "use_checkpoint_args": "Megatron takes it from the checkpoint",
}
_SECTIONS = (*Dispatchers.model_fields, *Preprocess.model_fields)


@dataclass
class Launch:
    """What was read of a launch, and what follows. switch: on or off, None when it does not say.

    untold: why something that decides may stand elsewhere. Problems are what keeps the plugin from having an effect.
    """

    arguments: Mapping[str, Any]
    switch: bool | None
    verdicts: tuple[Conflict, ...]
    groups: tuple[GroupCost, ...]
    untold: str | None = None
    problems: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "verdicts": [{"feature": one.feature, "effect": one.effect, "reason": one.reason} for one in self.verdicts],
            "groups": [asdict(one) for one in self.groups],
        }

    def parts(self) -> list[Table]:
        """Return the tables."""
        found = plain_table("Launch", "feature", "effect on mindspeed_moe", "why")
        for one in self.verdicts:
            found.add_row(one.feature, one.effect, one.reason)
        if self.untold is not None:
            found.add_row("-", "cannot tell", self.untold)
        elif not self.verdicts:
            found.add_row("-", "effective", "no flag of this launch touches it")
        costs = plain_table(
            "Groups that counts can travel on", "exchange_group", "buffer", "a rank's memory", "because"
        )
        for cost in self.groups:
            costs.add_row(cost.exchange_group, f"{cost.buffer_mb} MB", f"{cost.total_mb} MB", cost.source)
        return [found, costs] if self.groups else [found]


def read_launch(words: Sequence[str]) -> dict[str, Any]:
    """Return a launch's arguments: flags, Megatron's --yaml-cfg, YAML files and KEY=VALUE words, by their last names.

    A flag wins over a file, but for --yaml-cfg, which Megatron lets win. Raises ConfigError for a file that cannot be
    read, a shell script, words that a shell should have parted, or nothing at all.
    """
    for word in words:
        if word.startswith("--") and any(letter.isspace() for letter in word.partition("=")[0]):
            raise ConfigError(f"{word!r}: is one word with spaces in it: leave out the quotes around several flags")
        if word.endswith(".sh"):
            raise ConfigError(
                f"{word}: a shell script is not run to read it; give the command that it starts, with its variables "
                "filled in (put `echo` before torchrun in it, run it, and paste what it prints)"
            )
    plain, overrides = _parted(words)
    flags = parse_command_line(plain)
    first = next((number for number, word in enumerate(plain) if word.startswith("--")), len(plain))
    files = [word for word in plain[:first] if word.endswith(_YAML)]
    if isinstance(flags.get("yaml_cfg"), str):
        files.append(flags["yaml_cfg"])
    found: dict[str, Any] = {}
    for file in files:
        found.update(flatten(_load(file)))
    for word in overrides:
        key, _, value = word.partition("=")
        found.update(flatten({key: _value(value)}))
    if not found and not flags:
        raise ConfigError(f"{' '.join(words)}: names no flag, no YAML file and no KEY=VALUE: there is nothing to judge")
    if files and not flags and set(found) <= set(Config.model_fields) | set(_SECTIONS):
        raise ConfigError(f"{files[0]}: is a configuration of mindspeed_moe, not a launch: --config names it")
    if not isinstance(flags.get(SWITCH, True), bool):
        raise ConfigError(f"{SWITCH_FLAG}: takes no value, found {flags[SWITCH]!r}; --no-{FEATURE} switches off")
    if "yaml_cfg" in flags:  # Megatron then ignores its flags; MindSpeed's features go by them all the same
        return {**flags, **found}
    return {**found, **flags}


def _parted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a launch's words without those of the form KEY=VALUE, and these: what hydra reads.

    They stand before the first flag, behind a flag's own value, or behind `--flag=value`, which takes no more.
    """
    plain: list[str] = []
    overrides: list[str] = []
    taken = True  # whether what stands before has all it needs
    for word in words:
        if taken and _OVERRIDE.match(word):
            overrides.append(word)
            continue
        plain.append(word)
        taken = not word.startswith("--") or "=" in word
    return plain, overrides


def _untold(words: Sequence[str], args: Mapping[str, Any]) -> str | None:
    """Return why something that decides may stand where nobody reads it here; None for a whole command line."""
    for before, word in zip(("", *words), words, strict=False):
        if "fsdp" in word.lower() and (before == "-m" or word.endswith(".py")):
            return f"{word} trains with FSDP2, whose experts are not Megatron's MoE layers"
        if word.startswith("$"):
            return f"{word!r} stands for words that only a shell knows: fill it in"
    for name in (*sorted(asked_about()), SWITCH):
        value = args.get(name)
        if isinstance(value, str) and ("$" in value or "{{" in value):
            return f"{name}: {value!r} is filled in where the launch runs"
    missing = " and ".join(
        what for what, there in _DECIDING.items() if not any(args.get(name) is not None for name in there)
    )
    if not missing:
        return None
    for name, why in _ELSEWHERE.items():
        if is_set(args.get(name)):
            return f"{missing}: not among these words; {why} (--{name.replace('_', '-')})"
    if words[0] == "megatron":
        return f"{missing}: not among these words; ms-swift takes sizes from the model, and has its own defaults"
    plain, overrides = _parted(words)
    flags = [number for number, word in enumerate(plain) if word.startswith("--")]
    files = any(word.endswith(_YAML) for word in plain[: flags[0]]) if flags else True
    if files or any("." in word.partition("=")[0] for word in overrides):
        return f"{missing}: not among these words, and other files may say it"
    return None


def judge_launch(words: Sequence[str], config: Config, environment: Environment) -> Launch:
    """Read a launch and say what its flags do to the plugin, under this configuration and this megatron-core."""
    args, version = read_launch(words), environment.megatron_core.version
    untold = _untold(words, args)
    # What is not whole says nothing by what it leaves out: it is judged as a model with experts.
    experts = {} if untold is None or _has_experts(args) else {"num_experts": True}
    hit = verdicts({**args, **experts}, version, whole=untold is None and any(word.startswith("--") for word in words))
    on_npu = "npu" in environment.available or any(name.startswith("hccl") for name in args)
    costs = group_costs(args, environment.variables) if on_npu else ()
    launch = Launch(args, read_switch(args), hit, costs, untold)
    launch.problems += [str(verdict) for verdict in hit if verdict.effect in INEFFECTIVE]
    launch.problems += [
        f"{name}: not known what it does with megatron-core {version}: no MindSpeed for that release was read"
        for name in unknown_flags(args, version)
    ]
    _judge_switch(launch, config, environment)
    launch.problems += _misspelt(args)
    if untold is not None and not launch.problems:
        launch.problems.append(f"cannot tell whether mindspeed_moe takes effect: {untold}")
    launch.hints.append(
        f"judged for device {environment.available[0]} and megatron-core {environment.megatron_core} of this machine: "
        "ask where the launch runs, if that is another"
    )
    return launch


def _has_experts(args: Mapping[str, Any]) -> bool:
    return any(args.get(name) is not None for name in _DECIDING["the number of experts"])


def _judge_switch(launch: Launch, config: Config, environment: Environment) -> None:
    switch, level = launch.switch, launch.arguments.get("optimization_level")
    if switch is False:
        launch.problems.append(f"{SWITCH}: False: the launch switches mindspeed_moe off")
    elif switch is None and not config.enabled:
        launch.problems.append(f"enabled: false, and no {SWITCH_FLAG}: mindspeed_moe is off")
    if switch is not None and switch is not config.enabled and "enabled" in config.model_fields_set:
        launch.hints.append(f"{SWITCH}: {switch} of the launch wins over `enabled: {str(config.enabled).lower()}`")
    if level is not None and str(level) in ("0", "1"):
        launch.problems.append(f"--optimization-level {level}: MindSpeed leaves accelerations out, this plugin too")
    if switch is not None and config.mindspeed == "off":
        launch.problems.append(f"{SWITCH}: `mindspeed: off` keeps out of MindSpeed, so nobody reads {SWITCH_FLAG}")
    elif switch is not None and str(environment.mindspeed) == "not installed":
        launch.problems.append(
            f"{SWITCH}: MindSpeed is not on the path here, and without it nobody tells Megatron's parser of "
            f"{SWITCH_FLAG}; ask in the environment that trains"
        )


def _misspelt(args: Mapping[str, Any]) -> list[str]:
    """Name a dispatcher that is none, and arguments that are almost ours: Megatron, or nobody, would say so."""
    found = []
    kind = args.get("moe_token_dispatcher_type", DISPATCHER_TYPES[0])
    if kind not in DISPATCHER_TYPES:
        found.append(f"moe_token_dispatcher_type: {kind!r} is not valid; allowed: {', '.join(DISPATCHER_TYPES)}")
    for name in args:
        near = difflib.get_close_matches(name, (SWITCH, NO_SWITCH, CONFIG), n=1, cutoff=0.9)
        if near and name not in (SWITCH, NO_SWITCH, CONFIG):
            found.append(f"{name}: is no argument of mindspeed_moe; did you mean {near[0]}?")
    return found


def launch_config_file(words: Sequence[str]) -> str | None:
    """Return the plugin's file that the launch names, None when it names none."""
    return configured_file(words, {})


def _value(text: str) -> Any:
    """Return a word's value; what is no YAML is a word to hydra too."""
    try:
        return parse_yaml(text, "")[0] if text.strip() else None
    except ConfigError:
        return text


def _load(file: str) -> Mapping[str, Any]:
    try:
        data, _ = read_yaml(file)
    except ConfigError as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    if not isinstance(data, Mapping):
        raise ConfigError(f"{file}: expected a mapping of keys at the top")
    return data
