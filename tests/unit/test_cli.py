"""The command line: exit codes, messages, and doctor on machines where something is missing or broken."""

from __future__ import annotations

import importlib
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers_megatron import package_info, write_stub_megatron
from helpers_process import python
from mindspeed_moe import cli
from mindspeed_moe.environment import Environment, Found, Probes, probe_environment
from mindspeed_moe.errors import PatchError

doctor_module = importlib.import_module("mindspeed_moe.cli.doctor")  # the package's `doctor` is the command

READY, NOT_READY, USER_ERROR = 0, 1, 2


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINDSPEED_MOE_CONFIG", raising=False)
    monkeypatch.delenv("RANK", raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    def run(*arguments: str) -> SimpleNamespace:
        code = cli.main(list(arguments))
        captured = capsys.readouterr()
        # Words as they read, whatever the width of the table wraps.
        return SimpleNamespace(code=code, out=captured.out, words=" ".join(captured.out.split()), err=captured.err)

    return run


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let doctor find this: torch 2.1.0 and a cpu, but for what is given."""

    def machine(devices: dict[str, tuple[bool, str]] | None = None, **found: Found) -> None:
        absent = Found(problem="not installed")
        probes = Probes(
            torch=lambda: found.get("torch", Found("2.1.0")),
            torch_npu=lambda: found.get("torch_npu", absent),
            megatron_core=lambda: found.get("megatron_core", absent),
            mindspeed=lambda: found.get("mindspeed", absent),
            devices=lambda: {"npu": (False, "no"), "cuda": (False, "no"), "cpu": (True, "always"), **(devices or {})},
            variables={},
        )
        monkeypatch.setattr(doctor_module, "probe_environment", lambda: probe_environment(probes))

    return machine


# ------------------------------------------------------------------------------------------------ the group


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_the_commands(run: Any, flag: str) -> None:
    told = run(flag)
    assert told.code == 0
    assert all(name in told.out for name in ("doctor", "demo", "bench", "tune", "estimate"))


@pytest.mark.parametrize("command", ["doctor", "demo", "bench"])
def test_every_command_has_help(run: Any, command: str) -> None:
    assert run(command, "--help").code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["docter"], "docter"),
        (["doctor", "--jsno"], "--jsno"),
        (["doctor", "too-much"], "too-much"),
        (["doctor", "--config"], "requires an argument"),
    ],
)
def test_a_wrong_command_line_is_a_user_error(run: Any, arguments: list[str], told: str) -> None:
    result = run(*arguments)
    assert result.code == USER_ERROR
    assert told in result.err


def test_an_error_of_ours_is_one_message_and_exit_code_2(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Environment:
        raise PatchError("what was expected, and what was found")

    monkeypatch.setattr(doctor_module, "probe_environment", fail)
    result = run("doctor")
    assert (result.code, result.out, result.err) == (
        USER_ERROR,
        "",
        "mindspeed-moe: what was expected, and what was found\n",
    )


def test_an_interrupt_is_no_traceback(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> Environment:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor_module, "probe_environment", interrupted)
    result = run("doctor")
    assert (result.code, result.err.strip()) == (130, "mindspeed-moe: interrupted")


# ------------------------------------------------------------------------------------------------ configuration


def test_a_bad_configuration_is_a_user_error(run: Any, machine: Any, tmp_path: Path) -> None:
    machine()
    file = tmp_path / "moe.yaml"
    file.write_text("device: cpu\nverfy: off\n")
    result = run("doctor", "--config", str(file))
    assert (result.code, result.out) == (USER_ERROR, "")
    assert result.err.startswith(f"mindspeed-moe: {file}:2: unknown key 'verfy'; did you mean 'verify'?")
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("text", ["", "- device\n", "device: [\n", "device: !!python/name:os.system ''\n"])
def test_any_bad_file_is_a_user_error(run: Any, machine: Any, tmp_path: Path, text: str) -> None:
    machine()
    file = tmp_path / "moe.yaml"
    file.write_text(text)
    result = run("doctor", "--json", "--config", str(file))
    assert (result.code, result.out) == (USER_ERROR, "")
    assert result.err.startswith(f"mindspeed-moe: {file}")


def test_a_missing_file_is_a_user_error(run: Any, machine: Any, tmp_path: Path) -> None:
    machine()
    result = run("doctor", "--config", str(tmp_path / "missing.yaml"))
    assert (result.code, result.err) == (
        USER_ERROR,
        f"mindspeed-moe: {tmp_path / 'missing.yaml'}: no such configuration file\n",
    )


def test_a_variable_that_names_a_missing_file_is_a_user_error(
    run: Any, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    monkeypatch.setenv("MINDSPEED_MOE_CONFIG", "missing.yaml")
    assert run("doctor").err == "mindspeed-moe: missing.yaml: no such configuration file\n"
    monkeypatch.setenv("MINDSPEED_MOE_CONFIG", "")
    result = run("doctor")
    assert (result.code, result.err.startswith("mindspeed-moe: MINDSPEED_MOE_CONFIG: is set but empty")) == (2, True)


def test_the_variable_counts_and_the_option_counts_more(
    run: Any, machine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine()
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("device: cpu\n")
    second.write_text("enabled: false\n")
    assert json.loads(run("doctor", "--json").out)["config_source"] == "defaults"
    monkeypatch.setenv("MINDSPEED_MOE_CONFIG", str(first))
    assert json.loads(run("doctor", "--json").out)["config_source"] == str(first)
    assert json.loads(run("doctor", "--json", "--config", str(second)).out)["config_source"] == str(second)


# ------------------------------------------------------------------------------------------------ doctor


def test_doctor_with_megatron_is_ready(run: Any, stub_megatron: Path) -> None:
    result = run("doctor")
    assert result.code == READY
    assert "megatron-core 0.12.1" in result.words
    assert "alltoall packed" in result.words
    assert "not stock packed stands before it" in result.words
    assert "torch.cuda.Stream replaced by" in result.words
    assert "problem" not in result.words


def test_doctor_changes_nothing(run: Any, stub_megatron: Path) -> None:
    import torch

    before = {name: id(value) for name, value in vars(torch.cuda).items()}
    assert run("doctor").code == READY
    assert {name: id(value) for name, value in vars(torch.cuda).items()} == before


def test_doctor_json_is_one_document_with_everything(run: Any, stub_megatron: Path) -> None:
    result = run("doctor", "--json")
    assert result.code == READY
    told = json.loads(result.out)
    assert set(told) >= {"config_source", "environment", "plan", "problems", "hints"}
    assert told["problems"] == []
    assert told["environment"]["megatron_core"] == {"version": "0.12.1", "problem": None}
    (decision,) = (one for one in told["plan"]["decisions"] if one["dispatcher"] == "alltoall")
    assert (decision["implementation"], set(decision["rejected"])) == ("packed", {"reference", "stock"})
    assert any(patch["target"] == "torch.cuda.Event" for patch in told["plan"]["patches"])


def test_doctor_without_megatron_says_what_is_missing(run: Any, machine: Any) -> None:
    machine()
    result = run("doctor")
    assert result.code == NOT_READY
    assert "megatron-core not installed" in result.words
    assert "problem: ContractError: megatron-core: not installed; install it or put its checkout on" in result.words
    told = json.loads(run("doctor", "--json").out)
    assert told["plan"] is None
    assert len(told["problems"]) == 1


@pytest.mark.parametrize(
    ("version", "told"), [("0.9.0", "is older than the releases"), ("0.99.0", "is newer than the releases")]
)
def test_doctor_with_an_unknown_megatron(run: Any, machine: Any, version: str, told: str) -> None:
    machine(megatron_core=Found(version))
    result = run("doctor")
    assert result.code == NOT_READY
    assert f"problem: ContractError: megatron-core {version} {told}" in result.words


def test_doctor_still_shows_the_decisions_when_the_contract_is_broken(run: Any, stub_megatron: Path) -> None:
    write_stub_megatron(stub_megatron, info=package_info("0.16.1"))
    result = run("doctor")
    assert result.code == NOT_READY
    assert (
        "problem: ContractError: megatron-core 0.16.1 should keep the contract hook_event_wait_graphs" in result.words
    )
    assert "alltoall packed" in result.words


def test_doctor_tells_who_is_in_the_way(run: Any, stub_megatron: Path) -> None:
    module = importlib.import_module("megatron.core.transformer.moe.token_dispatcher")
    module.MoEAlltoAllTokenDispatcher.preprocess = test_doctor_changes_nothing
    result = run("doctor")
    assert result.code == NOT_READY
    assert "problem: PatchConflictError: " in result.words
    assert "test_doctor_changes_nothing" in result.words
    assert "on_conflict: skip" in result.words


def test_doctor_on_a_device_that_is_not_there(run: Any, machine: Any, tmp_path: Path) -> None:
    machine(megatron_core=Found("0.12.1"), devices={"npu": (False, "torch_npu is not installed")})
    file = tmp_path / "moe.yaml"
    file.write_text("device: npu\n")
    result = run("doctor", "--config", str(file))
    assert result.code == NOT_READY
    assert "DeviceError: device: 'npu' is not on this machine (torch_npu is not installed)" in result.words


def test_doctor_with_a_broken_torch_npu_tells_how_to_keep_it_out(run: Any, machine: Any) -> None:
    machine(torch_npu=Found("2.1.0"), devices={"npu": (False, "torch_npu is broken: libhccl.so")})
    told = json.loads(run("doctor", "--json").out)
    assert told["environment"]["devices"]["npu"] == "torch_npu is broken: libhccl.so"
    assert any("libhccl.so" in hint and "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in hint for hint in told["hints"])


@pytest.mark.parametrize(
    ("torch", "torch_npu", "megatron", "told"),
    [
        ("2.7.1+cpu", None, "0.12.1", "torch 2.7.1+cpu is that of stack llm (Python 3.10, "),
        ("2.10.0", "2.10.0.post1", "0.12.1", ", torch-npu 2.10.0.post1, megatron-core 0.12.1"),
        ("2.9.9", None, None, "torch 2.9.9 is on none of the stacks that the plugin is tried on: llm (Python 3.10, "),
    ],
)
def test_doctor_tells_how_far_the_machine_is_a_stack_that_is_tried(
    run: Any, machine: Any, torch: str, torch_npu: str | None, megatron: str | None, told: str
) -> None:
    machine(
        torch=Found(torch), torch_npu=Found(torch_npu, "not installed"), megatron_core=Found(megatron, "not installed")
    )
    (hint,) = (hint for hint in json.loads(run("doctor", "--json").out)["hints"] if hint.startswith("torch "))
    assert told in hint
    assert ("never tried there" in hint) == (torch_npu is not None or f"Python {platform.python_version()}" in hint)


def test_doctor_without_torch(run: Any, machine: Any) -> None:
    machine(torch=Found(None, "cannot be imported: libtorch.so"))
    result = run("doctor")
    assert result.code == NOT_READY
    assert "torch: cannot be imported: libtorch.so" in result.words
    assert json.loads(run("doctor", "--json").out)["plan"] is None


def test_doctor_with_a_disabled_configuration_is_ready(run: Any, machine: Any, tmp_path: Path) -> None:
    machine()
    file = tmp_path / "moe.yaml"
    file.write_text("enabled: false\n")
    result = run("doctor", "--config", str(file))
    assert result.code == READY
    assert "nothing is patched" in result.words


def test_doctor_on_an_npu_reminds_of_the_transfer(run: Any, machine: Any) -> None:
    machine(devices={"npu": (True, "Ascend910B1")})
    assert "torch_npu.contrib.transfer_to_npu must be imported before Megatron" in run("doctor").words


# ------------------------------------------------------------------------------------------------ clean interpreters


def test_module_and_exit_code_without_megatron() -> None:
    done = python("-m", "mindspeed_moe", "doctor", "--json")
    assert done.returncode == NOT_READY, done.stderr
    told = json.loads(done.stdout)
    assert told["environment"]["megatron_core"]["problem"] == "not installed"
    assert told["environment"]["torch"]["version"]
    assert "install it or put its checkout on PYTHONPATH" in told["problems"][0]


def test_module_and_exit_code_with_a_bad_configuration(tmp_path: Path) -> None:
    """The configuration is looked at before anything heavy is needed: no traceback, whatever else is missing."""
    file = tmp_path / "moe.yaml"
    file.write_text("device: tpu\n")
    broken_torch(tmp_path)
    done = python("-m", "mindspeed_moe", "doctor", "--config", str(file), path=(tmp_path,))
    assert (done.returncode, done.stdout) == (USER_ERROR, "")
    told = f"mindspeed-moe: {file}:1: device: 'tpu' is not valid; allowed: auto, npu, cuda, cpu"
    assert [line for line in done.stderr.splitlines() if "mindspeed" in line or "Error" in line] == [told]


def test_the_console_script_is_the_module() -> None:
    script = Path(sys.executable).parent / "mindspeed-moe"
    if not script.exists():
        pytest.skip("the project is not installed into this environment")
    done = python(str(script), "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout == python("-m", "mindspeed_moe", "--help").stdout


def broken_torch(folder: Path) -> None:
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text("raise ImportError('libtorch_cpu.so: cannot open shared object')")


def broken_torch_npu(folder: Path, *, loads_with_torch: bool) -> None:
    """torch_npu as it is without CANN. From torch 2.5 on, an entry point makes `import torch` load it."""
    (folder / "torch_npu").mkdir()
    (folder / "torch_npu" / "__init__.py").write_text("raise ImportError('libhccl.so: cannot open shared object')")
    metadata = folder / "torch_npu-2.7.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch-npu\nVersion: 2.7.1\n")
    if loads_with_torch:
        (metadata / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")


def test_doctor_survives_a_torch_that_cannot_be_imported(tmp_path: Path) -> None:
    broken_torch(tmp_path)
    done = python("-m", "mindspeed_moe", "doctor", path=(tmp_path,))
    assert done.returncode == NOT_READY, done.stderr
    assert "problem: torch: cannot be imported: libtorch_cpu.so: cannot open shared object" in done.stdout
    assert "mindspeed" not in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_survives_a_broken_torch_npu(tmp_path: Path) -> None:
    broken_torch_npu(tmp_path, loads_with_torch=False)
    done = python("-m", "mindspeed_moe", "doctor", "--json", path=(write_stub_megatron(tmp_path),))
    assert done.returncode == READY, done.stderr
    told = json.loads(done.stdout)
    assert told["environment"]["torch_npu"]["version"] == "2.7.1"
    assert told["environment"]["devices"]["npu"] == "torch_npu is broken: libhccl.so: cannot open shared object"
    assert told["plan"]["device"] == "cpu"


def test_doctor_survives_a_broken_torch_npu_that_breaks_torch(tmp_path: Path) -> None:
    import torch
    from packaging.version import Version

    if Version(torch.__version__).release < (2, 5):
        pytest.skip("this torch does not load back ends by itself")
    broken_torch_npu(tmp_path, loads_with_torch=True)
    done = python("-m", "mindspeed_moe", "doctor", path=(tmp_path,))
    assert done.returncode == NOT_READY, done.stderr
    words = " ".join(done.stdout.split())
    assert "problem: torch: cannot be imported" in words
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in words
    assert "torch-npu 2.7.1" in words


@pytest.mark.megatron
def test_doctor_with_the_installed_megatron_is_ready(run: Any) -> None:
    from megatron.core.package_info import __version__

    # In a git checkout, 0.19 puts a commit behind its version, which is not read: it would take running its code.
    version = __version__.partition("+")[0]
    told = run("doctor")
    assert told.code == READY, told.out
    assert f"megatron-core {version}" in told.words
    assert "alltoall packed" in told.words
