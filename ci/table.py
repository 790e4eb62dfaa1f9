"""The table of what ran, on what, and how long: a line of JSON a step.

python ci/table.py add FILE PART STEP MEGATRON SECONDS EXIT OUTCOMES   append a step; OUTCOMES: a JUnit file, if any
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
from xml.etree import ElementTree

OUTCOMES = ("passed", "failed", "skipped")
COLUMNS = ("stack", "part", "what", "megatron", *OUTCOMES, "seconds", "result")


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
    names = {"stack": os.environ.get("STACK", ""), "torch_npu": os.environ.get("STACK_TORCH_NPU", "")}
    build = torch_build()
    torch = "" if build == "none" else metadata.version("torch")
    return {**names, "python": platform.python_version(), "torch": torch, "build": build}


def outcomes(file: Path) -> dict[str, Any]:
    """Return what a JUnit file says: counts, reasons of skips, what was proved (tests/conftest.py), recorded ledgers.

    An error outside of a test is a failure of it.
    """
    none = dict.fromkeys(OUTCOMES, 0)
    total, skips, proved = Counter(none), Counter[str](), dict[str, Counter[str]]()
    suites = ElementTree.parse(file).getroot()
    cases: dict[tuple[Any, Any], list[ElementTree.Element]] = {}
    for case in suites.iter("testcase"):  # one more where a test has failed, and what comes after it too
        cases.setdefault((case.get("classname"), case.get("name")), []).append(case)
    for parts in cases.values():
        tags = {child.tag for case in parts for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        total[outcome] += 1
        skips.update(str(one.get("message")) for one in parts[0].iter("skipped"))
        for one in parts[0].iter("property"):
            if one.get("name") == "proves":
                proved.setdefault(str(one.get("value")), Counter(none))[outcome] += 1
    ledgers = [one.get("value") for one in suites.findall("./testsuite/properties/property[@name='ledger']")]
    return {**total, "skips": skips, "proved": proved, "ledgers": [json.loads(str(one)) for one in ledgers]}


def add(file: str, part: str, what: str, megatron: str, seconds: str, code: str, junit: str) -> None:
    """Append a step that ran. A step without tests has a result alone."""
    step: dict[str, Any] = {**here(), "part": part, "what": what, "megatron": megatron, "seconds": int(seconds)}
    step["result"] = "passed" if code == "0" else f"failed ({code})"
    if Path(junit).exists():
        step |= outcomes(Path(junit))
        if code == "0" and not any(step[outcome] for outcome in OUTCOMES):
            step["result"] = "no such test"
    _append(file, step)


def leave(file: str, part: str, what: str, megatron: str, reason: str) -> None:
    """Append a step that was not run."""
    _append(file, {**here(), "part": part, "what": what, "megatron": megatron, "result": f"not run: {reason}"})


def _append(file: str, step: dict[str, Any]) -> None:
    with Path(file).open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(step) + "\n")


def _on(step: dict[str, Any]) -> str:
    torch = f"torch {step['torch']} ({step['build']} build)" if step["torch"] else "no torch"
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    return f"{step['stack']}: Python {step['python']}, {torch}, torch-npu {step['torch_npu']}, {machine}"


def show(*files: str) -> int:
    """Print the table, what it ran on, and why tests were skipped."""
    steps = [json.loads(line) for file in files for line in Path(file).read_text(encoding="utf-8").splitlines()]
    rows = [[str(step.get(name, "")) for name in COLUMNS] for step in steps]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows)]  # noqa: B905  rows have a cell for each column
    for row in [list(COLUMNS), *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())  # noqa: B905
    for on in dict.fromkeys(_on(step) for step in steps):
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
