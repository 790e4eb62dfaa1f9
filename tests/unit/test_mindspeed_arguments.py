"""Launch arguments in every form: strings, types, a config, a dictionary, a command line, a YAML file."""

from __future__ import annotations

import argparse
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindspeed_moe.errors import ConfigError
from mindspeed_moe.mindspeed.arguments import (
    add_arguments,
    flatten,
    is_set,
    parse_command_line,
    read_config_file,
    read_switch,
    same,
)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, None),
        ({"moe_npu_preprocess": None}, None),
        ({"moe_npu_preprocess": True}, True),
        ({"moe_npu_preprocess": False}, False),
        ({"moe_npu_preprocess": "True"}, True),
        ({"moe_npu_preprocess": "false"}, False),
        ({"moe_npu_preprocess": "off"}, False),
        ({"moe_npu_preprocess": "1"}, True),
        ({"no_moe_npu_preprocess": True}, False),  # a flag that its parser did not know
        ({"other": True}, None),
    ],
)
@pytest.mark.parametrize("form", [dict, lambda given: Namespace(**given), lambda given: SimpleNamespace(**given)])
def test_the_switch(form: Any, given: dict[str, Any], wanted: bool | None) -> None:
    assert read_switch(form(given)) is wanted


@pytest.mark.parametrize("value", ["perhaps", 2, ["a", "b"], 0.5])
def test_what_is_no_switch(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"moe_npu_preprocess: .* is not valid; allowed: true, false"):
        read_switch({"moe_npu_preprocess": value})


@pytest.mark.parametrize("value", [True, ["a.yaml", "b.yaml"], "", 3])
def test_what_is_no_file(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"mindspeed_moe_config: .* allowed: the path of one YAML file"):
        read_config_file({"mindspeed_moe_config": value})


def test_the_file() -> None:
    assert read_config_file(Namespace(mindspeed_moe_config="a.yaml")) == "a.yaml"
    assert read_config_file(Namespace()) is None


@pytest.mark.parametrize(
    ("words", "switch", "file"),
    [
        ([], None, None),
        (["--moe-npu-preprocess"], True, None),
        (["--no-moe-npu-preprocess"], False, None),
        (["--moe-npu-preprocess", "--mindspeed-moe-config", "a.yaml"], True, "a.yaml"),
    ],
)
def test_the_parser_and_the_strings_before_it_say_the_same(words: list[str], switch: Any, file: Any) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    add_arguments(parser)  # MindSpeed asks twice
    for args in (parser.parse_args(words), Namespace(**parse_command_line(words))):
        assert read_switch(args) is switch
        assert read_config_file(args) == file


def test_the_group_has_the_features_name() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert "moe_npu_preprocess" in [group.title for group in parser._action_groups]


def test_a_command_line() -> None:
    line = "torchrun --nproc-per-node 8 train.py --num-experts 8 --bf16 --data-path a b --lr=1e-4 --lr -1e-5 --x=a=b"
    assert parse_command_line(line.split()) == {
        "nproc_per_node": ["8", "train.py"],
        "num_experts": "8",
        "bf16": True,
        "data_path": ["a", "b"],
        "lr": "-1e-5",
        "x": "a=b",
    }


words = st.text(alphabet="abcxyz", min_size=1, max_size=6)


@given(st.dictionaries(words, st.lists(st.from_regex(r"[0-9a-z][0-9a-z.]*", fullmatch=True), max_size=3), max_size=6))
def test_any_command_line_comes_back(wanted: dict[str, list[str]]) -> None:
    line = [word for name, values in wanted.items() for word in (f"--{name}", *values)]
    expected = {
        name: True if not values else values[0] if len(values) == 1 else values for name, values in wanted.items()
    }
    assert parse_command_line(line) == expected


def test_yaml_is_flattened_to_last_names() -> None:
    data = {
        "actor": {"megatron": {"override_transformer_config": {"moe_permute_fusion": True, "num-experts": 8}}},
        "+actor.megatron.moe_grouped_gemm": False,
        "empty": None,
    }
    assert flatten(data) == {"moe_permute_fusion": True, "num_experts": 8, "moe_grouped_gemm": False, "empty": None}
    assert flatten(None) == {}


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (True, True),
        ("True", True),
        ("8", True),
        (8, True),
        (None, False),
        (False, False),
        ("false", False),
        ("0", False),
        ("", False),
    ],
)
def test_is_set(value: Any, wanted: bool) -> None:
    assert is_set(value) is wanted
    assert same(value, True) is wanted
    assert same(value, False) is not wanted


def test_same_compares_what_is_typed_with_what_is_not() -> None:
    assert same("alltoall", "alltoall")
    assert not same(None, "alltoall")
    assert not same(True, "alltoall")
