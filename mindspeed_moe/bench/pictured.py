"""Whether a picture can be drawn, asked before anything is measured."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from mindspeed_moe.errors import BenchError
from mindspeed_moe.files import require_writable


def check_picture(path: Path) -> None:
    """Raise BenchError when matplotlib is missing or the PNG file cannot be written."""
    if importlib.util.find_spec("matplotlib") is None:
        raise BenchError("--png: matplotlib is not installed (pip install 'mindspeed-moe[plot]')")
    told = f"--png {path}: must be a file *.png in a folder that exists and can be written to"
    if path.suffix.lower() != ".png":
        raise BenchError(told)
    try:
        require_writable(path)
    except OSError as error:
        raise BenchError(f"{told} ({error.strerror})") from error
