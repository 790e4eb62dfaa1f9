"""What is on this machine: device, versions, ranks. Found by probes that a test can replace; nothing at import.

This is the only module that reads environment variables and the command line.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mindspeed_moe.devices.npu import torch_npu_installed, torch_npu_state
from mindspeed_moe.errors import ConfigError, DeviceError
from mindspeed_moe.files import read_text

CONFIG_VARIABLE = "MINDSPEED_MOE_CONFIG"
CONFIG_FLAG = "--mindspeed-moe-config"
DEVICES = ("npu", "cuda", "cpu")  # in order of preference


@dataclass(frozen=True)
class Found:
    """A package as it was found: its version, or why there is none."""

    version: str | None = None
    problem: str | None = None

    def __str__(self) -> str:
        return self.version or self.problem or "not installed"


# What a launch sets and what is said about it.
LAUNCH_VARIABLES = ("ASCEND_LAUNCH_BLOCKING", "CUDA_LAUNCH_BLOCKING", "HCCL_BUFFSIZE", "ASCEND_SIM")


@dataclass(frozen=True)
class Environment:
    """The machine and the launch, as far as decisions depend on them."""

    python: str
    torch: Found
    torch_npu: Found
    megatron_core: Found
    mindspeed: Found
    devices: Mapping[str, str]  # device -> its name (SoC, GPU) or why it is not there, see `available`
    available: tuple[str, ...]  # devices that can be used, in order of preference
    rank: int
    world_size: int
    variables: Mapping[str, str] = field(default_factory=dict)  # of LAUNCH_VARIABLES, those that are set
    processor: str = ""  # the host's: model and number of cores
    megatron_folders: tuple[str, ...] = ()  # every megatron.core that the path leads to, the one in use first
    plugin_folders: tuple[str, ...] = ()  # likewise for this package

    def choose_device(self, asked: str) -> str:
        """Return the device to use for `device: asked`; DeviceError when it is not there."""
        if asked == "auto":
            return self.available[0]
        if asked not in self.available:
            raise DeviceError(
                f"device: {asked!r} is not on this machine ({self.devices.get(asked, 'unknown device')}); "
                f"available: auto, {', '.join(self.available)}"
            )
        return asked

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            **asdict(self),
            "devices": dict(self.devices),
            "available": list(self.available),
            "megatron_folders": list(self.megatron_folders),
            "plugin_folders": list(self.plugin_folders),
            "variables": dict(self.variables),
        }


# ---------------------------------------------------------------------------------------------- probes


def probe_torch() -> Found:
    """Import torch; a torch_npu without CANN makes that fail, which is told apart."""
    try:
        return Found(str(importlib.import_module("torch").__version__))
    except Exception as error:  # torch loads torch_npu on import and passes on whatever that raised
        problem = f"cannot be imported: {_first_line(error)}"
    if torch_npu_installed():
        problem += " (torch_npu loads with torch: set TORCH_DEVICE_BACKEND_AUTOLOAD=0 to keep it out)"
    return Found(problem=problem)


def probe_distribution(name: str, module: str | None = None) -> Found:
    """Find an installed distribution by metadata, without importing it."""
    try:
        return Found(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        pass
    try:
        present = module is not None and importlib.util.find_spec(module) is not None
    except (ImportError, ValueError) as error:
        return Found(problem=f"cannot be found: {_first_line(error)}")
    return Found(problem="a source checkout without metadata" if present else "not installed")


def mindspeed_importable() -> bool:
    """Return whether a MindSpeed is on the path, without importing it; a folder that only has its name is none."""
    if "mindspeed" in sys.modules:
        return getattr(sys.modules["mindspeed"], "__file__", None) is not None
    try:
        spec = importlib.util.find_spec("mindspeed")
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def probe_megatron() -> Found:
    """Read megatron-core's version from its package_info.py, without importing or running any of it.

    A megatron.core that was imported from another folder than the one whose version would be read is a problem.
    """
    try:
        spec = importlib.util.find_spec("megatron")
    except (ImportError, ValueError) as error:
        return Found(problem=f"cannot be found: {_first_line(error)}")
    folders = _core_folders(spec.submodule_search_locations or [] if spec else [])
    if not folders:
        return Found(problem="not installed")
    found = _read_package_info(folders[0] / "package_info.py")
    imported = _imported_core()
    if imported is not None and imported != folders[0]:
        return Found(
            problem=f"two of them: megatron.core of {imported} is in use, imported already, but the path leads to "
            f"{folders[0]} ({found}), whose version says nothing about the other; start again with one of them"
        )
    return found


def probe_megatron_folders() -> tuple[str, ...]:
    """Return every folder of a megatron.core that the path leads to, the one that is in use first."""
    try:
        spec = importlib.util.find_spec("megatron")
    except (ImportError, ValueError):
        return ()
    in_use = _core_folders(spec.submodule_search_locations or [] if spec else [])
    # A regular package hides the others from the import system, not from the reader of the path.
    others = _core_folders(os.path.join(entry or os.curdir, "megatron") for entry in sys.path)
    return tuple(map(str, dict.fromkeys((*in_use, *others)))) if in_use else ()


def probe_plugin_folders() -> tuple[str, ...]:
    """Return every folder of a mindspeed_moe that the path leads to, this one first."""
    here = Path(__file__).resolve().parent
    others = (Path(os.path.realpath(os.path.join(entry or os.curdir, "mindspeed_moe"))) for entry in sys.path)
    return tuple(map(str, dict.fromkeys((here, *(one for one in others if (one / "__init__.py").is_file())))))


def _core_folders(packages: Iterable[str]) -> list[Path]:
    """Return core/ of those folders of a package `megatron` that have a version in it, without doubles."""
    folders = (Path(os.path.realpath(os.path.join(package, "core"))) for package in packages)
    return list(dict.fromkeys(folder for folder in folders if (folder / "package_info.py").is_file()))


def _imported_core() -> Path | None:
    file = getattr(sys.modules.get("megatron.core"), "__file__", None)
    return Path(file).resolve().parent if file else None


def _read_package_info(path: Path) -> Found:
    try:
        tree = ast.parse(read_text(path))
    except (OSError, ValueError, SyntaxError) as error:
        return Found(problem=f"{path}: unreadable: {_first_line(error)}")
    numbers: dict[str, object] = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    try:
        release = ".".join(str(numbers[part]) for part in ("MAJOR", "MINOR", "PATCH"))
        return Found(release + str(numbers["PRE_RELEASE"]))
    except KeyError as missing:
        return Found(problem=f"{path}: names no {missing}")


def probe_devices() -> dict[str, tuple[bool, str]]:
    """Return device -> (usable, its name or why not)."""
    found = {"cpu": (True, "always")}
    try:
        torch = importlib.import_module("torch")
    except Exception:  # probe_torch reports the reason; without torch there is no device to ask
        return {
            "npu": (False, "torch cannot be imported"),
            "cuda": (False, "torch cannot be imported"),
            **found,
        }
    if torch.cuda.is_available():
        found["cuda"] = (True, str(torch.cuda.get_device_name()))
    else:
        found["cuda"] = (False, "torch.cuda.is_available() is false")
    state = torch_npu_state()
    found["npu"] = (state.usable, state.soc if state.usable else state.problem)
    return found


def probe_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's model, or the architecture where the system does not tell, and the number of cores."""
    model = ""
    if cpuinfo.is_file():
        for line in read_text(cpuinfo, errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
                break
    return f"{model or platform.machine()}, {os.cpu_count()} cores"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@dataclass(frozen=True)
class Probes:
    """Every look at the outside world; tests replace single ones."""

    torch: Callable[[], Found] = probe_torch
    torch_npu: Callable[[], Found] = lambda: probe_distribution("torch-npu", "torch_npu")
    megatron_core: Callable[[], Found] = probe_megatron
    mindspeed: Callable[[], Found] = lambda: probe_distribution("mindspeed", "mindspeed")
    devices: Callable[[], Mapping[str, tuple[bool, str]]] = probe_devices
    variables: Mapping[str, str] = field(default_factory=lambda: os.environ)
    processor: Callable[[], str] = probe_processor
    megatron_folders: Callable[[], tuple[str, ...]] = probe_megatron_folders
    plugin_folders: Callable[[], tuple[str, ...]] = probe_plugin_folders


def probe_environment(probes: Probes | None = None) -> Environment:
    """Look at the machine. Imports torch (and torch_npu, if it is installed); raises nothing."""
    probes = probes or Probes()
    torch = probes.torch()
    devices = probes.devices()
    return Environment(
        python=".".join(map(str, sys.version_info[:3])),
        torch=torch,
        torch_npu=probes.torch_npu(),
        megatron_core=probes.megatron_core(),
        mindspeed=probes.mindspeed(),
        devices={device: name for device, (_, name) in devices.items()},
        available=tuple(device for device in DEVICES if devices.get(device, (False, ""))[0]),
        rank=_number(probes.variables, "RANK", 0),
        world_size=_number(probes.variables, "WORLD_SIZE", 1),
        variables={name: probes.variables[name] for name in LAUNCH_VARIABLES if name in probes.variables},
        processor=probes.processor(),
        megatron_folders=probes.megatron_folders(),
        plugin_folders=probes.plugin_folders(),
    )


def joins_processes(variables: Mapping[str, str] | None = None) -> bool:
    """Return whether a launcher such as torchrun has said where this process meets the others."""
    found = os.environ if variables is None else variables
    return all(name in found for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


# A backend with a watch of its own ends the process at the first error, before anybody could say where it stands.
_BACKENDS_WATCHES = ("TORCH_HCCL_ASYNC_ERROR_HANDLING", "HCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_ASYNC_ERROR_HANDLING")


def leave_errors_of_collectives_to_us() -> None:
    """Switch off the watches of torch's backends, unless the launch has set them; to be called before they start."""
    for name in _BACKENDS_WATCHES:
        os.environ.setdefault(name, "0")


# The switches of torch's own loggers, in C++ and in Python: errors alone.
_TORCH_LOGGERS = {"TORCH_CPP_LOG_LEVEL": "ERROR", "TORCH_LOGS": "-all"}


def quieten_torch() -> None:
    """Leave torch's own loggers only errors to tell, unless the launch has set them; before torch is imported."""
    for name, level in _TORCH_LOGGERS.items():
        os.environ.setdefault(name, level)


def libraries_may_speak() -> bool:
    """Return whether the user has asked for what libraries print: with -W, PYTHONWARNINGS, or CANN's log there."""
    asked = any(not option.startswith("i") for option in sys.warnoptions)  # `ignore` asks for less
    return asked or os.environ.get("ASCEND_SLOG_PRINT_TO_STDOUT") == "1"


def local_rank(variables: Mapping[str, str] | None = None) -> int:
    """Return this process's number on its machine, which is the index of its device; 0 without a launcher."""
    return _number(os.environ if variables is None else variables, "LOCAL_RANK", 0)


def _number(variables: Mapping[str, str], name: str, default: int) -> int:
    value = variables.get(name, "")
    return int(value) if value.isdecimal() and len(value) < 10 else default


# ---------------------------------------------------------------------------------------------- launch


def launch_words() -> list[str]:
    """Return the command line of this process, without the program."""
    return sys.argv[1:]


def configured_file(arguments: Sequence[str] | None = None, variables: Mapping[str, str] | None = None) -> str | None:
    """Return the configuration file that the launch names: --mindspeed-moe-config, else MINDSPEED_MOE_CONFIG.

    Raises ConfigError for a flag without a value, given twice, or naming nothing.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    variables = os.environ if variables is None else variables
    given: list[str] = []
    for position, argument in enumerate(arguments):
        if argument == CONFIG_FLAG:
            following = arguments[position + 1 : position + 2]
            if not following or following[0].startswith("--"):
                raise ConfigError(f"{CONFIG_FLAG}: needs the path of a YAML file, found {following or 'nothing'}")
            given.append(following[0])
        elif argument.startswith(CONFIG_FLAG + "="):
            given.append(argument.partition("=")[2])
    if len(given) > 1:
        raise ConfigError(f"{CONFIG_FLAG}: given {len(given)} times ({', '.join(given)}); allowed: once")
    if given:
        if not given[0]:
            raise ConfigError(f"{CONFIG_FLAG}: needs the path of a YAML file, found an empty value")
        return given[0]
    if CONFIG_VARIABLE in variables and not variables[CONFIG_VARIABLE]:
        raise ConfigError(f"{CONFIG_VARIABLE}: is set but empty; name a YAML file or unset it")
    return variables.get(CONFIG_VARIABLE)
