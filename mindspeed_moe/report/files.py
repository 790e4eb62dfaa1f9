"""Where a page may be written, and writing it."""

from __future__ import annotations

from pathlib import Path

from mindspeed_moe.errors import ReportError
from mindspeed_moe.files import require_writable, write_whole


def require_output(path: Path) -> None:
    """Raise ReportError when the page cannot be written there; asked before anything is read."""
    try:
        require_writable(path)
    except OSError as error:
        raise ReportError(
            f"--output {path}: must be a file in a folder that exists and can be written to ({error.strerror})"
        ) from error


def write_page(path: Path, text: str) -> int:
    """Write the page whole or not at all; returns its size in bytes. Raises ReportError when it cannot be written."""
    data = text.encode(errors="replace")  # a folder may have a name that is no text
    try:
        write_whole(path, data)
    except OSError as error:
        raise ReportError(f"--output {path}: cannot be written: {error.strerror}") from error
    return len(data)
