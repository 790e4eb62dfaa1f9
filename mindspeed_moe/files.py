"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file that appears under its name when it is complete, with the user's umask; OSError when it cannot be.

    A file that stood there before is replaced in one step; after an error it stands there unchanged.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # or a crash of the machine could leave the name without its content
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
