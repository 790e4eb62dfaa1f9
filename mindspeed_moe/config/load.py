"""From YAML file, mapping or nothing to a Config; every mistake becomes one ConfigError that says where and what."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any, get_args

from annotated_types import Ge, Le
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from mindspeed_moe.config.model import Config
from mindspeed_moe.config.yaml_file import Lines, read_yaml
from mindspeed_moe.errors import ConfigError

Source = str | os.PathLike[str] | Mapping[str, Any] | Config | None


def load_config(source: Source = None) -> Config:
    """Build the configuration from a YAML file, a mapping, a Config or (None) the defaults.

    Raises ConfigError naming file, line, key, value and what is allowed.
    """
    if source is None:
        return Config()
    if isinstance(source, Config):
        return source
    if isinstance(source, Mapping):
        plain = {key: dict(value) if isinstance(value, Mapping) else value for key, value in source.items()}
        return _validate(plain, "configuration", {})
    if isinstance(source, (str, os.PathLike)):
        data, lines = read_yaml(source, "; write `enabled: true` for the defaults")
        config = _validate(data, os.fspath(source), lines)
        if config.tuned is None:
            return config
        # Beside the file that names it, wherever the launch was started.
        return config.model_copy(update={"tuned": os.path.join(os.path.dirname(os.fspath(source)), config.tuned)})
    raise ConfigError(f"configuration: expected a YAML file's path, a mapping or None, got {type(source).__name__}")


def _validate(data: Any, origin: str, lines: Lines) -> Config:
    if not isinstance(data, dict):
        kind = "a list" if isinstance(data, list) else f"{type(data).__name__} {data!r}"
        raise ConfigError(f"{origin}: expected a mapping of keys at the top, found {kind}")
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        messages = [_explain(detail, origin, lines) for detail in error.errors()]
        raise ConfigError("\n".join(messages)) from None


def _explain(detail: ErrorDetails, origin: str, lines: Lines) -> str:
    context = detail.get("ctx", {})
    at = tuple(context["key"].split(".")) if "key" in context else tuple(str(part) for part in detail["loc"])
    value = context.get("value", detail["input"])
    line = lines.get(at)
    where = f"{origin}:{line}" if line else origin
    key = ".".join(at)
    if detail["type"] in ("extra_forbidden", "invalid_key"):
        known = _keys_beside(at)
        near = difflib.get_close_matches(at[-1], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{where}: unknown key {key!r}{hint} (allowed here: {', '.join(known)})"
    if detail["type"] in ("not_available", "no_effect"):
        return f"{where}: {key}: {value!r}: {detail['msg']}; allowed: {context['allowed']}"
    return f"{where}: {key}: {value!r} is not valid; allowed: {_allowed(at)}"


def _keys_beside(at: tuple[str, ...]) -> list[str]:
    return list(_section_of(at).model_fields)


def _allowed(at: tuple[str, ...]) -> str:
    annotation = _section_of(at).model_fields[at[-1]].annotation
    if annotation is bool:
        return "true, false"
    if at == ("tuned",):
        return "the path of a file that `mindspeed-moe tune` wrote"
    if annotation is int:
        return _whole_numbers(_section_of(at).model_fields[at[-1]])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a mapping with the keys {', '.join(annotation.model_fields)}"
    return ", ".join(str(choice) for choice in get_args(annotation))


def _whole_numbers(field: FieldInfo) -> str:
    least = next(bound.ge for bound in field.metadata if isinstance(bound, Ge))
    most = next(bound.le for bound in field.metadata if isinstance(bound, Le))
    return f"a whole number from {least} to {most}"


def _section_of(at: tuple[str, ...]) -> type[BaseModel]:
    """Return the model that the last part of a key path belongs to."""
    section: type[BaseModel] = Config
    for part in at[:-1]:
        annotation = section.model_fields[part].annotation
        assert isinstance(annotation, type), f"{part} is not a section"
        section = annotation
    return section
