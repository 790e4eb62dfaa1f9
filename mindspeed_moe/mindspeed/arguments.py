"""Launch arguments in every form in which MindSpeed hands them over, and the plugin's own two among them.

At import they are a Namespace of untyped strings (what its parser does not know yet), later Megatron's Namespace, a
TransformerConfig, or keys of the dictionary that verl gives to `repatch`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from mindspeed_moe.environment import CONFIG_FLAG
from mindspeed_moe.errors import ConfigError

FEATURE = "moe-npu-preprocess"
SWITCH = "moe_npu_preprocess"
SWITCH_FLAG = "--moe-npu-preprocess"
NO_SWITCH = "no_moe_npu_preprocess"
CONFIG = "mindspeed_moe_config"

_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --[no-]moe-npu-preprocess and --mindspeed-moe-config to a group of their own; nothing where they are."""
    if SWITCH_FLAG in parser._option_string_actions:  # MindSpeed asks twice: for its parser and for Megatron's
        return
    group = parser.add_argument_group(title=FEATURE.replace("-", "_"))
    group.add_argument(
        SWITCH_FLAG,
        action=argparse.BooleanOptionalAction,
        default=None,
        help="Use the preprocess of mindspeed_moe in MoE layers; wins over `enabled` of its YAML file.",
    )
    group.add_argument(CONFIG_FLAG, default=None, metavar="FILE", help="The YAML file of mindspeed_moe.")


def as_mapping(args: Any) -> Mapping[str, Any]:
    """Return arguments as a mapping: of a Namespace, of an object with attributes such as a config, or themselves."""
    return args if isinstance(args, Mapping) else vars(args)


def is_set(value: Any) -> bool:
    """Return whether an argument's value switches something on; words are read as YAML and command lines write them."""
    if isinstance(value, str):
        return _WORDS.get(value.strip().lower(), bool(value.strip()))
    return bool(value)


def same(value: Any, wanted: Any) -> bool:
    """Return whether a value, typed or still a string, is `wanted`; True is wanted of anything that is set."""
    if wanted is True:
        return is_set(value)
    if wanted in (False, None):
        return not is_set(value)
    return str(value) == str(wanted)


def read_switch(args: Any) -> bool | None:
    """Return whether the launch switches the plugin on or off; None when it does not say.

    Raises ConfigError for a value that is neither, or for both flags.
    """
    given = as_mapping(args)
    on, off = given.get(SWITCH), given.get(NO_SWITCH)  # the second only where the parser does not know the flags yet
    if off is not None and on is not None:
        raise ConfigError(f"{SWITCH_FLAG} and --no-{FEATURE}: given together; allowed: one of them")
    if off is not None:
        return not _switch_value(off)
    return None if on is None else _switch_value(on)


def read_config_file(args: Any) -> str | None:
    """Return the file that the launch names for the plugin, None when it names none."""
    value = as_mapping(args).get(CONFIG)
    if value is None:
        return None
    if isinstance(value, str) and value:
        return value
    raise ConfigError(f"{CONFIG}: {value!r} is not valid; allowed: the path of one YAML file")


def _switch_value(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    known = _WORDS.get(str(value).strip().lower())
    if known is None:
        raise ConfigError(f"{SWITCH}: {value!r} is not valid; allowed: true, false")
    return known


def parse_command_line(words: Iterable[str]) -> dict[str, Any]:
    """Return a launch's arguments as untyped values, without knowing any of them: what doctor has to go by.

    `--x-y v` is x_y: "v"; several values are a list; a flag without any is True; a later one replaces an earlier one.
    Words before the first flag (the script) are left out.
    """
    found: dict[str, list[str]] = {}
    key = None
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            key = name.replace("-", "_")
            found[key] = [value] if equals else []
        elif key is not None:
            found[key].append(word)
    plain: dict[str, Any] = {}
    for key, values in found.items():
        plain[key] = True if not values else values[0] if len(values) == 1 else values
    return plain


def flatten(data: Any) -> dict[str, Any]:
    """Return the leaves of nested mappings by their last key, dashes as underscores: a launch written as YAML."""
    found: dict[str, Any] = {}
    for key, value in (data or {}).items():
        if isinstance(value, Mapping):
            found.update(flatten(value))
        else:
            found[str(key).lstrip("+").removeprefix("--").replace("-", "_").rpartition(".")[2]] = value
    return found
