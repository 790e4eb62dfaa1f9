"""Whatever is in the file or the mapping: a Config, or a ConfigError, and nothing else."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindspeed_moe.cli.launch import read_launch
from mindspeed_moe.config import Config, load_config
from mindspeed_moe.errors import ConfigError

_INNER = (
    "alltoall",
    "alltoall_seq",
    "counts",
    "exchange",
    "tokens_per_expert",
    "every",
    "folder",
    "writers",
    "interval",
)
_KEYS = sorted({*Config.model_fields, *_INNER, "<<", "?"})
_WORDS = ["auto", "packed", "stock", "off", "true", "cpu", "~", "&a", "*a", "!!set", "!x", "- ", ": ", "\n", "  ", "{"]
_WORDS += ["}", "[", "]", ",", "#", "'", '"', "|", ">", "%", "@", "---", "...", "\\ud800", "0x", "1e9", "1:2", "\t"]
_PIECES = st.sampled_from(_KEYS + _WORDS)

_LIKE_YAML = st.lists(_PIECES, max_size=25).map("".join)
_LINES = st.lists(
    st.tuples(st.sampled_from(["", "  ", "- "]), st.sampled_from(_KEYS), _LIKE_YAML | st.text(max_size=8)), max_size=8
).map(lambda lines: "\n".join(f"{indent}{key}: {value}" for indent, key, value in lines))

_VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(_WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS) | st.text(max_size=4), inner),
    max_leaves=5,
)

# The folder is shared by all examples of a test on purpose: each one overwrites the file.
_SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def loads_or_is_refused(source: Any, origin: str) -> None:
    try:
        config = load_config(source)
    except ConfigError as error:
        message = str(error)
    else:
        assert isinstance(config, Config)
        assert load_config(config.model_dump()) == config
        return
    assert message.startswith(origin)


@settings(_SETTINGS, max_examples=300)
@given(text=_LIKE_YAML | _LINES | st.text(max_size=40))
def test_any_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "moe.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
    loads_or_is_refused(path, str(path))


@settings(_SETTINGS, max_examples=300)
@given(text=_LIKE_YAML | _LINES | st.text(max_size=40))
def test_any_text_as_a_launch(tmp_path: Path, text: str) -> None:
    path = tmp_path / "launch.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
    for words in ([str(path)], ["pretrain_gpt.py", "--yaml-cfg", str(path)], ["main.py", f"a.b={text}"]):
        with contextlib.suppress(ConfigError):
            read_launch(words)


@settings(_SETTINGS, max_examples=200)
@given(content=st.binary(max_size=60))
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "moe.yaml"
    path.write_bytes(content)
    loads_or_is_refused(path, str(path))


@settings(_SETTINGS, max_examples=150)
@given(
    mapping=st.dictionaries(
        st.sampled_from(_KEYS) | st.text(max_size=4) | st.integers() | st.none() | st.tuples(st.booleans()), _VALUES
    )
)
def test_any_mapping(mapping: dict[Any, Any]) -> None:
    loads_or_is_refused(mapping, "configuration")


@pytest.mark.parametrize("key", ["device", "verify", "telemetry", "on_conflict"])
@settings(_SETTINGS, max_examples=50)
@given(value=_VALUES)
def test_any_value_of_a_known_key(key: str, value: Any) -> None:
    loads_or_is_refused({key: value}, "configuration")
