"""Which configuration file a launch names: the flag, else the variable, else none."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindspeed_moe.config import load_config
from mindspeed_moe.environment import configured_file
from mindspeed_moe.errors import ConfigError

FLAG = "--mindspeed-moe-config"
VARIABLE = "MINDSPEED_MOE_CONFIG"


def refused(arguments: list[str], variables: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        configured_file(arguments, variables or {})
    return str(caught.value)


@pytest.mark.parametrize("arguments", [[FLAG, "moe.yaml"], [f"{FLAG}=moe.yaml"]])
def test_the_flag_names_the_file(arguments: list[str]) -> None:
    around = ["--num-layers", "4", *arguments, "--bf16"]
    assert configured_file(around, {}) == "moe.yaml"


def test_a_path_may_hold_an_equals_sign() -> None:
    assert configured_file([f"{FLAG}=a=b.yaml"], {}) == "a=b.yaml"


def test_the_flag_stands_before_the_variable() -> None:
    assert configured_file([FLAG, "flag.yaml"], {VARIABLE: "variable.yaml"}) == "flag.yaml"


def test_the_variable_names_the_file() -> None:
    assert configured_file(["--bf16"], {VARIABLE: "variable.yaml"}) == "variable.yaml"


def test_nothing_names_no_file() -> None:
    assert configured_file([], {}) is None


def test_other_flags_are_not_ours() -> None:
    assert configured_file([f"{FLAG}-too", "x", "--mindspeed-moe", "y"], {}) is None


@pytest.mark.parametrize("arguments", [[FLAG], ["--bf16", FLAG], [FLAG, "--bf16"], [FLAG, f"{FLAG}=a"]])
def test_a_flag_without_a_value_is_refused(arguments: list[str]) -> None:
    assert refused(arguments).startswith(f"{FLAG}: needs the path of a YAML file, found ")


@pytest.mark.parametrize("arguments", [[f"{FLAG}="], [FLAG, ""]])
def test_an_empty_value_is_refused(arguments: list[str]) -> None:
    assert refused(arguments) == f"{FLAG}: needs the path of a YAML file, found an empty value"


@pytest.mark.parametrize(
    "arguments", [[FLAG, "a", FLAG, "b"], [f"{FLAG}=a", FLAG, "b"], [FLAG, "a", f"{FLAG}=b"], [f"{FLAG}=a"] * 2]
)
def test_a_flag_given_twice_is_refused(arguments: list[str]) -> None:
    message = refused(arguments)
    assert message.startswith(f"{FLAG}: given 2 times (a, ")
    assert message.endswith("allowed: once")


def test_a_bad_flag_is_refused_even_when_the_variable_is_good() -> None:
    assert FLAG in refused([FLAG], {VARIABLE: "variable.yaml"})


def test_an_empty_variable_is_refused() -> None:
    assert refused([], {VARIABLE: ""}) == f"{VARIABLE}: is set but empty; name a YAML file or unset it"


def test_without_arguments_the_process_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["pretrain_gpt.py", FLAG, "from_argv.yaml"])
    monkeypatch.setenv(VARIABLE, "from_variable.yaml")
    assert configured_file() == "from_argv.yaml"
    monkeypatch.setattr("sys.argv", ["pretrain_gpt.py"])
    assert configured_file() == "from_variable.yaml"


def test_a_variable_that_names_a_missing_file(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_config(configured_file([], {VARIABLE: str(missing)}))
