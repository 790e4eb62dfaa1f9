"""Runs scenarios on the double, each in an interpreter of its own."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from helpers_process import python

TESTS = Path(__file__).resolve().parents[1]
DOUBLE = TESTS / "mindspeed_double"
FUSED = ("--num-experts", "4", "--moe-token-dispatcher-type", "alltoall", "--moe-permute-fusion")


def megatron_paths() -> tuple[Path, ...]:
    """The folders that the Megatron of this interpreter, and what it needs, were found in."""
    import importlib.util

    found = []
    for name in ("megatron", "triton"):
        spec = importlib.util.find_spec(name)
        if spec is not None:
            folder = next(iter(spec.submodule_search_locations or ()))
            found.append(Path(folder).parent)
    return tuple(dict.fromkeys(found))


@functools.cache
def scenario(
    *steps: str, arguments: tuple[str, ...] = FUSED, double: str = "", variables: tuple[tuple[str, str], ...] = ()
) -> list[dict[str, Any]]:
    """Return what stands after each step; an `error` ends it. double: quirks of the tree, see the double's README."""
    done = python(
        "-W",
        "ignore",
        "-m",
        "under_mindspeed.scenario",
        *steps,
        "--",
        *arguments,
        path=(DOUBLE, TESTS, *megatron_paths()),
        variables={
            "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
            "OMP_NUM_THREADS": "1",
            "MINDSPEED_DOUBLE": double,
            **dict(variables),
        },
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["step"] for one in found] == list(steps[: len(found)])
    for one in found:
        one["log"] = done.stderr
    return found
