"""The table in docs/reliability.md is of these scenarios, all of them, in their order."""

from __future__ import annotations

import json
from pathlib import Path

from faults.scenarios import SCENARIOS

PROMISED_S = 40  # what is recorded on a machine that has time: docs/reliability.md
RECORDED = Path(__file__).resolve().parents[2] / "docs" / "reliability.json"


def test_every_scenario_is_recorded() -> None:
    rows = json.loads(RECORDED.read_text(encoding="utf-8"))
    assert [row["id"] for row in rows] == [one.id for one in SCENARIOS]
    for row, scenario in zip(rows, SCENARIOS, strict=True):
        assert row["ends"] is scenario.ends
        assert row["dumps"] == scenario.dumps
        assert row["seconds"] is None or max(row["seconds"]) < PROMISED_S
