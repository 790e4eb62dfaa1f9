"""Dumps that somebody has made to do harm, or that chance has made: a DumpError, and little memory."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers_dumps import EP2, EP2_WANTED, dump, members_of, meta_with, npy, write_zip
from mindspeed_moe.errors import DumpError
from mindspeed_moe.verify.dump import read_dump

MEGABYTE = 2**20

ONE = dump(1, EP2, EP2_WANTED[1], found={"input_splits": [4, 9], "num_out_tokens": None})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dumps" / "one.npz"


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return members_of(ONE, tmp_path_factory.mktemp("good"))


# ------------------------------------------------------------------------------------------------ attacks on memory


def memory_of(path: Path) -> tuple[str, int]:
    """Return the message of the refusal, and how much memory it took at most."""
    tracemalloc.start()
    try:
        with pytest.raises(DumpError) as caught:
            read_dump(path)
        return str(caught.value), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def header(shape: str, kind: str = "<i8") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


INDEX_END = struct.Struct("<4s4H2LH")  # as PKWARE's note on the format has it


@pytest.mark.parametrize("in_zip64", [False, True])
def test_an_index_that_would_fill_the_memory(path: Path, in_zip64: bool) -> None:
    path.parent.mkdir()
    entry = b"PK\x01\x02" + bytes(24) + (1).to_bytes(2, "little") + bytes(16) + b"a"
    number = 200_000
    length = number * len(entry)
    with path.open("wb") as file:
        for _ in range(number // 1000):
            file.write(entry * 1000)
        if in_zip64:  # two records more, which count instead of the last one's numbers
            file.write(struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, number, number, length, 0))
            file.write(struct.pack("<4sLQL", b"PK\x06\x07", 0, length, 1))
            file.write(INDEX_END.pack(b"PK\x05\x06", 0, 0, 1, 1, 1, 0, 0))
        else:
            file.write(INDEX_END.pack(b"PK\x05\x06", 0, 0, number & 0xFFFF, number & 0xFFFF, length, 0, 0))
    message, memory = memory_of(path)
    assert message.startswith(f"{path}: ")
    assert memory < MEGABYTE


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ("(1000000000000,)", "<i8"),
        ("(4611686018427387904, 4611686018427387904)", "<i8"),
        ("(-1,)", "<i8"),
        ("(1000000000000,)", "|O"),
        ("(1,)", "|V1000000000000"),
        ("(((((((((((1,)))))))))))", "<i8"),
        ("__import__('os').abort()", "<i8"),
        ("(1" + "0" * 5000 + ",)", "<i8"),
    ],
)
def test_a_shape_that_the_file_does_not_hold_takes_no_memory(
    path: Path, members: Mapping[str, bytes], shape: str, kind: str
) -> None:
    write_zip(path, {**members, "every.npy": header(shape, kind) + b"\0" * 64})
    _, most = memory_of(path)
    assert most < 4 * MEGABYTE  # a number of 5000 digits in a traceback takes some


@pytest.mark.parametrize(
    ("really", "said", "told"),
    [
        (8 * 10**6, 2**30 + 1, "too large for a dump"),
        (64 * 10**6, 1000, "Bad CRC-32"),
    ],
)
def test_sizes_in_an_archive_are_not_believed(path: Path, really: int, said: int, told: str) -> None:
    """Zeros, a thousandth of them in the file; the table at its end says more, or less."""
    content = header(f"({really // 8},)") + bytes(really)
    write_zip(path, {"every.npy": content})
    size = len(content).to_bytes(4, "little")
    archive = path.read_bytes()
    assert archive.count(size) == 2  # before the data, and in the table at the end
    path.write_bytes(archive.replace(size, said.to_bytes(4, "little")))
    message, most = memory_of(path)
    assert told in message
    assert most < MEGABYTE


def test_many_members_are_not_read(path: Path, members: Mapping[str, bytes]) -> None:
    write_zip(path, {f"{at}.npy": npy(np.zeros(1, dtype=np.int64)) for at in range(65)})
    assert "at most 64 arrays" in memory_of(path)[0]


def test_a_packing_with_a_dictionary_of_any_size_is_refused(path: Path, members: Mapping[str, bytes]) -> None:
    write_zip(path, members, zipfile.ZIP_LZMA)
    assert "packed in another way than numpy does" in memory_of(path)[0]


# ------------------------------------------------------------------------------------------------ anything at all

# The folder is shared by all examples of a test on purpose: each one overwrites the file.
_SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def reads_or_refuses(path: Path) -> None:
    with contextlib.suppress(DumpError):
        found = read_dump(path)
        assert found.routing_map.shape == (found.meta.tokens, found.meta.num_experts)


@settings(_SETTINGS, max_examples=150)
@given(content=st.binary(max_size=300) | st.binary(max_size=100).map(lambda rest: b"PK\x03\x04" + rest))
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.npz"
    path.write_bytes(content)
    reads_or_refuses(path)


@settings(_SETTINGS, max_examples=200)
@given(data=st.data())
def test_any_change_of_a_good_archive(tmp_path: Path, members: dict[str, bytes], data: st.DataObject) -> None:
    """Bytes of the archive itself: packed, and with every array as it is."""
    path = tmp_path / "any.npz"
    write_zip(path, members, data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path.write_bytes(content)
    reads_or_refuses(path)


@settings(_SETTINGS, max_examples=150)
@given(data=st.data())
def test_any_change_inside_an_array(tmp_path: Path, members: dict[str, bytes], data: st.DataObject) -> None:
    """Past the check sums, which are made anew."""
    path = tmp_path / "any.npz"
    name = data.draw(st.sampled_from(sorted(members)))
    content = bytearray(members[name])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    write_zip(path, {**members, name: bytes(content)})
    reads_or_refuses(path)


_JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(_SETTINGS, max_examples=150)
@given(changed=st.dictionaries(st.sampled_from(sorted(type(ONE.meta).model_fields)), _JSON, min_size=1, max_size=2))
def test_any_meta(tmp_path: Path, members: dict[str, bytes], changed: dict[str, Any]) -> None:
    path = tmp_path / "any.npz"
    write_zip(path, meta_with(members, **changed))
    reads_or_refuses(path)
