"""Dumps: read as written, data only; whatever else is in the file ends with a DumpError, in little memory."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers_dumps import EP2, EP2_WANTED, dump, members_of, meta_with, npy, write_zip
from mindspeed_moe.errors import DumpError
from mindspeed_moe.verify.dump import Dump, printable, read_dump, write_dump

MEGABYTE = 2**20

ONE = dump(1, EP2, EP2_WANTED[1], found={"input_splits": [4, 9], "num_out_tokens": None})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dumps" / "one.npz"


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return members_of(ONE, tmp_path_factory.mktemp("good"))


def refused(path: Path) -> str:
    """Return the message of the DumpError, which names the file, on one line."""
    with pytest.raises(DumpError) as caught:
        read_dump(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    return message.removeprefix(f"{path}: ")


def same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return found.keys() == wanted.keys() and all(np.array_equal(found[name], one) for name, one in wanted.items())


# ------------------------------------------------------------------------------------------------ good ones


@pytest.mark.parametrize(
    "written",
    [
        ONE,
        dump(0, ([0, 0, 0, 0], [1, 0, 0, 0]), {}),  # a rank without tokens
        dump(0, ([3, 1, 0, 2],), {"capacity": 3}, ep=1),
        Dump(ONE.meta.model_copy(update={"found": {}, "wanted": {}}), ONE.routing_map, None, {}, {}),
    ],
    ids=["a difference", "no tokens", "no peers", "no counts of others"],
)
def test_what_is_written_is_read(path: Path, written: Dump) -> None:
    write_dump(path, written)
    found = read_dump(path)
    assert found.meta == written.meta
    assert found.routing_map.dtype == np.bool_
    assert np.array_equal(found.routing_map, written.routing_map)
    assert found.routing_map.shape == written.routing_map.shape
    assert (found.every is None) == (written.every is None)
    assert written.every is None or np.array_equal(found.every, written.every)  # type: ignore[arg-type]
    assert same(found.found, written.found)
    assert same(found.wanted, written.wanted)


def test_a_routing_map_takes_a_bit_for_each_of_its_values(members: Mapping[str, bytes]) -> None:
    """6 tokens, 4 experts: 24 bits."""
    assert np.load(io.BytesIO(members["routing_map.npy"])).shape == (3,)


def test_the_archive_is_one_that_numpy_reads_without_pickle(path: Path) -> None:
    write_dump(path, ONE)
    with np.load(path, allow_pickle=False) as file:
        assert {"meta", "routing_map", "every", "found/input_splits", "wanted/input_splits"} <= set(file.files)
        assert file["found/input_splits"].tolist() == [4, 9]
        assert file["every"].tolist() == [[1, 2, 0, 3], [4, 0, 1, 1]]


def test_the_folder_is_made_and_holds_nothing_else(path: Path, tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "one.npz"
    write_dump(deep, ONE)
    assert [one.relative_to(tmp_path) for one in tmp_path.rglob("*") if one.is_file()] == [Path("a/b/one.npz")]


def test_a_dump_has_the_rights_that_the_user_gives_new_files(path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_dump(path, ONE)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.parent.stat().st_mode & 0o777 == 0o750


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        write_dump(tmp_path / "file" / "one.npz", ONE)


# ------------------------------------------------------------------------------------------------ wrong files


def test_no_file_and_files_of_other_kinds(path: Path) -> None:
    path.parent.mkdir()
    assert refused(path) == "No such file or directory"
    for content in (b"", b"PK", b"verify: always\n", pickle.dumps({"a": 1}), npy(np.arange(3))):
        path.write_bytes(content)
        assert refused(path).startswith("not a dump of `verify`, or damaged: ")
    assert "directory" in _refused_folder(path.parent)


def _refused_folder(path: Path) -> str:
    with pytest.raises(DumpError) as caught:
        read_dump(path)
    return str(caught.value)


def test_an_archive_of_something_else(path: Path) -> None:
    write_zip(path, {"weights.npy": npy(np.arange(3))})
    assert refused(path) == "array 'meta': absent: this is no dump of `verify`"


@pytest.mark.parametrize("left", [0.1, 0.5, 0.9, 0.99])
def test_a_file_that_was_cut_off(path: Path, left: float) -> None:
    write_dump(path, ONE)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * left)])
    refused(path)


def test_a_changed_byte_in_an_array_is_noticed(path: Path, members: Mapping[str, bytes]) -> None:
    write_zip(path, members, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    at = content.index(members["found/input_splits.npy"]) + len(members["found/input_splits.npy"]) - 8
    assert content[at] == 9
    content[at] = 4  # the difference would be gone
    path.write_bytes(content)
    assert "Bad CRC-32" in refused(path)


class Touch:
    """Unpickled, it would leave a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.proof),))


@pytest.mark.parametrize("name", ["meta.npy", "found/input_splits.npy", "more.npy", "routing_map.npy"])
def test_a_pickled_array_is_refused_and_not_run(
    path: Path, tmp_path: Path, members: Mapping[str, bytes], name: str
) -> None:
    proof = tmp_path / "proof"
    objects = np.empty(1, dtype=object)
    objects[0] = Touch(proof)
    write_zip(path, {**members, name: npy(objects, pickles=True)})
    assert "expected an array of int64 or uint8" in refused(path)
    assert not proof.exists()


Change = Callable[[dict[str, bytes]], dict[str, bytes]]


def put(name: str, array: np.ndarray[Any, Any]) -> Change:
    return lambda members: {**members, name: npy(array)}


def drop(name: str) -> Change:
    return lambda members: {key: one for key, one in members.items() if key != name}


def fields(**changed: Any) -> Change:
    return lambda members: meta_with(members, **changed)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (put("every.npy", np.zeros((2, 4))), r"'every.npy': float64 \[2, 4\].*expected an array of int64 or uint8"),
        (put("every.npy", np.zeros((2, 4), dtype=">i8")), "'every.npy': >i8"),
        (put("every.npy", np.zeros((4, 2), dtype=np.int64)), r"'every': int64 \[4, 2\]; expected int64 \[2, 4\]"),
        (put("every.npy", np.full((2, 4), -1)), "'every': -1 to -1; expected counts up to 2147483647"),
        (put("every.npy", np.full((2, 4), 2**31)), "'every': 2147483648 to"),
        (put("routing_map.npy", np.zeros(4, dtype=np.uint8)), r"'routing_map': uint8 \[4\]; expected uint8 \[3\]"),
        (put("routing_map.npy", np.zeros((6, 4), dtype=np.bool_)), "'routing_map.npy': bool"),
        (put("found/input_splits.npy", np.zeros(3, dtype=np.int64)), r"int64 \[3\]; expected int64 \[2\]"),
        (put("more.npy", np.zeros(3, dtype=np.int64)), r"unknown arrays \['more'\]"),
        (lambda members: {**members, "code.py": b"print()"}, "'code.py' is no array"),
        (drop("routing_map.npy"), r"'routing_map': absent; expected uint8 \[3\]"),
        (drop("wanted/output_splits.npy"), r"'wanted/output_splits': absent; expected int64 \[2\]"),
        (drop("meta.npy"), "'meta': absent"),
        (put("meta.npy", np.frombuffer(b"{", dtype=np.uint8)), "meta.: Invalid JSON"),
        (put("meta.npy", np.frombuffer(b"[1]", dtype=np.uint8)), "meta."),
        (fields(format=2), "meta.format: Input should be 1"),
        (fields(rank="1"), "meta.rank: "),
        (fields(rank=7), r"rank 7 is not where the layout says in the group \[0, 1\]"),
        (fields(ep_rank=0), "rank 1 is not where the layout says"),
        (fields(tp_rank=1), "no layout"),
        (fields(group=[0, 1, 2]), "is not where the layout says"),
        (fields(num_experts=5), "5 experts, EP 2 x TP 1: no layout"),
        (fields(num_experts=0), "meta.num_experts"),
        (fields(num_experts=8), r"'routing_map': uint8 \[3\]; expected uint8 \[6\]"),
        (fields(tokens=7), r"expected uint8 \[4\]"),
        (fields(tokens=-1), "meta.tokens"),
        (fields(tokens=2**40), "1099511627776 tokens for 4 experts: too large"),
        (fields(tokens=10**400), "too large|meta.tokens"),
        (fields(surprise=1), "meta.surprise: Extra inputs are not permitted"),
        (fields(found={"input_splits": [2**62, 2**62]}), "expected int64"),
        (fields(found={"input_splits": [-1]}), "expected int64"),
        (fields(versions={"torch": 2}), "meta.versions.torch"),
    ],
)
def test_what_does_not_fit_together_is_named(path: Path, members: dict[str, bytes], change: Change, told: str) -> None:
    write_zip(path, change(members))
    message = refused(path)
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(message)


def test_a_name_that_steers_a_terminal_is_shown_harmless(path: Path, members: Mapping[str, bytes]) -> None:
    write_zip(path, {**members, "\x1b[2J.npy": npy(np.zeros(1, dtype=np.int64))})
    assert "\x1b" not in refused(path)
    write_zip(path, meta_with(members, **{"\x1b[2J\n": 1}))
    refused(path)  # which looks at every character
    assert printable("a\x1b[31mb\nc\ud800") == "a?[31mb?c?"
