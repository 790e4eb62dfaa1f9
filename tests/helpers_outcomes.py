"""What ran, as data: `pytest --outcomes FILE` counts outcomes, also by (device, dispatcher, implementation)."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mindspeed_moe.dispatch_table import DISPATCHERS, IMPLEMENTATIONS, STOCK

# Only tests with one of these fixtures run Megatron's dispatchers on a device: fixture -> device.
DEVICE_OF = {"ranks": "cpu", "measured": "npu", "measured_seq": "npu"}
NONE = ("", "", "")  # the key of what is no evidence for one implementation
SEVERITY = ("skipped", "passed", "failed")


class Outcomes:
    """Counts every test once, under each implementation that it runs; an error outside of the test is a failure."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.subjects: dict[str, tuple[tuple[str, str, str], ...]] = {}
        self.outcomes: dict[str, str] = {}
        self.skips: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            callspec = getattr(item, "callspec", None)
            name = getattr(item, "originalname", item.name)
            found = subjects(name, callspec.params if callspec else {}, getattr(item, "fixturenames", ()))
            self.subjects[item.nodeid] = found

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.passed and report.when != "call":
            return
        if report.skipped and isinstance(report.longrepr, tuple):
            self.skips[report.longrepr[2].removeprefix("Skipped: ")] += 1
        self.outcomes[report.nodeid] = max(
            report.outcome, self.outcomes.get(report.nodeid, "skipped"), key=SEVERITY.index
        )

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        counted: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
        for test, outcome in self.outcomes.items():
            for key in self.subjects.get(test) or (NONE,):
                counted[key][outcome] += 1
        suites = [
            {
                **dict(zip(("device", "dispatcher", "implementation"), key, strict=True)),
                **{outcome: counts[outcome] for outcome in SEVERITY},
            }
            for key, counts in sorted(counted.items())
        ]
        total = Counter(self.outcomes.values())
        told = {
            "exit": int(exitstatus),
            "total": {outcome: total[outcome] for outcome in SEVERITY},
            "skips": self.skips,
        }
        self.file.write_text(json.dumps({**told, "suites": suites}, indent=1))


def subjects(name: str, params: Mapping[str, Any], fixtures: Iterable[str]) -> tuple[tuple[str, str, str], ...]:
    """Return (device, dispatcher, implementation) of everything that a test runs; empty when it runs no dispatcher.

    A test says so by its parameters (a name, or a tuple or a case that has one), else by its own name.
    """
    device = next((DEVICE_OF[fixture] for fixture in fixtures if fixture in DEVICE_OF), None)
    if device is None:
        return ()
    dispatcher = _said(DISPATCHERS, "dispatcher", params) or DISPATCHERS["sequence_dispatcher" in name]
    said = _said((*IMPLEMENTATIONS, STOCK), "implementation", params) or _named(name.split("_"))
    # Without either, a test compares every implementation with stock.
    return tuple((device, dispatcher, one) for one in ((said,) if said else IMPLEMENTATIONS) if one in IMPLEMENTATIONS)


def _said(names: Sequence[str], attribute: str, params: Mapping[str, Any]) -> str:
    """Return the first of the names that stands in the parameters, or an empty string."""
    for value in params.values():
        inside = value if isinstance(value, tuple) else (value, getattr(value, attribute, None))
        for one in inside:
            if isinstance(one, str) and one in names:
                return one
    return ""


def _named(words: Sequence[str]) -> str:
    """Return the implementation that a test's name begins to speak of; the seed is what `reference` keeps."""
    known = {"packed": "packed", "seed": "reference", "reference": "reference", "stock": STOCK}
    return next((known[word] for word in words if word in known), "")
