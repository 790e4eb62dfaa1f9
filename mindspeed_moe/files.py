"""The one place that opens files: regular ones only, of a bounded size, written whole or not at all.

A name can lead to a FIFO or a device, which waits or never ends when read, and which writing would replace. Links are
followed to a regular file. Whatever is refused is an OSError whose `strerror` says why.
"""

from __future__ import annotations

import errno
import io
import os
import secrets
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO

MOST_BYTES = 1 << 30  # of a file that is read whole, unless its reader names fewer

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a link",
}
Name = str | os.PathLike[str]


def not_written_out(path: str) -> str | None:
    """Return why a path cannot be meant as it stands; None when it can."""
    if path.startswith("~") or "$" in path:
        return "`~` and `$NAME` are filled in by a shell, not here: write the path out"
    try:
        return "no name that a file can have" if "\0" in path or not path.encode() else None
    except UnicodeEncodeError:
        return "no text"


def open_regular(path: Name) -> BinaryIO:
    """Open a regular file for reading. Raises OSError at once for what is none, and for what cannot be read."""
    _require_regular(_stat(path), path)  # before it is opened, which some devices take for an order
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY), "rb")
    try:
        _require_regular(os.fstat(file.fileno()), path)  # another one may have taken the name since
    except OSError:
        file.close()
        raise
    return file


def read_whole(path: Name, most: int = MOST_BYTES) -> bytes:
    """Return a regular file's content, at most `most` bytes. Raises OSError."""
    with open_regular(path) as file:
        data = file.read(most + 1) if os.fstat(file.fileno()).st_size <= most else None
        if data is None or len(data) > most:
            raise _refusal(errno.EFBIG, f"larger than {most} bytes", path)
    return data


def read_text(path: Name, most: int = MOST_BYTES, errors: str = "strict") -> str:
    """Return a regular file's UTF-8 text with \\n at the ends of lines. Raises OSError and UnicodeDecodeError."""
    return io.TextIOWrapper(io.BytesIO(read_whole(path, most)), encoding="utf-8", errors=errors).read()


def write_whole(path: Name, data: bytes) -> None:
    """Write a file that appears under its name when it is complete, with the user's umask; OSError when it cannot be.

    A file that stood there before is replaced in one step; after an error it stands there unchanged.
    """
    target = _target(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.part")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # or a crash of the machine could leave the name without its content
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(path: Name) -> None:
    """Raise OSError when `write_whole` could not write there; leaves nothing behind."""
    target = _target(path)
    with tempfile.TemporaryFile(prefix=f".{target.name}.", dir=target.parent):
        pass


def remove(path: Name) -> None:
    """Remove a regular file; OSError for what is none, a link included, which is left alone."""
    _require_regular(os.lstat(path), path)
    os.unlink(path)


def _target(path: Name) -> Path:
    """Return where a file of this name goes: to the end of a link. Raises OSError where something else stands."""
    try:
        found = _stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            raise _refusal(errno.ENOENT, "a link to nothing", path) from None
        return Path(path)
    _require_regular(found, path)
    target = Path(os.path.realpath(path))
    if not (
        target.exists() and os.path.samestat(found, target.stat())
    ):  # as behind /dev/fd, where the name may be gone
        raise _refusal(errno.EINVAL, "a link to a file without a name", path)
    return target


def _stat(path: Name) -> os.stat_result:
    try:
        return os.stat(path)
    except ValueError:  # NUL, or letters that no file of this system can have
        raise _refusal(errno.EINVAL, "no name that a file can have", path) from None


def _require_regular(found: os.stat_result, path: Name) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise _refusal(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise _refusal(errno.EINVAL, f"{kind}, not a regular file", path)


def _refusal(number: int, reason: str, path: Name) -> OSError:
    return OSError(number, reason, os.fspath(path))
