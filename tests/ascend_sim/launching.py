"""The environment variables with which a process runs on the simulation, and when that is refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tests.ascend_sim import library
from tests.ascend_sim.build import libraries, sanitizer_library


class RefusedError(RuntimeError):
    """The simulation must not, or cannot, run here; the message says why."""


# What the installation scripts of CANN set.
CANN_VARIABLES = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME", "ASCEND_OPP_PATH", "ASCEND_AICPU_PATH")


def real_devices(folder: Path = Path("/dev")) -> list[Path]:
    """Device nodes of real NPUs: /dev/davinci0 and so on."""
    return sorted(path for path in folder.glob("davinci[0-9]*"))


def refuse_beside_real(base: Mapping[str, str]) -> None:
    """Raises RefusedError where a real device is visible or a real CANN is set up in `base`."""
    folders = [Path("/dev")]
    if extra := base.get("ASCEND_SIM_ALSO_LOOK_FOR_DEVICES_IN"):
        folders.append(Path(extra))
    for folder in folders:
        if found := real_devices(folder):
            raise RefusedError(
                f"a real Ascend device is visible ({found[0]}): the simulation does not run beside it; "
                "run without the simulation here"
            )
    for name in CANN_VARIABLES:
        if value := base.get(name):
            raise RefusedError(
                f"a real CANN is set up in this shell ({name} is {value}): the simulation does not run "
                "on top of it; start from a shell that has not sourced CANN's set_env.sh"
            )
    for part in base.get("LD_LIBRARY_PATH", "").split(os.pathsep):
        found_library = Path(part) / "libascendcl.so"
        if part and found_library.exists() and b"ascend_sim_ledger" not in found_library.read_bytes():
            raise RefusedError(
                f"LD_LIBRARY_PATH holds a real CANN ({found_library}): the simulation does not run "
                "on top of it; take that folder out of LD_LIBRARY_PATH"
            )


def environment(
    *,
    seed: int | None = None,
    delay_us: float | None = None,
    hold_us: float | None = None,
    npus: int | None = None,
    fault: str | None = None,
    trace: str | os.PathLike[str] | None = None,
    device_memory: str | None = None,
    host_memory: str | None = None,
    task_timeout_s: float | None = None,
    sanitizer: str = "",
    base: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Environment variables for a process on the simulation; builds the libraries where that is not done yet.

    `delay_us`, `hold_us` in microseconds, `device_memory` per device and `host_memory` per process as
    "64MiB", `task_timeout_s` in seconds, `base` the variables to start from (those of this process). What is
    None keeps the value in `base` or the default. Raises RefusedError or BuildError.
    """
    variables = dict(os.environ if base is None else base)
    refuse_beside_real(variables)
    folder = libraries(sanitizer)
    if fault and (error := library.text(library.load(folder), "ascend_sim_check_faults", fault.encode())):
        raise RefusedError(error)
    chosen = {
        "ASCEND_SIM_SEED": seed,
        "ASCEND_SIM_DELAY_US": delay_us,
        "ASCEND_SIM_HOLD_US": hold_us,
        "ASCEND_SIM_NPUS": npus,
        "ASCEND_SIM_FAULT": fault,
        "ASCEND_SIM_TRACE": None if trace is None else os.path.abspath(trace),
        "ASCEND_SIM_DEVICE_MEMORY": device_memory,
        "ASCEND_SIM_HOST_MEMORY": host_memory,
        "ASCEND_SIM_TASK_TIMEOUT_S": task_timeout_s,
    }
    variables.update({name: str(value) for name, value in chosen.items() if value is not None})
    # One that starts from within a simulation of other sources must not find that one's libraries first.
    others = [part for part in variables.get("LD_LIBRARY_PATH", "").split(os.pathsep) if part]
    others = [part for part in others if not (Path(part) / "libascendcl.so").exists()]
    variables["LD_LIBRARY_PATH"] = os.pathsep.join([str(folder), *others])
    # At the end, where it hides nothing: the program may import tests.ascend_sim.ledger.
    root = str(Path(__file__).resolve().parents[2])
    paths = [part for part in variables.get("PYTHONPATH", "").split(os.pathsep) if part]
    variables["PYTHONPATH"] = os.pathsep.join(paths if root in paths else [*paths, root])
    variables["ASCEND_SIM"] = "1"
    if sanitizer:
        # Python is not built with it, so it has to be there before anything else is loaded.
        variables["LD_PRELOAD"] = sanitizer_library(sanitizer)
        # Python and torch leak at their end by design, and they throw across libraries.
        variables.setdefault("ASAN_OPTIONS", "detect_leaks=0:handle_segv=0:use_sigaltstack=0:detect_odr_violation=0")
        suppressions = Path(__file__).with_name("thread_sanitizer.supp")
        # Quoted: the path may hold a blank or a colon.
        variables.setdefault("TSAN_OPTIONS", f"exitcode=66:halt_on_error=0:suppressions='{suppressions}'")
    # "0" is what lets torch start without CANN; here torch_npu is to be loaded as on a machine with NPUs.
    variables.pop("TORCH_DEVICE_BACKEND_AUTOLOAD", None)
    return variables
