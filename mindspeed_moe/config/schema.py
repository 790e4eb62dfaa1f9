"""The JSON schema for editors, generated from the model into docs/config.schema.json."""

from __future__ import annotations

import json
from typing import Any

from mindspeed_moe.config.model import NOT_AVAILABLE, Config


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of the configuration file; values that this version refuses are left out."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "mindspeed_moe configuration"
    for key, value in NOT_AVAILABLE:
        section, _, name = key.rpartition(".")
        owner = schema["$defs"][section.capitalize()] if section else schema
        choices = owner["properties"][name]["enum"]
        choices.remove(value)
    return schema


def schema_text() -> str:
    """Return the file's text, stable from run to run."""
    return json.dumps(config_schema(), indent=2, sort_keys=True) + "\n"
