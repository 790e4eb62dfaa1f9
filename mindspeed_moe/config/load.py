"""From YAML file, mapping or nothing to a Config; every mistake becomes one ConfigError that says where and what."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args, get_origin

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
        messages = [_explain(detail, origin, lines) for detail in _one_a_mistake(error.errors())]
        raise ConfigError("\n".join(messages)) from None


def _one_a_mistake(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Of a key that is a word or a mapping, keep what concerns the form that was given, without the form's name.

    Of a list, keep what concerns its members rather than that none of them is left.
    """
    kept: list[ErrorDetails] = []
    for detail in details:
        at, given = detail["loc"], detail["input"]
        if len(at) > 1 and _forms((str(at[0]),)):
            if detail["type"] == "model_type" or (detail["type"] == "literal_error" and isinstance(given, dict)):
                continue
            detail = cast(ErrorDetails, {**detail, "loc": (at[0], *at[2:])})
        if detail["type"] == "too_short" and given and kept:
            continue
        kept.append(detail)
    return kept


def _explain(detail: ErrorDetails, origin: str, lines: Lines) -> str:
    context = detail.get("ctx", {})
    at = tuple(context["key"].split(".")) if "key" in context else tuple(str(part) for part in detail["loc"])
    value = context.get("value", detail["input"])
    if detail["type"] == "missing":  # what is wrong is the mapping without it
        at = at[:-1]
    if isinstance(value, tuple):  # as a list that was given is kept
        value = list(value)
    # A member of a list has no line of its own.
    line = next((lines[at[:end]] for end in range(len(at), 0, -1) if at[:end] in lines), None)
    where = f"{origin}:{line}" if line else origin
    key = ".".join(at)
    if detail["type"] in ("extra_forbidden", "invalid_key"):
        known = _keys_beside(at)
        near = difflib.get_close_matches(at[-1], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{where}: unknown key {key!r}{hint} (allowed here: {', '.join(known)})"
    if detail["type"] == "path":
        return f"{where}: {key}: {value!r}: {detail['msg']}; allowed: {_allowed(at)}"
    if detail["type"] == "no_effect":
        return f"{where}: {key}: {value!r}: {detail['msg']}; allowed: {context['allowed']}"
    return f"{where}: {key}: {value!r} is not valid; allowed: {_allowed(at)}"


def _keys_beside(at: tuple[str, ...]) -> list[str]:
    return list(_section_of(at).model_fields)


def _allowed(at: tuple[str, ...]) -> str:
    if at[-1].isdecimal():  # a member of a list
        at = at[:-1]
    field = _section_of(at).model_fields[at[-1]]
    annotation = field.annotation
    if annotation is bool:
        return "true, false"
    if at == ("tuned",):
        return "the path of a file that `mindspeed-moe tune` wrote"
    if annotation is str:
        return "the path of a folder"
    if annotation is int:
        return _whole_numbers(field)
    if get_origin(annotation) is tuple:
        return f"a list of one or more of {_choices(get_args(annotation)[0])}, each once"
    forms = _forms(at)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _mapping(annotation)
    words = ", ".join(_choices(one) for one in get_args(annotation) if get_origin(one) is Literal)
    return f"{words}, or {_mapping(forms)}" if forms else _choices(annotation)


def _choices(annotation: Any) -> str:
    return ", ".join(str(choice) for choice in get_args(annotation))


def _mapping(model: type[BaseModel]) -> str:
    keys = list(model.model_fields)
    return f"a mapping with the key{'s' if len(keys) > 1 else ''} {', '.join(keys)}"


def _whole_numbers(field: FieldInfo) -> str:
    least = next(bound.ge for bound in field.metadata if isinstance(bound, Ge))
    most = next(bound.le for bound in field.metadata if isinstance(bound, Le))
    return f"a whole number from {least} to {most}"


def _forms(at: tuple[str, ...]) -> type[BaseModel] | None:
    """Return the mapping that a key takes instead of a word, None for other keys."""
    field = _section_of(at).model_fields.get(at[-1])
    members = get_args(field.annotation) if field is not None else ()
    return next((one for one in members if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _section_of(at: tuple[str, ...]) -> type[BaseModel]:
    """Return the model that the last part of a key path belongs to."""
    section: type[BaseModel] = Config
    for part in at[:-1]:
        annotation = section.model_fields[part].annotation
        if not isinstance(annotation, type):
            annotation = next(one for one in get_args(annotation) if isinstance(one, type))
        assert isinstance(annotation, type), f"{part} is not a section"
        section = annotation
    return section
