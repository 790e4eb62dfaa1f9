"""A clean interpreter, for what must hold before anything is imported."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_OURS = ("MINDSPEED_MOE_CONFIG", "PYTHONPATH", "RANK", "WORLD_SIZE", "TORCH_DEVICE_BACKEND_AUTOLOAD")


def python(
    *arguments: str, path: tuple[Path, ...] = (), variables: Mapping[str, str] | None = None, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run this interpreter with `path` as its PYTHONPATH, without the variables that the plugin reads."""
    environment = {name: value for name, value in os.environ.items() if name not in _OURS}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, path)), **(variables or {})}
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=tempfile.gettempdir(),  # nothing of the repository on the path but what is installed
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
