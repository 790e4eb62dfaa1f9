"""A YAML reader that keeps line numbers and takes plain data only.

Differences from PyYAML's safe loader: duplicate keys and aliases are errors, only `true` and `false` are booleans (as
in YAML 1.2, so that `verify: off` stays a word), only what everybody reads as a decimal number is one (`010` and `1:30`
are words), and a tag that would build an object is refused by name.
"""

from __future__ import annotations

import os
import re
from typing import Any

import yaml

from mindspeed_moe.errors import ConfigError
from mindspeed_moe.files import read_text

_MOST_BYTES = 1 << 18  # of a file: what people write has a hundredth of that, and more takes minutes to read
Lines = dict[tuple[str, ...], int]


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader with booleans and numbers of its own."""


_OWN = {  # tag -> what it looks like, and how it begins
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:int": (r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:(?:0|[1-9][0-9]*)\.[0-9]*(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag not in _OWN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, (_form, _first) in _OWN.items():
    _PlainLoader.add_implicit_resolver(_tag, re.compile(f"^(?:{_form})$"), list(_first))

_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "bool", "int", "float", "null")}


def read_yaml(path: str | os.PathLike[str], if_empty: str = "") -> tuple[Any, Lines]:
    """Read one YAML document.

    if_empty: advice for somebody whose file is empty.

    Returns the data and, for every key path in it, the line (from 1) on which the key stands.
    Raises ConfigError when the file cannot be read, is empty, is not valid YAML, repeats a key or carries a tag.
    """
    return parse_yaml(_read_text(path), str(path), if_empty)


def parse_yaml(text: str, path: str, if_empty: str = "") -> tuple[Any, Lines]:
    """Read one YAML document from text that came from `path`; otherwise as `read_yaml`."""
    try:
        loader = _PlainLoader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.reason} (#x{error.character:04x})") from error
    try:
        node = loader.get_single_node()
        if node is None:
            raise ConfigError(f"{path}: the file is empty{if_empty}")
        lines: Lines = {}
        _check(node, (), lines, path, set())
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else path
        raise ConfigError(f"{where}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    except ValueError as error:  # PyYAML leaves e.g. an impossible number to Python
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    finally:
        loader.dispose()


def _read_text(path: str | os.PathLike[str]) -> str:
    try:
        return read_text(path, _MOST_BYTES)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration file: {error.strerror}") from error
    except (UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path}: not a UTF-8 text file: {error}") from error


def _check(node: yaml.Node, at: tuple[str, ...], lines: Lines, path: str, seen: set[int]) -> None:
    where, key = f"{path}:{node.start_mark.line + 1}", ".".join(at) or "the document"
    if node.tag not in _PLAIN_TAGS:
        raise ConfigError(f"{where}: {key}: tag {node.tag!r} is not allowed; only plain YAML data is read")
    if node.tag in _OWN and isinstance(node, yaml.ScalarNode) and not re.fullmatch(_OWN[node.tag][0], node.value):
        raise ConfigError(f"{where}: {key}: {node.value!r} is not what its tag {node.tag!r} says")
    if id(node) in seen:  # an alias: a few lines of them can expand without end
        raise ConfigError(f"{where}: {key}: YAML aliases are not allowed; write the value out")
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check(item, at, lines, path, seen)
    if not isinstance(node, yaml.MappingNode):
        return
    for key_node, value_node in node.value:
        _check(key_node, at, lines, path, seen)
        inner, line = (*at, str(key_node.value)), key_node.start_mark.line + 1
        if key_node.tag != "tag:yaml.org,2002:str":
            shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a collection"
            raise ConfigError(f"{path}:{line}: unknown key {shown!r} in {key}; keys are words")
        if inner in lines:
            raise ConfigError(f"{path}:{line}: key {'.'.join(inner)!r} is given twice, first on line {lines[inner]}")
        lines[inner] = line
        _check(value_node, inner, lines, path, seen)
