"""Whether a picture can be drawn, asked before anything is measured."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from mindspeed_moe.errors import BenchError


def check_picture(path: Path) -> None:
    """Raise BenchError when matplotlib is missing or the PNG file cannot be written."""
    if importlib.util.find_spec("matplotlib") is None:
        raise BenchError("--png: matplotlib is not installed (pip install 'mindspeed-moe[plot]')")
    folder = path.parent
    writable = os.access(path, os.W_OK) if path.exists() else folder.is_dir() and os.access(folder, os.W_OK)
    if path.suffix.lower() != ".png" or not writable or path.is_dir():
        raise BenchError(f"--png {path}: must be a file *.png in a folder that exists and can be written to")
