"""The stacks that the suite runs on, from stacks.json. Needs the standard library alone, for set-up reads it too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("stacks.json")


class Stack(NamedTuple):
    """One stack. Releases are those of the registry.

    purpose: who trains on it. python: major.minor. triton: the release that goes with this torch.
    cpu_build: of torch: `preferred` where pip finds one, `for torch_npu`: what needs torch_npu cannot run without it,
        `required`: nothing runs without it.
    megatron_core: every test runs with the first one, those of the contract with the others.
    mindspeed: branch -> the tags and branches of Megatron-LM that it goes with. cann: empty where none was named.
    """

    name: str
    purpose: str
    python: str
    torch: str
    torch_npu: str
    cpu_build: str
    triton: str
    megatron_core: tuple[str, ...]
    mindspeed: Mapping[str, tuple[str, ...]]
    cann: str

    def __str__(self) -> str:
        return f"{self.name} (Python {self.python}, torch {self.torch}, torch-npu {self.torch_npu})"


def _read() -> tuple[str, Mapping[str, Stack]]:
    data = json.loads(FILE.read_text(encoding="utf-8"))
    stacks = {}
    for name, row in data["stacks"].items():
        row["megatron_core"] = tuple(row["megatron_core"])
        row["mindspeed"] = {branch: tuple(goes_with) for branch, goes_with in row["mindspeed"].items()}
        stacks[name] = Stack(name=name, **row)
    return data["default"], stacks


DEFAULT, STACKS = _read()


def stack_of(torch: str) -> Stack | None:
    """Return the stack with this release of torch, whatever its build (2.7.1+cpu); None where there is none."""
    return next((one for one in STACKS.values() if one.torch == torch.partition("+")[0]), None)


def stack_for(megatron: str) -> Stack | None:
    """Return the first stack that runs this release of megatron-core, or one with the same first two numbers."""
    series = megatron.split(".")[:2]
    return next((one for one in STACKS.values() if series in [r.split(".")[:2] for r in one.megatron_core]), None)
