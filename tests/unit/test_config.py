"""The configuration: what is accepted, and every kind of bad input with the message that it must give."""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml

from mindspeed_moe.config import Config, load_config
from mindspeed_moe.errors import ConfigError

VERIFY = "off, first, always, or a mapping with the key every"

DESIGN = """\
enabled: true
device: auto
dispatchers:
  alltoall: auto
  alltoall_seq: auto
preprocess:
  counts: auto
  exchange: auto
  exchange_group: auto
  stream: auto
  tokens_per_expert: auto
  max_slots: 8
tuned: null
verify: off
dumps: mindspeed_moe_dumps
telemetry:
  enabled: false
  folder: mindspeed_moe_telemetry
  interval: 1
  writers: [jsonl]
  max_megabytes: 256
mindspeed: auto
on_conflict: error
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "moe.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def refused(source: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ accepted


def test_nothing_is_the_defaults() -> None:
    config = load_config()
    assert config.enabled is True
    assert config.device == "auto"
    assert (config.dispatchers.alltoall, config.dispatchers.alltoall_seq) == ("auto", "auto")
    assert set(config.preprocess.model_dump(exclude={"max_slots"}).values()) == {"auto"}
    assert config.preprocess.max_slots == 8
    assert (config.verify, config.mindspeed, config.on_conflict) == ("off", "auto", "error")


def test_the_yaml_of_the_design_is_the_defaults(write: Any) -> None:
    assert load_config(write(DESIGN)) == load_config(None) == load_config({}) == Config()


def test_every_value_reaches_its_key(write: Any) -> None:
    path = write(
        "enabled: false\ndevice: cpu\ndispatchers: {alltoall: packed, alltoall_seq: stock}\n"
        "preprocess: {counts: sum, exchange: all_gather, exchange_group: tp_ep, stream: side,\n"
        "  tokens_per_expert: host, max_slots: 3}\n"
        "tuned: /moe/tuned.yaml\nverify: {every: 50}\ndumps: /moe/dumps\n"
        "telemetry: {enabled: true, folder: /moe/load, interval: 10, writers: [jsonl, tensorboard], max_megabytes: 5}\n"
        "mindspeed: off\non_conflict: replace\n"
    )
    for config in (load_config(path), load_config(str(path)), load_config(yaml.safe_load(path.read_text()))):
        assert config.model_dump() == {
            "enabled": False,
            "device": "cpu",
            "dispatchers": {"alltoall": "packed", "alltoall_seq": "stock"},
            "preprocess": {
                "counts": "sum",
                "exchange": "all_gather",
                "exchange_group": "tp_ep",
                "stream": "side",
                "tokens_per_expert": "host",
                "max_slots": 3,
            },
            "tuned": "/moe/tuned.yaml",
            "verify": {"every": 50},
            "dumps": "/moe/dumps",
            "telemetry": {
                "enabled": True,
                "folder": "/moe/load",
                "interval": 10,
                "writers": ("jsonl", "tensorboard"),
                "max_megabytes": 5,
            },
            "mindspeed": "off",
            "on_conflict": "replace",
        }


@pytest.mark.parametrize("text", ["verify: off", "verify: 'off'", 'verify: "off"', "verify: off  # not now"])
def test_verify_off_is_the_word(write: Any, text: str) -> None:
    assert load_config(write(text)).verify == "off"


def test_verify_off_survives_a_yaml_1_1_reader() -> None:
    assert yaml.safe_load("verify: off") == {"verify": False}
    assert load_config(yaml.safe_load("verify: off")).verify == "off"


def test_a_config_passes_through() -> None:
    config = Config(device="cpu")
    assert load_config(config) is config


def test_any_mapping_will_do() -> None:
    assert load_config(MappingProxyType({"device": "cpu"})).device == "cpu"


def test_a_mapping_of_mappings_will_do() -> None:
    nested = MappingProxyType({"dispatchers": MappingProxyType({"alltoall": "packed"})})
    assert load_config(nested).dispatchers.alltoall == "packed"


def test_the_configuration_is_frozen() -> None:
    config = load_config()
    with pytest.raises(ValueError, match="frozen"):
        config.device = "npu"  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        config.preprocess.counts = "sum"  # type: ignore[misc]


def test_a_byte_order_mark_is_no_reason_to_refuse(write: Any) -> None:
    assert load_config(write(b"\xef\xbb\xbfdevice: cpu\n")).device == "cpu"


# ------------------------------------------------------------------------------------------------ keys


def test_an_unknown_key_names_file_line_and_the_nearest_key(write: Any) -> None:
    path = write("enabled: true\n\ndevcie: cpu\n")
    message = refused(path)
    assert message.startswith(f"{path}:3: unknown key 'devcie'; did you mean 'device'?")
    keys = "enabled, device, dispatchers, preprocess, tuned, verify, dumps, telemetry, mindspeed, on_conflict"
    assert f"allowed here: {keys}" in message


def test_an_unknown_key_in_a_section_names_that_section(write: Any) -> None:
    path = write("preprocess:\n  counts: sum\n  exchnage: auto\n")
    message = refused(path)
    assert message.startswith(f"{path}:3: unknown key 'preprocess.exchnage'; did you mean 'exchange'?")
    assert "allowed here: counts, exchange, exchange_group, stream, tokens_per_expert, max_slots" in message


def test_a_key_like_no_other_suggests_nothing(write: Any) -> None:
    message = refused(write("zzz: 1\n"))
    assert "unknown key 'zzz'" in message
    assert "did you mean" not in message


def test_a_mapping_has_no_file_and_says_so() -> None:
    assert refused({"devcie": "cpu"}).startswith("configuration: unknown key 'devcie'; did you mean 'device'?")


def test_every_mistake_is_told_at_once(write: Any) -> None:
    path = write("devcie: cpu\nenabled: maybe\npreprocess:\n  counts: 3\n")
    lines = refused(path).splitlines()
    assert [line.split(":")[1] for line in sorted(lines)] == ["1", "2", "4"]


@pytest.mark.parametrize("key", ["1", "true", "null", "1.5", "~", "''"])
def test_a_key_that_is_no_word_is_unknown(write: Any, key: str) -> None:
    path = write(f"device: cpu\n{key}: x\n")
    message = refused(path)
    assert message.startswith(f"{path}:2: unknown key")


@pytest.mark.parametrize("key", [1, None, True, ("device",)])
def test_a_key_of_a_mapping_that_is_no_word_is_unknown(key: Any) -> None:
    assert "unknown key" in refused({key: "x"})
    assert "unknown key" in refused({"preprocess": {key: "x"}})


def test_a_key_given_twice_names_both_lines(write: Any) -> None:
    path = write("device: cpu\nverify: off\ndevice: npu\n")
    assert refused(path) == f"{path}:3: key 'device' is given twice, first on line 1"


def test_a_key_given_twice_in_a_section_names_both_lines(write: Any) -> None:
    path = write("dispatchers:\n  alltoall: stock\n  alltoall: packed\n")
    assert refused(path) == f"{path}:3: key 'dispatchers.alltoall' is given twice, first on line 2"


def test_a_section_given_twice_names_both_lines(write: Any) -> None:
    path = write("preprocess: {counts: sum}\npreprocess: {exchange: all_gather}\n")
    assert refused(path) == f"{path}:2: key 'preprocess' is given twice, first on line 1"


# ------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize(
    ("text", "value", "allowed"),
    [
        ("enabled: yes", "'yes'", "true, false"),  # a word in YAML 1.2
        ("enabled: 1", "1", "true, false"),
        ("enabled: 'true'", "'true'", "true, false"),
        ("device: gpu", "'gpu'", "auto, npu, cuda, cpu"),
        ("device: 0", "0", "auto, npu, cuda, cpu"),
        ("device: [cpu]", "['cpu']", "auto, npu, cuda, cpu"),
        ("device:", "None", "auto, npu, cuda, cpu"),
        ("dispatchers.alltoall: fast", "'fast'", "auto, packed, reference, stock"),
        ("dispatchers.alltoall: true", "True", "auto, packed, reference, stock"),
        ("dispatchers.alltoall: {a: b}", "{'a': 'b'}", "auto, packed, reference, stock"),
        ("dispatchers.alltoall_seq: PACKED", "'PACKED'", "auto, packed, reference, stock"),
        ("preprocess.counts: bincount", "'bincount'", "auto, sum, byte_lanes, matmul"),
        ("preprocess.exchange: all_to_al", "'all_to_al'", "auto, all_gather, all_to_all"),
        ("preprocess.max_slots: 0", "0", "a whole number from 1 to 4096"),
        ("preprocess.max_slots: auto", "'auto'", "a whole number from 1 to 4096"),
        ("preprocess.max_slots: 2.5", "2.5", "a whole number from 1 to 4096"),
        ("preprocess.max_slots: true", "True", "a whole number from 1 to 4096"),
        ("preprocess.stream: main", "'main'", "auto, current, side"),
        ("preprocess.exchange_group: dp", "'dp'", "auto, tp_ep, ep, dedicated"),
        ("preprocess.tokens_per_expert: cpu", "'cpu'", "auto, device, host"),
        ("verify: never", "'never'", VERIFY),
        ("verify: true", "True", VERIFY),
        ("verify: 3", "3", VERIFY),
        ("verify: [first]", "['first']", VERIFY),
        ("verify:", "None", VERIFY),
        ("verify.every: 0", "0", "a whole number from 1 to 2147483647"),
        ("verify.every: -3", "-3", "a whole number from 1 to 2147483647"),
        ("verify.every: 2.0", "2.0", "a whole number from 1 to 2147483647"),
        ("verify.every: true", "True", "a whole number from 1 to 2147483647"),
        ("verify.every: often", "'often'", "a whole number from 1 to 2147483647"),
        ("verify.every: 4294967296", "4294967296", "a whole number from 1 to 2147483647"),
        ("dumps: ''", "''", "the path of a folder"),
        ("dumps: 3", "3", "the path of a folder"),
        ("dumps:", "None", "the path of a folder"),
        ("telemetry.enabled: on", "'on'", "true, false"),
        ("telemetry.folder: ''", "''", "the path of a folder"),
        ("telemetry.interval: 0", "0", "a whole number from 1 to 2147483647"),
        ("telemetry.max_megabytes: 1048577", "1048577", "a whole number from 1 to 1048576"),
        ("telemetry.writers: jsonl", "'jsonl'", "a list of one or more of jsonl, tensorboard, each once"),
        ("telemetry.writers: []", "[]", "a list of one or more of jsonl, tensorboard, each once"),
        (
            "telemetry.writers: {jsonl: true}",
            "{'jsonl': True}",
            "a list of one or more of jsonl, tensorboard, each once",
        ),
        ("on_conflict: ignore", "'ignore'", "error, skip, replace"),
        ("on_conflict: 1.5", "1.5", "error, skip, replace"),
    ],
)
def test_a_wrong_value_names_file_line_key_value_and_what_is_allowed(
    write: Any, text: str, value: str, allowed: str
) -> None:
    key, _, given = text.partition(":")
    section, _, name = key.rpartition(".")
    path = write(f"# a comment\n{section}:\n  {name}:{given}\n" if section else f"# a comment\n{key}:{given}\n")
    line = 3 if section else 2
    assert refused(path) == f"{path}:{line}: {key}: {value} is not valid; allowed: {allowed}"


def test_a_wrong_value_in_a_mapping() -> None:
    assert refused({"enabled": "true"}) == "configuration: enabled: 'true' is not valid; allowed: true, false"


@pytest.mark.parametrize("value", ["[alltoall, packed]", "packed", "", "3", "true"])
@pytest.mark.parametrize("section", ["dispatchers", "preprocess"])
def test_a_section_must_be_a_mapping(write: Any, section: str, value: str) -> None:
    path = write(f"enabled: true\n{section}: {value}\n")
    message = refused(path)
    assert message.startswith(f"{path}:2: {section}: ")
    assert "is not valid; allowed: a mapping with the keys " in message


@pytest.mark.parametrize("key", ["counts", "exchange", "exchange_group", "stream", "tokens_per_expert", "max_slots"])
def test_a_choice_without_effect_is_refused(write: Any, key: str) -> None:
    value = {
        "counts": "sum",
        "exchange": "all_gather",
        "exchange_group": "tp_ep",
        "stream": "side",
        "tokens_per_expert": "host",
        "max_slots": 2,
    }[key]
    path = write(f"dispatchers: {{alltoall: stock, alltoall_seq: stock}}\npreprocess:\n  {key}: {value}\n")
    message = refused(path)
    assert message.startswith(f"{path}:3: preprocess.{key}: {value!r}: has no effect when every dispatcher is `stock`")
    assert message.endswith("allowed: 8" if key == "max_slots" else "allowed: auto")


# ------------------------------------------------------------------------------------------------ files


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.yaml"
    assert refused(path) == f"{path}: no such configuration file"


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    assert refused(tmp_path).startswith(f"{tmp_path}: cannot read the configuration file: ")


def test_a_file_that_the_system_refuses_is_named(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(DESIGN)

    def refuse(path: Path, *args: Any) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    assert refused(path) == f"{path}: cannot read the configuration file: Permission denied"


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing but a comment\n", "---\n", "...\n"])
def test_an_empty_file_is_refused(write: Any, text: str) -> None:
    path = write(text)
    message = refused(path)
    assert message.startswith(str(path))
    assert "empty" in message or "expected a mapping" in message


@pytest.mark.parametrize(
    ("text", "found"),
    [("- device: cpu\n", "a list"), ("[]", "a list"), ("cpu", "str 'cpu'"), ("3", "int 3"), ("true", "bool True")],
)
def test_the_top_must_be_a_mapping(write: Any, text: str, found: str) -> None:
    path = write(text)
    assert refused(path) == f"{path}: expected a mapping of keys at the top, found {found}"


@pytest.mark.parametrize("source", [3, ["device"], b"device: cpu", object()])
def test_other_sources_are_refused(source: Any) -> None:
    assert refused(source).endswith(f"or None, got {type(source).__name__}")


def test_bytes_that_are_not_utf_8_are_refused(write: Any) -> None:
    path = write("device: cpu # für".encode("latin-1"))
    assert refused(path).startswith(f"{path}: not a UTF-8 text file: ")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("device: cpu\n  verify: off\n", 2),
        ("device: [cpu\n", 2),
        ("device: cpu\n\tverify: off\n", 2),
        ("device: 'cpu\n", 2),
        ("a: b: c\n", 1),
        ("device: @cpu\n", 1),
    ],
)
def test_text_that_is_no_yaml_names_the_line(write: Any, text: str, line: int) -> None:
    path = write(text)
    assert refused(path).startswith(f"{path}:{line}: not valid YAML: ")


def test_two_documents_are_refused(write: Any) -> None:
    path = write("device: cpu\n---\ndevice: npu\n")
    assert refused(path).startswith(f"{path}:2: not valid YAML: ")


def test_a_control_character_is_refused(write: Any) -> None:
    path = write("enabled: true\ndevice: \x00cpu\n")
    assert refused(path) == f"{path}:2: not valid YAML: special characters are not allowed (#x0000)"


# ------------------------------------------------------------------------------------------------ YAML as an attack


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['true']",
        "!!python/name:os.system ''",
        "!!python/tuple [a, b]",
        "!!set {cpu}",
        "!!binary Y3B1",
        "!!timestamp 2001-01-01",
        "!mine cpu",
        "2001-01-01",  # a date, which YAML makes an object of without any tag
    ],
)
def test_a_tag_that_builds_an_object_is_refused(write: Any, value: str) -> None:
    path = write(f"enabled: true\ndevice: {value}\n")
    message = refused(path)
    assert message.startswith(f"{path}:2: device: tag ")
    assert message.endswith("only plain YAML data is read")


def test_nothing_is_built_while_a_tag_is_refused(write: Any, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    refused(write(f"device: !!python/object/apply:os.mkdir ['{proof}']\n"))
    refused(write(f"!!python/object/apply:os.mkdir ['{proof}']: cpu\n"))
    assert not proof.exists()


def test_a_tag_on_a_key_and_on_the_document_is_refused(write: Any) -> None:
    assert "tag '!mine' is not allowed" in refused(write("!mine device: cpu\n"))
    assert "the document: tag '!mine' is not allowed" in refused(write("!mine {device: cpu}\n"))


def test_tags_of_plain_data_are_plain_data(write: Any) -> None:
    assert load_config(write("!!map {device: !!str cpu}\n")).device == "cpu"


def test_an_alias_is_refused(write: Any) -> None:
    path = write("device: &d cpu\nverify: *d\n")
    message = refused(path)
    assert message.startswith(f"{path}:")
    assert message.endswith("verify: YAML aliases are not allowed; write the value out")


def test_an_expansion_bomb_is_refused_before_it_expands(write: Any) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    assert "YAML aliases are not allowed" in refused(write("\n".join(lines)))


def test_a_value_that_contains_itself_is_refused(write: Any) -> None:
    assert "YAML aliases are not allowed" in refused(write("device: &loop [*loop]\n"))


def test_a_merge_key_is_refused(write: Any) -> None:
    assert "not allowed" in refused(write("base: &b {counts: sum}\npreprocess: {<<: *b}\n"))


@pytest.mark.parametrize("opening", ["[", "{a: "])
def test_deep_nesting_is_refused(write: Any, opening: str) -> None:
    path = write("device: " + opening * 5_000)
    assert refused(path) == f"{path}: nested too deeply"


@pytest.mark.parametrize(
    "value", ["010", "0x8", "0b1000", "0o10", "1:30", "1_0", "8.0", "1e1", ".inf", ".nan", "!!int 8_"]
)
def test_what_is_no_decimal_number_to_everybody_is_none(write: Any, value: str) -> None:
    message = refused(write(f"enabled: true\npreprocess:\n  max_slots: {value}\n"))
    assert ":3: preprocess.max_slots: " in message


@pytest.mark.parametrize(("value", "wanted"), [("8", 8), ("+8", 8), ("'8'", None), ("!!int 8", 8)])
def test_a_decimal_number(write: Any, value: str, wanted: int | None) -> None:
    path = write(f"preprocess: {{max_slots: {value}}}\n")
    if wanted is None:
        assert "'8' is not valid" in refused(path)
    else:
        assert load_config(path).preprocess.max_slots == wanted


@pytest.mark.parametrize("value", ["!!int abc", "!!bool abc", "!!float ''", "!!float x", "!!int ''"])
def test_a_tag_that_lies_is_refused(write: Any, value: str) -> None:
    assert "device: " in refused(write(f"device: {value}\n"))


def test_a_number_that_python_refuses_is_refused(write: Any) -> None:
    path = write("device: " + "9" * 5000 + "\n")
    assert refused(path).startswith(f"{path}: not valid YAML: ")
