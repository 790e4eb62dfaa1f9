"""What is found on a machine, with every look at the outside replaced or led to a stub."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers_megatron import forget_megatron, package_info, write_stub_megatron
from mindspeed_moe.devices.npu import torch_npu_state
from mindspeed_moe.environment import (
    Environment,
    Found,
    Probes,
    mindspeed_importable,
    probe_devices,
    probe_distribution,
    probe_environment,
    probe_megatron,
    probe_plugin_folders,
    probe_processor,
    probe_torch,
)
from mindspeed_moe.errors import DeviceError


def probes(
    devices: Mapping[str, tuple[bool, str]] | None = None, variables: Mapping[str, str] | None = None, **found: Found
) -> Probes:
    """A machine with torch 2.1.0, the cpu and nothing else, but for what is given."""
    return Probes(
        torch=lambda: found.get("torch", Found("2.1.0")),
        torch_npu=lambda: found.get("torch_npu", Found(problem="not installed")),
        megatron_core=lambda: found.get("megatron_core", Found(problem="not installed")),
        mindspeed=lambda: found.get("mindspeed", Found(problem="not installed")),
        devices=lambda: devices if devices is not None else {"cpu": (True, "always")},
        variables=variables or {},
        processor=lambda: "Turbo 3000, 4 cores",
    )


def on_devices(npu: bool, cuda: bool) -> Environment:
    return probe_environment(
        probes({"cpu": (True, "always"), "cuda": (cuda, "A100 or why not"), "npu": (npu, "910B or why not")})
    )


# ------------------------------------------------------------------------------------------------ devices


@pytest.mark.parametrize(
    ("npu", "cuda", "expected"),
    [(False, False, "cpu"), (False, True, "cuda"), (True, False, "npu"), (True, True, "npu")],
)
def test_auto_is_npu_else_cuda_else_cpu(npu: bool, cuda: bool, expected: str) -> None:
    assert on_devices(npu, cuda).choose_device("auto") == expected


@pytest.mark.parametrize(("npu", "cuda", "asked"), list(product([True, False], [True, False], ["npu", "cuda", "cpu"])))
def test_a_device_that_is_asked_for_is_there_or_refused(npu: bool, cuda: bool, asked: str) -> None:
    environment = on_devices(npu, cuda)
    if {"npu": npu, "cuda": cuda, "cpu": True}[asked]:
        assert environment.choose_device(asked) == asked
        return
    with pytest.raises(DeviceError) as caught:
        environment.choose_device(asked)
    message = str(caught.value)
    assert message.startswith(f"device: {asked!r} is not on this machine (")
    assert "or why not" in message
    assert message.endswith("available: auto, " + ", ".join(environment.available))


def test_available_devices_stand_in_order_of_preference() -> None:
    assert on_devices(True, True).available == ("npu", "cuda", "cpu")


def test_a_device_that_no_probe_knows_is_refused() -> None:
    with pytest.raises(DeviceError, match="unknown device"):
        probe_environment(probes()).choose_device("npu")


# ------------------------------------------------------------------------------------------------ the whole


def test_the_environment_is_what_the_probes_say() -> None:
    environment = probe_environment(
        probes(
            torch=Found("2.7.1"),
            torch_npu=Found("2.7.1rc1"),
            megatron_core=Found("0.16.1"),
            mindspeed=Found(problem="a source checkout without metadata"),
            variables={"RANK": "3", "WORLD_SIZE": "8"},
        )
    )
    assert [str(environment.torch), str(environment.torch_npu), str(environment.megatron_core)] == [
        "2.7.1",
        "2.7.1rc1",
        "0.16.1",
    ]
    assert str(environment.mindspeed) == "a source checkout without metadata"
    assert (environment.rank, environment.world_size) == (3, 8)
    assert environment.python == ".".join(str(part) for part in sys.version_info[:3])


@pytest.mark.parametrize("rank", ["", "one", "-1", "1.5", "²"])
def test_a_rank_that_is_no_number_is_the_first(rank: str) -> None:
    environment = probe_environment(probes(variables={"RANK": rank, "WORLD_SIZE": rank}))
    assert (environment.rank, environment.world_size) == (0, 1)


def test_the_environment_is_plain_data() -> None:
    environment = on_devices(True, False)
    assert json.loads(json.dumps(environment.to_dict())) == environment.to_dict()
    assert environment.to_dict()["available"] == ["npu", "cpu"]
    assert environment.to_dict()["megatron_core"] == {"version": None, "problem": "not installed"}


def test_this_machine_can_be_probed() -> None:
    import torch

    environment = probe_environment()
    assert environment.torch == Found(torch.__version__)
    assert "cpu" in environment.available
    assert set(environment.devices) == {"npu", "cuda", "cpu"}
    assert ("cuda" in environment.available) == torch.cuda.is_available()


# ------------------------------------------------------------------------------------------------ torch


def fail_to_import(monkeypatch: pytest.MonkeyPatch, broken: str, error: Exception) -> None:
    """Make importlib.import_module(broken) raise."""
    original = importlib.import_module

    def import_module(name: str, package: str | None = None) -> ModuleType:
        if name == broken:
            raise error
        return original(name, package)

    monkeypatch.setattr(importlib, "import_module", import_module)


@pytest.mark.parametrize("error", [ImportError, OSError, RuntimeError])
def test_a_torch_that_fails_to_import_is_a_finding(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    fail_to_import(monkeypatch, "torch", error("libtorch.so is missing\nand a second line"))
    assert probe_torch() == Found(None, "cannot be imported: libtorch.so is missing")
    assert probe_devices() == {
        "cpu": (True, "always"),
        "cuda": (False, "torch cannot be imported"),
        "npu": (False, "torch cannot be imported"),
    }


def test_a_torch_npu_that_breaks_torch_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch_npu").mkdir()
    (tmp_path / "torch_npu" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    fail_to_import(monkeypatch, "torch", RuntimeError("libhccl.so"))
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in str(probe_torch().problem)


# ------------------------------------------------------------------------------------------------ torch_npu


@pytest.fixture
def torch_npu_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a package torch_npu with the given text and put it on the path."""

    def write(text: str) -> None:
        folder = tmp_path / "torch_npu"
        folder.mkdir()
        (folder / "__init__.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "torch_npu", raising=False)

    yield write
    sys.modules.pop("torch_npu", None)


def test_no_torch_npu() -> None:
    if importlib.util.find_spec("torch_npu") is not None:
        pytest.skip("torch_npu is installed here")
    state = torch_npu_state()
    assert (state.usable, state.soc, state.problem) == (False, "", "torch_npu is not installed")


def test_a_torch_npu_with_a_device_names_it(torch_npu_on_path: Any) -> None:
    torch_npu_on_path(
        "class npu:\n    is_available = staticmethod(lambda: True)\n"
        "    get_device_name = staticmethod(lambda index: f'Ascend910B{index}')\n"
    )
    state = torch_npu_state()
    assert (state.usable, state.soc) == (True, "Ascend910B0")
    assert probe_devices()["npu"] == (True, "Ascend910B0")


def test_a_torch_npu_without_a_device_says_so(torch_npu_on_path: Any) -> None:
    torch_npu_on_path("class npu:\n    is_available = staticmethod(lambda: False)\n")
    assert probe_devices()["npu"] == (False, "torch_npu is installed but finds no device")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("raise ImportError('libhccl.so: cannot open\\nmore')", "libhccl.so: cannot open"),
        ("raise OSError('libascendcl.so')", "libascendcl.so"),
        ("raise RuntimeError()", "RuntimeError"),
        ("import no_such_dependency_of_torch_npu", "No module named 'no_such_dependency_of_torch_npu'"),
        ("", "module 'torch_npu' has no attribute 'npu'"),
        ("class npu:\n    @staticmethod\n    def is_available(): raise RuntimeError('driver 0x7')", "driver 0x7"),
        ("this is no Python", "invalid syntax"),
    ],
)
def test_a_broken_torch_npu_is_a_finding(torch_npu_on_path: Any, text: str, told: str) -> None:
    torch_npu_on_path(text)
    usable, problem = probe_devices()["npu"]
    assert not usable
    assert problem.startswith("torch_npu is broken: ")
    assert told in problem


@pytest.mark.parametrize("module", [None, ModuleType("torch_npu")])
def test_a_torch_npu_that_hides_its_origin_is_a_finding(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    """A module without a spec, or blocked with None, makes importlib's search itself raise."""
    monkeypatch.setitem(sys.modules, "torch_npu", module)
    assert not torch_npu_state().usable


# ------------------------------------------------------------------------------------------------ distributions


def test_a_distribution_is_found_without_importing_it() -> None:
    assert probe_distribution("pytest") == Found(pytest.__version__)


def test_a_distribution_that_is_not_there() -> None:
    assert probe_distribution("no-such-distribution-at-all") == Found(None, "not installed")
    assert probe_distribution("no-such-distribution-at-all", "no_such_module") == Found(None, "not installed")


def test_a_source_checkout_has_no_metadata(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mindspeed_stub").mkdir()
    (tmp_path / "mindspeed_stub" / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert probe_distribution("mindspeed-stub", "mindspeed_stub").problem == "a source checkout without metadata"


# ------------------------------------------------------------------------------------------------ Megatron


def megatron_found(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Found:
    monkeypatch.syspath_prepend(folder)
    with forget_megatron():
        found = probe_megatron()
        assert "megatron.core" not in sys.modules, "looking at Megatron must not import it"
    return found


def test_no_megatron(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not (Path(entry) / "megatron").is_dir()])
    with forget_megatron():
        assert probe_megatron() == Found(None, "not installed")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (package_info("0.12.1"), "0.12.1"),
        (package_info("0.17.0", "rc0"), "0.17.0rc0"),
        (package_info("0.16.0", "") + "import subprocess\n__version__ = '0.16.0' + '+' + subprocess.run\n", "0.16.0"),
        (package_info("0.16.0", "rc0+5f3c1e2") + "__version__ = 'nonsense'\n", "0.16.0rc0+5f3c1e2"),
    ],
)
def test_the_version_is_read_and_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, version: str
) -> None:
    write_stub_megatron(tmp_path, info=text, core="raise AssertionError('run')")
    assert megatron_found(monkeypatch, tmp_path) == Found(version)


def test_a_source_checkout_without_init_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The repository has no megatron/__init__.py: it is a namespace package."""
    write_stub_megatron(tmp_path, info=package_info("0.11.0"))
    (tmp_path / "megatron" / "__init__.py").unlink()
    assert megatron_found(monkeypatch, tmp_path) == Found("0.11.0")


def test_a_source_build_whose_hash_is_computed_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Main's package_info.py asks git for the hash; only the constants are read."""
    text = package_info("0.16.0") + "if True:\n    __version__ = str(MAJOR) + open('.git/HEAD').read()\n"
    write_stub_megatron(tmp_path, info=text)
    assert megatron_found(monkeypatch, tmp_path) == Found("0.16.0")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("MAJOR = 0\nMINOR = 12\nPRE_RELEASE = ''\n", "names no 'PATCH'"),
        ("", "names no 'MAJOR'"),
        ("MAJOR = = 0", "unreadable"),
        ("MAJOR = 0\x00", "unreadable"),
        ("MAJOR, MINOR, PATCH = 0, 12, 1\n", "names no 'MAJOR'"),
        ("import version\nMAJOR = version.major\n", "names no 'MAJOR'"),
    ],
)
def test_an_unreadable_package_info_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, told: str
) -> None:
    write_stub_megatron(tmp_path, info=text)
    found = megatron_found(monkeypatch, tmp_path)
    assert found.version is None
    assert str(tmp_path / "megatron" / "core" / "package_info.py") in str(found.problem)
    assert told in str(found.problem)


def test_a_package_info_in_another_encoding_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_stub_megatron(tmp_path)
    (tmp_path / "megatron" / "core" / "package_info.py").write_bytes("MAJOR = 'ü'".encode("latin-1"))
    assert "unreadable" in str(megatron_found(monkeypatch, tmp_path).problem)


def test_a_megatron_without_core_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "megatron").mkdir()
    (tmp_path / "megatron" / "__init__.py").write_text("")
    assert megatron_found(monkeypatch, tmp_path) == Found(None, "not installed")


def test_a_megatron_that_hides_its_origin_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    with forget_megatron():
        monkeypatch.setitem(sys.modules, "megatron", ModuleType("megatron"))
        assert str(probe_megatron().problem).startswith("cannot be found: ")
        monkeypatch.undo()


# ------------------------------------------------------------------------------------------------ the processor


def test_the_processor_is_the_systems_model_and_its_cores(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nmodel name\t: Turbo 3000: fast\nprocessor\t: 1\nmodel name\t: Slow\n")
    assert probe_processor(file) == f"Turbo 3000: fast, {os.cpu_count()} cores"


def test_a_system_that_does_not_tell_has_an_architecture(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("Hardware\t: board\n")
    for file in (tmp_path / "cpuinfo", tmp_path / "nothing"):
        assert probe_processor(file) == f"{platform.machine()}, {os.cpu_count()} cores"


def test_a_second_copy_of_the_plugin_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is running first; a folder that only has the name is none."""
    here = str(Path(importlib.import_module("mindspeed_moe.environment").__file__ or "").resolve().parent)
    (tmp_path / "empty" / "mindspeed_moe").mkdir(parents=True)
    copy = tmp_path / "copy" / "mindspeed_moe"
    copy.mkdir(parents=True)
    (copy / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "empty")])
    assert probe_plugin_folders() == (here,)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "copy"), *sys.path])
    assert probe_plugin_folders() == (here, str(copy))


def test_a_folder_of_mindspeeds_name_is_no_mindspeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mindspeed", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mindspeed").mkdir()
    assert not mindspeed_importable()
    importlib.import_module("mindspeed")  # as a namespace
    assert not mindspeed_importable()
    del sys.modules["mindspeed"]
    (tmp_path / "mindspeed" / "__init__.py").write_text("")
    importlib.invalidate_caches()
    assert mindspeed_importable()
    assert "mindspeed" not in sys.modules, "looking does not import"
