"""The simulated libascendcl as ctypes sees it: in a process that runs on it, and alone."""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from pathlib import Path

_TEXTS = {
    "ascend_sim_ledger": [],
    "ascend_sim_faults": [],
    "ascend_sim_check_faults": [ctypes.c_char_p],
    "ascend_sim_set_faults": [ctypes.c_char_p],
    "ascend_sim_write_timeline": [ctypes.c_char_p, ctypes.c_int],
}


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    for name, arguments in _TEXTS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = ctypes.c_char_p, arguments
    library.ascend_sim_mark.restype = None
    library.ascend_sim_set_schedule.restype = None
    library.ascend_sim_set_schedule.argtypes = [ctypes.c_uint64, ctypes.c_double, ctypes.c_double]
    return library


def load(folder: Path) -> ctypes.CDLL:
    """The library in `folder`, loaded beside whatever else the process runs on."""
    return _declare(ctypes.CDLL(str(folder / "libascendcl.so")))


@lru_cache(maxsize=1)
def running() -> ctypes.CDLL:
    """The library that torch_npu uses in this process."""
    if os.environ.get("ASCEND_SIM") != "1":
        raise RuntimeError(
            "this process does not run on the simulated Ascend runtime (ASCEND_SIM is not 1); "
            "start it with python -m tests.ascend_sim COMMAND..."
        )
    return _declare(ctypes.CDLL("libascendcl.so"))


def text(library: ctypes.CDLL, function: str, *arguments: bytes | int) -> str:
    """Calls a function that returns a text."""
    answer: bytes = getattr(library, function)(*arguments)
    return answer.decode()
