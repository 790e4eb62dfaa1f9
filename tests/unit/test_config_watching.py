"""The keys of `verify` and `telemetry`: their forms, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mindspeed_moe.config import load_config
from mindspeed_moe.config.model import Every
from mindspeed_moe.errors import ConfigError

STOCK = {"alltoall": "stock", "alltoall_seq": "stock"}


def refused(source: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source)
    return str(caught.value)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "moe.yaml"
        path.write_text(text)
        return path

    return write


# ------------------------------------------------------------------------------------------------ verify


@pytest.mark.parametrize("word", ["off", "first", "always"])
def test_verify_is_a_word(write: Any, word: str) -> None:
    assert load_config(write(f"verify: {word}\n")).verify == word
    assert load_config(yaml.safe_load(f"verify: {word}")).verify == word


@pytest.mark.parametrize("text", ["verify: {every: 20}\n", "verify:\n  every: 20\n"])
def test_verify_is_a_mapping(write: Any, text: str) -> None:
    config = load_config(write(text))
    assert config.verify == Every(every=20)
    assert load_config(yaml.safe_load(text)) == config == load_config(config.model_dump())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("verify: {evry: 20}", "unknown key 'verify.evry'; did you mean 'every'? (allowed here: every)"),
        ("verify: {}", "verify: {} is not valid; allowed: off, first, always, or a mapping with the key every"),
        ("verify: {every: 20, first: 2}", "unknown key 'verify.first' (allowed here: every)"),
        ("verify: {every: {every: 2}}", "verify.every: {'every': 2} is not valid; allowed: a whole number from 1 to"),
    ],
)
def test_a_wrong_mapping_is_told_by_what_is_wrong_in_it(write: Any, text: str, message: str) -> None:
    path = write(f"\n{text}\n")
    lines = [line for line in refused(path).splitlines() if message in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"{path}:2: ")


@pytest.mark.parametrize("dispatchers", [STOCK, {**STOCK, "alltoall": "reference"}], ids=["stock", "reference"])
@pytest.mark.parametrize("verify", ["first", "always", {"every": 2}])
def test_verify_without_anything_to_compare_is_refused(dispatchers: Any, verify: Any) -> None:
    message = refused({"dispatchers": dispatchers, "verify": verify})
    assert message.startswith("configuration: verify: ")
    assert "has no effect when no dispatcher is `auto` or `packed`" in message
    assert message.endswith("allowed: off")
    assert load_config({"dispatchers": dispatchers, "verify": "off"}).verify == "off"
    assert load_config({"dispatchers": {**dispatchers, "alltoall_seq": "auto"}, "verify": verify}).verify != "off"


# ------------------------------------------------------------------------------------------------ telemetry


@pytest.mark.parametrize("writers", [["jsonl"], ["tensorboard"], ["tensorboard", "jsonl"]])
def test_writers_are_a_list(write: Any, writers: list[str]) -> None:
    path = write(f"telemetry: {{writers: [{', '.join(writers)}]}}\n")
    config = load_config(path)
    assert config.telemetry.writers == tuple(writers)
    assert load_config(yaml.safe_load(path.read_text())) == config


def test_every_wrong_writer_is_told_once(write: Any) -> None:
    path = write("telemetry:\n  enabled: true\n  writers: [jsonl, csv, 3]\n")
    allowed = "allowed: a list of one or more of jsonl, tensorboard, each once"
    assert refused(path).splitlines() == [
        f"{path}:3: telemetry.writers.1: 'csv' is not valid; {allowed}",
        f"{path}:3: telemetry.writers.2: 3 is not valid; {allowed}",
    ]


def test_an_unknown_key_of_telemetry_names_the_nearest(write: Any) -> None:
    path = write("telemetry:\n  enabeld: true\n")
    known = "enabled, folder, interval, writers, max_megabytes"
    assert refused(path) == (
        f"{path}:2: unknown key 'telemetry.enabeld'; did you mean 'enabled'? (allowed here: {known})"
    )


@pytest.mark.parametrize("value", ["true", "jsonl", "[jsonl]", ""])
def test_telemetry_must_be_a_mapping(write: Any, value: str) -> None:
    path = write(f"enabled: true\ntelemetry: {value}\n")
    assert refused(path).startswith(f"{path}:2: telemetry: ")
    assert "allowed: a mapping with the keys enabled, folder, interval, writers, max_megabytes" in refused(path)
