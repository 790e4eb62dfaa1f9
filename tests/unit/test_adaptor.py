"""`import mindspeed_moe.adaptor` is `enable` with the configuration that the launch names."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mindspeed_moe
from helpers_megatron import write_stub_megatron
from helpers_process import python
from mindspeed_moe.config import Config
from mindspeed_moe.errors import AlreadyEnabledError, ConfigError

VARIABLE = "MINDSPEED_MOE_CONFIG"
FLAG = "--mindspeed-moe-config"


@pytest.fixture
def launch(stub_megatron: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Import the adaptor as a launch script with these arguments and this variable does; returns the plan."""

    def launch(*arguments: str, variable: str | None = None) -> Any:
        monkeypatch.setattr(sys, "argv", ["pretrain_gpt.py", *arguments])
        monkeypatch.delenv(VARIABLE, raising=False)
        if variable is not None:
            monkeypatch.setenv(VARIABLE, variable)
        sys.modules.pop("mindspeed_moe.adaptor", None)
        return importlib.import_module("mindspeed_moe.adaptor").plan

    yield launch
    mindspeed_moe.disable()
    sys.modules.pop("mindspeed_moe.adaptor", None)


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], str]:
    """Write a configuration that asks for an implementation; returns its path."""

    def config(implementation: str) -> str:
        file = tmp_path / f"{implementation}.yaml"
        file.write_text(f"device: cpu\ndispatchers:\n  alltoall: {implementation}\n")
        return str(file)

    return config


def test_without_a_configuration_the_defaults_count(launch: Callable[..., Any]) -> None:
    plan = launch("--num-layers", "2")
    assert plan is mindspeed_moe.status()
    assert plan.config == Config()


def test_the_flag_counts_before_the_variable(launch: Callable[..., Any], config: Callable[[str], str]) -> None:
    plan = launch(FLAG, config("reference"), variable=config("stock"))
    assert plan.implementation("alltoall") == "reference"


def test_the_variable_counts(launch: Callable[..., Any], config: Callable[[str], str]) -> None:
    assert launch(variable=config("stock")).implementation("alltoall") == "stock"


def test_a_second_import_changes_nothing(launch: Callable[..., Any], config: Callable[[str], str]) -> None:
    plan = launch(variable=config("reference"))
    assert importlib.import_module("mindspeed_moe.adaptor").plan is plan
    assert mindspeed_moe.status() is plan


def test_enable_before_with_another_configuration_is_told(
    launch: Callable[..., Any], config: Callable[[str], str]
) -> None:
    plan = mindspeed_moe.enable(config("packed"))
    with pytest.raises(AlreadyEnabledError):
        launch(variable=config("reference"))
    assert mindspeed_moe.status() is plan


def test_a_missing_file_and_a_bad_flag_are_errors(launch: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration file"):
        launch(variable=str(tmp_path / "missing.yaml"))
    with pytest.raises(ConfigError, match=FLAG):
        launch(FLAG)
    with pytest.raises(ConfigError, match="is set but empty"):
        launch(variable="")
    assert mindspeed_moe.status() is None
    assert "mindspeed_moe.adaptor" not in sys.modules, "a launch that goes on finds it not imported"


# ------------------------------------------------------------------------------------------------ clean interpreters

_REPORT = """
import json, sys
import mindspeed_moe.adaptor
import mindspeed_moe
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher as Dispatcher
plan = mindspeed_moe.status()
during = Dispatcher.preprocess.__code__.co_filename
mindspeed_moe.disable()
print(json.dumps({
    "implementation": plan.implementation("alltoall"),
    "ours": "alltoall" in during,
    "restored": Dispatcher.preprocess.__code__.co_filename.endswith("token_dispatcher.py"),
    "modules": [name for name in ("rich", "matplotlib", "click") if name in sys.modules],
}))
"""


@pytest.mark.parametrize(("by", "implementation"), [("flag", "reference"), ("variable", "packed")])
def test_a_launch_script_with_one_added_line(
    tmp_path: Path, config: Callable[[str], str], by: str, implementation: str
) -> None:
    stub = write_stub_megatron(tmp_path / "stub")
    script = tmp_path / "pretrain.py"
    script.write_text(_REPORT)
    file = config(implementation)
    arguments = [FLAG, file] if by == "flag" else []
    done = python(
        str(script), "--bf16", *arguments, path=(stub,), variables={VARIABLE: file} if by == "variable" else {}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "implementation": implementation,
        "ours": True,
        "restored": True,
        "modules": [],
    }


def test_a_torch_that_cannot_be_imported_is_one_message(tmp_path: Path) -> None:
    """Not a traceback out of the middle of torch: the error of the package, naming torch."""
    stub = write_stub_megatron(tmp_path / "stub")
    (stub / "torch").mkdir()
    (stub / "torch" / "__init__.py").write_text("raise ImportError('libtorch_cpu.so: cannot open shared object file')")
    done = python("-c", "import mindspeed_moe.adaptor", path=(stub,))
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("mindspeed_moe.errors.DeviceError: torch: cannot be imported: libtorch_cpu.so")
