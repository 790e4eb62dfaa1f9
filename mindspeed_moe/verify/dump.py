"""What a failed verification leaves on each rank: one numpy archive. Data, never code: no pickle in it, none read.

routing_map     packed bits of [T, E], rows one after the other
every           [EP * TP, E] int64, the counts of all ranks of the group in group order; absent without peers
found/NAME      int64, what a consumer would have read; whole numbers and None stand in `meta`
wanted/NAME     likewise, what the reference says
meta            uint8, JSON in UTF-8: a Meta
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mindspeed_moe.errors import DumpError
from mindspeed_moe.files import open_regular, write_whole
from mindspeed_moe.preprocess.splits import MAX_ROWS
from mindspeed_moe.verify.values import Value

FORMAT: Literal[1] = 1
SUFFIX = ".npz"
_MAX_BYTES = 2**30  # of all arrays together, and of the unpacked routing map: no archive may fill the memory
_MAX_MEMBERS = 64
_MAX_TEXT = 4000
_MAX_INDEX = 2**16  # bytes
_INDEX_END, _LOCATOR = (
    struct.Struct("<4s4H2LH"),
    20,
)  # the last record of an archive; the size of one before it in zip64
_FORMAT: Any = np.lib.format  # which has no types before numpy 2.3
_KINDS = (np.dtype(np.int64), np.dtype(np.uint8))
_ABSENT = "absent"


class Meta(BaseModel):
    """What is no array.

    run: a word that all ranks of a run have in common. rank, world_size: global. group: global ranks of the TPxEP
    group, in group order. layer: Megatron's number, or None where it is not known; order: the layer's place among those
    that have been called. attribute: what differed first on this rank; None on ranks that were told by another.
    told: the first report of the run.
    found, wanted: for each name None, a whole number, or the shape of the array that stands beside.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1]
    run: str
    rank: int = Field(ge=0)
    world_size: int = Field(ge=1)
    group: list[int]
    num_experts: int = Field(ge=1, le=2**20)
    ep_size: int = Field(ge=1, le=2**16)
    tp_size: int = Field(ge=1, le=2**10)
    ep_rank: int = Field(ge=0)
    tp_rank: int = Field(ge=0)
    tokens: int = Field(ge=0)
    topk: int = Field(ge=1)
    layer: int | None
    order: int
    call: int = Field(ge=0)
    step: int
    micro_batch: int
    gradients: bool
    implementation: str
    attribute: str | None
    told: str
    found: dict[str, int | list[int] | None]
    wanted: dict[str, int | list[int] | None]
    configuration: dict[str, Any]
    versions: dict[str, str]


@dataclass(frozen=True)
class Dump:
    """One rank's dump. routing_map: [T, E] bool. every: [EP * TP, E] or None. found, wanted: by name."""

    meta: Meta
    routing_map: NDArray[np.bool_]
    every: NDArray[np.int64] | None
    found: Mapping[str, Value]
    wanted: Mapping[str, Value]


def told_shapes(values: Mapping[str, Value]) -> dict[str, int | list[int] | None]:
    """Return what `Meta.found` and `Meta.wanted` say of values."""
    return {name: list(one.shape) if isinstance(one, np.ndarray) else one for name, one in values.items()}


def write_dump(path: str | os.PathLike[str], dump: Dump) -> None:
    """Write an archive whole or not at all, and its folder if need be; OSError when it cannot be."""
    arrays: dict[str, NDArray[Any]] = {
        "meta": np.frombuffer(_text_of(dump.meta), dtype=np.uint8),
        "routing_map": np.packbits(dump.routing_map),
    }
    if dump.every is not None:
        arrays["every"] = dump.every
    for kind, values in (("found", dump.found), ("wanted", dump.wanted)):
        arrays |= {f"{kind}/{name}": one for name, one in values.items() if isinstance(one, np.ndarray)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, buffer.getvalue())


def _text_of(meta: Meta) -> bytes:
    """Return JSON; a path in it may have letters that are no text."""
    return json.dumps(meta.model_dump(mode="json"), ensure_ascii=False).encode(errors="replace")


def read_dump(path: str | os.PathLike[str]) -> Dump:
    """Read and check an archive. Raises DumpError naming the file and what is wrong with it."""
    try:
        return _read(Path(path))
    except DumpError:
        raise
    except OSError as error:
        raise DumpError(f"{path}: {error.strerror or error}") from error
    # zipfile and numpy raise many kinds for damaged archives, and none of them is more than that.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DumpError(f"{path}: not a dump of `verify`, or damaged: {printable(reason[0])}") from error


def printable(text: str) -> str:
    """Return text from a file as it may go to a terminal: on one line, nothing that steers it."""
    return "".join(one if one.isprintable() else "?" for one in text[:_MAX_TEXT])


def _read(path: Path) -> Dump:
    with open_regular(path) as file, zipfile.ZipFile(_with_short_index(path, file)) as archive:
        members = archive.infolist()
        if len(members) > _MAX_MEMBERS or sum(one.file_size for one in members) > _MAX_BYTES:
            raise DumpError(f"{path}: too large for a dump; at most {_MAX_MEMBERS} arrays of {_MAX_BYTES} bytes in all")
        arrays: dict[str, NDArray[Any]] = {}
        for one in members:
            name = one.filename.removesuffix(".npy")
            if name == one.filename or name in arrays:
                raise DumpError(f"{path}: {printable(one.filename)!r} is no array, or one of two with this name")
            arrays[name] = _array(path, archive, one)
    if "meta" not in arrays:
        raise DumpError(f"{path}: array 'meta': {_ABSENT}: this is no dump of `verify`")
    try:
        meta = Meta.model_validate_json(arrays.pop("meta").tobytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise DumpError(f"{path}: meta.{printable('.'.join(map(str, first['loc'])))}: {first['msg']}") from None
    _check_layout(path, meta)
    tokens, experts = meta.tokens, meta.num_experts
    bits = _checked(path, "routing_map", arrays.pop("routing_map", None), (-(-tokens * experts // 8),), np.uint8)
    routing_map = np.unpackbits(bits, count=tokens * experts).view(np.bool_).reshape(tokens, experts)
    every = arrays.pop("every", None)
    if every is not None:
        every = _checked(path, "every", every, (meta.ep_size * meta.tp_size, experts), np.int64)
        if every.min() < 0 or every.max() > MAX_ROWS:
            raise DumpError(f"{path}: array 'every': {every.min()} to {every.max()}; expected counts up to {MAX_ROWS}")
    found, wanted = (_values(path, kind, getattr(meta, kind), arrays) for kind in ("found", "wanted"))
    if arrays:
        raise DumpError(f"{path}: unknown arrays {[printable(name) for name in sorted(arrays)[:3]]}")
    return Dump(meta, routing_map, every, found, wanted)


def _with_short_index(path: Path, file: BinaryIO) -> BinaryIO:
    """Return the file; raises DumpError unless it ends as numpy's archives do, with an index that is no burden.

    zipfile reads an index whole, before anybody can ask how long it is.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _INDEX_END.size - _LOCATOR))
    end = file.read()
    if size < _INDEX_END.size + _LOCATOR or end.startswith(b"PK\x06\x07"):
        raise DumpError(f"{path}: not a dump of `verify`, or damaged: no index of its arrays at the end")
    word, *_, members, length, _, comment = _INDEX_END.unpack(end[_LOCATOR:])
    if word != b"PK\x05\x06" or comment:
        raise DumpError(f"{path}: not a dump of `verify`, or damaged: no index of its arrays at the end")
    if members > _MAX_MEMBERS or length > _MAX_INDEX:
        raise DumpError(f"{path}: too large for a dump; at most {_MAX_MEMBERS} arrays of {_MAX_BYTES} bytes in all")
    return file


def _array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """Read one array; of memory, no more is asked for than the archive says and all arrays may have."""
    name = printable(member.filename)
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DumpError(f"{path}: {name!r} is packed in another way than numpy does")
    with archive.open(member) as file:
        version = _FORMAT.read_magic(file)
        if version != (1, 0):
            raise DumpError(f"{path}: {name!r} has numpy's format {version}; expected (1, 0)")
        shape, by_columns, kind = _FORMAT.read_array_header_1_0(file)
        size = math.prod(shape) * kind.itemsize
        if kind not in _KINDS or size != member.file_size - file.tell():
            told = f"{kind} {list(shape)[:8]} in {member.file_size} bytes"
            raise DumpError(f"{path}: {name!r}: {told}; expected an array of int64 or uint8, and nothing else")
        data = file.read()  # checks the sum too
    if len(data) != size:
        raise DumpError(f"{path}: damaged in {name!r}: {len(data)} of {size} bytes")
    array: NDArray[Any] = np.frombuffer(data, dtype=kind).reshape(shape, order="F" if by_columns else "C")
    return array


def _check_layout(path: Path, meta: Meta) -> None:
    size = meta.ep_size * meta.tp_size
    if meta.tokens * meta.num_experts > _MAX_BYTES:
        raise DumpError(f"{path}: {meta.tokens} tokens for {meta.num_experts} experts: too large for a dump")
    if meta.num_experts % meta.ep_size or meta.ep_rank >= meta.ep_size or meta.tp_rank >= meta.tp_size:
        raise DumpError(f"{path}: {meta.num_experts} experts, EP {meta.ep_size} x TP {meta.tp_size}: no layout")
    if len(meta.group) != size or meta.group[meta.ep_rank * meta.tp_size + meta.tp_rank] != meta.rank:
        raise DumpError(f"{path}: rank {meta.rank} is not where the layout says in the group {meta.group[:16]}")


def _values(
    path: Path, kind: str, told: Mapping[str, int | list[int] | None], arrays: dict[str, NDArray[Any]]
) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for name, one in told.items():
        if isinstance(one, list):
            key = f"{kind}/{name}"
            values[name] = _checked(path, key, arrays.pop(key, None), tuple(one), np.int64)
        else:
            values[name] = one
    return values


def _checked(path: Path, name: str, array: NDArray[Any] | None, shape: tuple[int, ...], kind: type) -> NDArray[Any]:
    if array is None or array.shape != shape or array.dtype != kind:
        told = _ABSENT if array is None else f"{array.dtype} {list(array.shape)}"
        raise DumpError(f"{path}: array {name!r}: {told}; expected {np.dtype(kind)} {list(shape)}")
    return array
