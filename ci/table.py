"""The table of what ran, on what, and how long: a line of JSON a step.

python ci/table.py add FILE PART STEP MEGATRON SECONDS EXIT OUTCOMES   append a step; OUTCOMES: of pytest, if it ran
python ci/table.py leave FILE PART STEP MEGATRON REASON                append a step that was not run
python ci/table.py show FILE...                                        print files as one table; 1: something failed
python ci/table.py build                                               print for what the installed torch was built
"""

from __future__ import annotations

import importlib.metadata as metadata
import importlib.util
import json
import os
import platform
import runpy
import sys
from collections import Counter
from pathlib import Path
from typing import Any

COLUMNS = ("stack", "part", "what", "megatron", "passed", "failed", "skipped", "seconds", "result")


def torch_build() -> str:
    """Return cpu, cuda and its kin, or none; without importing torch, which takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None:
        return "none"
    version = runpy.run_path(str(Path(str(spec.origin)).with_name("version.py")))
    return next((kind for kind in ("cuda", "hip", "xpu") if version.get(kind)), "cpu")


def here() -> dict[str, str]:
    """Return what this runs on; the Python is the one that really runs."""
    # torch_npu lies in a folder that is on the path of some steps only: the stack's data name it.
    npu = os.environ.get("STACK_TORCH_NPU", "")
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    build = torch_build()
    torch = "no torch" if build == "none" else f"torch {metadata.version('torch')} ({build} build)"
    on = f"Python {platform.python_version()}, {torch}, torch-npu {npu}, {machine}"
    return {"stack": os.environ.get("STACK", ""), "on": on}


def add(file: str, part: str, what: str, megatron: str, seconds: str, code: str, outcomes: str) -> None:
    """Append a step that ran. A step without tests has a result alone."""
    step: dict[str, Any] = {**here(), "part": part, "what": what, "megatron": megatron, "seconds": int(seconds)}
    step["result"] = "passed" if code == "0" else f"failed ({code})"
    if Path(outcomes).exists():
        told = json.loads(Path(outcomes).read_text())
        step |= {**told["total"], "skips": told["skips"]}
        if not any(told["total"].values()):
            step["result"] = "no such test" if code == "0" else step["result"]
    _append(file, step)


def leave(file: str, part: str, what: str, megatron: str, reason: str) -> None:
    """Append a step that was not run."""
    _append(file, {**here(), "part": part, "what": what, "megatron": megatron, "result": f"not run: {reason}"})


def _append(file: str, step: dict[str, Any]) -> None:
    with Path(file).open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(step) + "\n")


def show(*files: str) -> int:
    """Print the table, what it ran on, and why tests were skipped."""
    steps = [json.loads(line) for file in files for line in Path(file).read_text(encoding="utf-8").splitlines()]
    rows = [[str(step.get(name, "")) for name in COLUMNS] for step in steps]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows)]  # noqa: B905  rows have a cell for each column
    for row in [list(COLUMNS), *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())  # noqa: B905
    for on in dict.fromkeys(f"{step['stack']}: {step['on']}" for step in steps):
        print(on)
    skips: Counter[tuple[str, str]] = Counter()
    for step in steps:
        for reason, count in step.get("skips", {}).items():
            skips[step["stack"], reason] += count
    for (stack, reason), count in skips.most_common():
        print(f"{stack}: skipped {count}: {' '.join(reason.split())}")
    return int(any(step["result"].startswith("failed") for step in steps))


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    commands = {"add": add, "leave": leave, "show": show, "build": lambda: print(torch_build())}
    sys.exit(commands[command](*arguments))
