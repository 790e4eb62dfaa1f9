"""The JSON schema for editors, generated from the model into docs/config.schema.json."""

from __future__ import annotations

import json
from typing import Any

from mindspeed_moe.config.model import Config


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of the configuration file."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "mindspeed_moe configuration"
    return schema


def schema_text() -> str:
    """Return the file's text, stable from run to run."""
    return json.dumps(config_schema(), indent=2, sort_keys=True) + "\n"
