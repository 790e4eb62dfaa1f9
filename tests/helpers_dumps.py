"""Dumps for tests, worked out by hand: two ranks with EP = 2, and four with EP = 2 and TP = 2; four experts."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_moe.verify.dump import Dump, Meta, told_shapes, write_dump
from mindspeed_moe.verify.values import Value

EXPERTS = 4

# Tokens per expert of each rank, top-1: what a routing map says, in short.
EP2 = ([1, 2, 0, 3], [4, 0, 1, 1])
# Rank 0 keeps experts 0 and 1, rank 1 keeps 2 and 3.
EP2_WANTED: tuple[dict[str, Any], ...] = (
    {
        "num_out_tokens": 6,
        "input_splits": [3, 3],
        "output_splits": [3, 4],
        "output_splits_tp": [7],
        "chunk table": [[1, 2], [4, 0]],
        "tokens_per_local_expert": [5, 2],
    },
    {
        "num_out_tokens": 6,
        "input_splits": [4, 2],
        "output_splits": [3, 2],
        "output_splits_tp": [5],
        "chunk table": [[0, 3], [1, 1]],
        "tokens_per_local_expert": [1, 4],
    },
)

# Ranks (EP, TP): (0, 0), (0, 1), (1, 0), (1, 1). Those of EP rank 0 keep experts 0 and 1.
EP2_TP2 = ([1, 2, 0, 3], [4, 0, 1, 1], [0, 0, 2, 2], [3, 1, 1, 0])
# What each sends to experts 0 and 1: 3, 4, 0, 4; to experts 2 and 3: 3, 2, 4, 1.
EP2_TP2_WANTED: tuple[dict[str, Any], ...] = tuple(
    {
        "num_out_tokens": [6, 6, 4, 5][rank],
        "input_splits": [[3, 3], [4, 2], [0, 4], [4, 1]][rank],
        "output_splits": [[3, 0], [4, 4], [3, 4], [2, 1]][rank],
        "output_splits_tp": [[3, 8], [3, 8], [7, 3], [7, 3]][rank],
        # Rows in the order TP, EP: (0, 0), (1, 0), (0, 1), (1, 1).
        "chunk table": [[1, 2], [0, 0], [4, 0], [3, 1]] if rank < 2 else [[0, 3], [2, 2], [1, 1], [1, 0]],
        "tokens_per_local_expert": [8, 3] if rank < 2 else [4, 6],
    }
    for rank in range(4)
)


def routing_map(counts: Sequence[int]) -> np.ndarray[Any, Any]:
    """A map [T, E] in which each token has one expert."""
    rows = [[at == expert for at in range(len(counts))] for expert, count in enumerate(counts) for _ in range(count)]
    return np.array(rows, dtype=np.bool_).reshape(-1, len(counts))


def meta(rank: int, *, ep: int = 2, tp: int = 1, **fields: Any) -> Meta:
    """The group is ranks 0 to EP * TP - 1."""
    plain: dict[str, Any] = {
        "format": 1,
        "run": "a1b2c3",
        "rank": rank,
        "world_size": ep * tp,
        "group": list(range(ep * tp)),
        "num_experts": EXPERTS,
        "ep_size": ep,
        "tp_size": tp,
        "ep_rank": rank // tp,
        "tp_rank": rank % tp,
        "tokens": 0,
        "topk": 1,
        "layer": 3,
        "order": 2,
        "call": 7,
        "step": 1,
        "micro_batch": 3,
        "gradients": True,
        "implementation": "packed, all_to_all",
        "attribute": None,
        "told": "verification failed on rank 1",
        "found": {},
        "wanted": {},
        "configuration": {"verify": "always"},
        "versions": {"mindspeed_moe": "0.1.0", "megatron_core": "0.16.1", "torch": "2.13.0"},
    }
    return Meta(**(plain | fields))


def dump(
    rank: int,
    counts: Sequence[Sequence[int]],
    wanted: Mapping[str, Any],
    *,
    ep: int = 2,
    tp: int = 1,
    found: Mapping[str, Any] | None = None,
    gathered: Sequence[Sequence[int]] | None = None,
    **fields: Any,
) -> Dump:
    """A rank's dump. counts: of all ranks. found: what differs from `wanted`. gathered: what the reference had."""
    values = [{name: value_of(one) for name, one in of.items()} for of in ({**wanted, **(found or {})}, wanted)]
    own = routing_map(counts[rank])
    every = np.array(counts if gathered is None else gathered, dtype=np.int64)
    told = {"tokens": len(own), "found": told_shapes(values[0]), "wanted": told_shapes(values[1])}
    return Dump(meta(rank, ep=ep, tp=tp, **told, **fields), own, every, values[0], values[1])


def of_all(wanted: Sequence[Mapping[str, Any]], counts: Sequence[Sequence[int]], **options: Any) -> list[Dump]:
    return [dump(rank, counts, wanted[rank], **options) for rank in range(len(counts))]


def with_meta(one: Dump, **fields: Any) -> Dump:
    return replace(one, meta=one.meta.model_copy(update=fields))


def value_of(one: Any) -> Value:
    return np.array(one, dtype=np.int64) if isinstance(one, list) else one


# ------------------------------------------------------------------------------------------------ archives


def members_of(one: Dump, folder: Path) -> dict[str, bytes]:
    """The files inside a good archive."""
    write_dump(folder / "one.npz", one)
    with zipfile.ZipFile(folder / "one.npz") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(path: Path, members: Mapping[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> None:
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def npy(array: np.ndarray[Any, Any], *, pickles: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=pickles)
    return buffer.getvalue()


def meta_with(members: Mapping[str, bytes], **fields: Any) -> dict[str, bytes]:
    """Members with other fields in `meta`; a value of None there is the field's own null."""
    meta = json.loads(np.load(io.BytesIO(members["meta.npy"])).tobytes()) | fields
    return {**members, "meta.npy": npy(np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8))}
