"""A file appears whole under its name, or not at all; with the user's umask, and nothing beside it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from mindspeed_moe.files import write_whole


def test_what_is_written_stands_there_alone(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.npz", b"abc")
    write_whole(str(tmp_path / "a.npz"), b"abcd")  # replaces it
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {"a.npz": b"abcd"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o000, 0o666)])
def test_the_umask_is_the_users(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


def killed_before_it_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(self: Path, target: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "replace", replace)


@pytest.mark.parametrize("broken", [full_disk, killed_before_it_has_its_name])
def test_after_an_error_everything_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Any) -> None:
    (tmp_path / "old").write_bytes(b"old")
    broken(monkeypatch)
    for name in ("old", "new"):
        with pytest.raises(OSError, match=r"No space left|Input/output error"):
            write_whole(tmp_path / name, b"new")
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == {"old": b"old"}


def test_a_folder_that_is_none_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in ("file", "nowhere"):
        with pytest.raises(OSError, match=r"file|nowhere"):
            write_whole(tmp_path / folder / "a", b"")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
