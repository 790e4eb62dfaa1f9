"""`mindspeed-moe replay`: what a failed verification left, computed anew on any machine."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mindspeed_moe.errors import DumpError

NOT_REPRODUCED, UNUSABLE = 1, 2


@click.command()
@click.argument("dumps", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def replay(dumps: tuple[Path, ...], as_json: bool) -> int:
    """Compute a failed call anew from the dumps of one or of all ranks (files, or folders that hold them).

    Says for each rank what differed and who was right: the run, the reference, or this version's code on this machine.
    Exit code 0: a difference was reproduced; 1: there is none; 2: dumps are unusable, and no other shows a difference.
    """
    from mindspeed_moe.verify.dump import printable, read_dump
    from mindspeed_moe.verify.replay import replay as replay_dumps

    calls: dict[tuple[Any, ...], list[Any]] = {}
    damaged: list[DumpError] = []
    for path, asked_for in _files(dumps).items():
        try:
            dump = read_dump(path)
        except DumpError as error:
            if asked_for:
                raise
            damaged.append(error)  # of a folder: the others may say enough
            continue
        meta = dump.meta
        calls.setdefault((meta.run, meta.order, meta.call, *meta.group), []).append(dump)
    for one in damaged:
        print(printable(f"left out: {one}"), file=sys.stderr)
    if not calls:
        raise DumpError("none of the dumps can be read")
    replays = [replay_dumps(of_call) for _, of_call in sorted(calls.items())]
    if as_json:
        left_out = [str(one) for one in damaged]
        print(json.dumps({"calls": [_plain(one) for one in replays], "left_out": left_out}, indent=2))
    else:
        print("\n\n".join("\n".join(map(printable, _told(one))) for one in replays))
    if any(one.reproduced for one in replays):
        return 0
    return UNUSABLE if damaged else NOT_REPRODUCED


def _files(paths: tuple[Path, ...]) -> dict[Path, bool]:
    """Return each file once, and whether it was asked for by its own name."""
    from mindspeed_moe.verify.dump import SUFFIX

    found: dict[Path, bool] = {}
    for path in paths:
        if not path.is_dir():
            found[Path(os.path.realpath(path))] = True
            continue
        inside = sorted(path.glob(f"*{SUFFIX}"))
        if not inside:
            raise DumpError(f"{path}: no dump (*{SUFFIX}) in this folder")
        for one in inside:
            found.setdefault(Path(os.path.realpath(one)), False)
    return found


def _told(found: Any) -> Iterator[str]:
    first = found.findings[0].meta
    for told in dict.fromkeys(one.meta.told for one in found.findings):  # each rank that failed by itself
        yield f"the run said: {told}"
    layer = f"layer {first.layer}"
    if first.layer is None:
        layer = f"layer number {first.order + 1} in order of first calls"
    sizes = f"E {first.num_experts}, EP {first.ep_size} x TP {first.tp_size}, top-{first.topk}"
    packages = {"mindspeed_moe": "mindspeed_moe", "megatron-core": "megatron_core", "torch": "torch"}
    versions = ", ".join(f"{name} {first.versions.get(key, '?')}" for name, key in packages.items())
    yield f"{layer}, call {first.call}: {sizes}, ranks {first.group}; {versions}"
    yield "counts: " + "; ".join(found.counts_from)
    for one in found.findings:
        yield f"rank {one.meta.rank}: {_verdict(one)}"


def _verdict(one: Any) -> str:
    if one.recorded is None and one.against_maps is None:
        return "what was read is what follows from the routing maps"
    parts = [f"reproduced: {one.recorded or one.against_maps}"]
    if one.reference is not None:
        parts.append(f"the reference was wrong itself: {one.reference}")
    elif one.against_maps is not None:
        parts.append("the routing maps say what the reference said")
    if one.code is not None:
        parts.append(f"this version's code is wrong here too: {one.code}")
    elif one.against_maps is not None:
        parts.append(
            "this version's code is right on these counts: look for a race, a wrong group or a fault of the machine"
        )
    return "; ".join(parts)


def _plain(found: Any) -> dict[str, Any]:
    first = found.findings[0].meta
    names = ("recorded", "against_maps", "reference", "code")
    return {
        "layer": first.layer,
        "call": first.call,
        "reproduced": found.reproduced,
        "counts_from": list(found.counts_from),
        "ranks": [
            {"rank": one.meta.rank, **{name: _difference(getattr(one, name)) for name in names}}
            for one in found.findings
        ],
    }


def _difference(one: Any) -> dict[str, Any] | None:
    if one is None:
        return None
    return {"attribute": one.attribute, "index": list(one.index), "found": one.found, "expected": one.wanted}
