"""Processes of their own: a clean interpreter, for what must hold before anything is imported; ranks of a launch."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_OURS = ("MINDSPEED_MOE_CONFIG", "PYTHONPATH", "RANK", "WORLD_SIZE", "TORCH_DEVICE_BACKEND_AUTOLOAD")


def python(
    *arguments: str, path: tuple[Path, ...] = (), variables: Mapping[str, str] | None = None, timeout: float = 1800
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


def torchrun(arguments: Sequence[str], *, ranks: int, before: Sequence[str] = (), **variables: str) -> tuple[int, str]:
    """Launch ranks of a script or module, behind `before`, another launcher's command, in the repository's root.

    Returns exit code and what was printed.
    """
    launcher = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
    ended = subprocess.run(
        [*before, *launcher, f"--nproc-per-node={ranks}", *arguments],
        cwd=_ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=1800,
    )
    return ended.returncode, ended.stdout
