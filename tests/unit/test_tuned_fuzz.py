"""Whatever is in a tuned file: what was meant, or a ConfigError that names the file, and nothing else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers_tuned import DATA
from mindspeed_moe.config.tuned import Tuned, read_tuned
from mindspeed_moe.errors import ConfigError
from unit.test_config_fuzz import _LIKE_YAML, _VALUES

_SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
_KEYS = sorted({*DATA, *(key for value in DATA.values() if isinstance(value, dict) for key in value)})


def reads_or_is_refused(path: Path) -> None:
    try:
        tuned = read_tuned(path)
    except ConfigError as error:
        message = str(error)
    else:
        assert isinstance(tuned, Tuned)
        return
    assert str(path) in message


@settings(_SETTINGS, max_examples=150)
@given(content=st.binary(max_size=80) | _LIKE_YAML.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tuned.yaml"
    path.write_bytes(content)
    reads_or_is_refused(path)


@settings(_SETTINGS, max_examples=200)
@given(key=st.sampled_from(_KEYS) | st.text(max_size=4), value=_VALUES, inside=st.sampled_from(["", *DATA]))
def test_a_file_with_one_value_replaced(tmp_path: Path, key: str, value: Any, inside: str) -> None:
    data = copy.deepcopy(DATA)
    section = data[inside] if isinstance(data.get(inside), dict) else data
    section[key] = value
    path = tmp_path / "tuned.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    reads_or_is_refused(path)


@settings(_SETTINGS, max_examples=150)
@given(start=st.integers(0, 900), length=st.integers(0, 40), put=st.binary(max_size=8))
def test_a_damaged_file(tmp_path: Path, start: int, length: int, put: bytes) -> None:
    whole = yaml.safe_dump(DATA).encode()
    path = tmp_path / "tuned.yaml"
    path.write_bytes(whole[:start] + put + whole[start + length :])
    reads_or_is_refused(path)
