"""What a scenario's outcome becomes in docs/reliability.json."""

from __future__ import annotations

import json
import re
from pathlib import Path

from faults.launch import Ended, Outcome, line_that_says
from faults.scenarios import FAULTY, SCENARIOS, Scenario


def record(file: Path, scenario: Scenario, outcome: Outcome) -> None:
    """Put one outcome into the file, in the order of the table."""
    rows = {row["id"]: row for row in json.loads(file.read_text())} if file.exists() else {}
    rows[scenario.id] = {
        "id": scenario.id,
        "fault": scenario.name,
        "device": scenario.device,
        "ends": scenario.ends,
        "seconds": [round(outcome.seconds[rank], 1) for rank in (FAULTY, 1 - FAULTY)] if scenario.ends else None,
        "faulty": _seen(scenario, FAULTY, outcome.ranks[FAULTY]),
        "others": _seen(scenario, 1 - FAULTY, outcome.ranks[1 - FAULTY]),
        "steps": list(outcome.steps),
        "records": [len([1 for _, of in outcome.records if of == rank]) for rank in range(len(outcome.ranks))],
        "dumps": len(outcome.dumps),
    }
    ordered = [rows[one.id] for one in SCENARIOS if one.id in rows]
    file.write_text(json.dumps(ordered, indent=1) + "\n")


_SHOWN = 420


def _seen(scenario: Scenario, rank: int, one: Ended) -> str:
    """Return what a user reads: the line that tells, without this machine's folders; else how the process ended."""
    pattern = (scenario.faulty if rank == FAULTY else scenario.others) if scenario.ends else scenario.warns
    text = (line_that_says(pattern, one) if pattern else "") or ""
    text = re.sub(r"(/[^/\s:;')\]]+){2,}", "...", text)
    text = re.sub(r"\d{8}T\d{6}Z", "TIME", text)
    text = re.sub(r"^\S*E\d{4} [\d:.]+\s+(\d+ )?", "", text)  # a log's date, and the process
    text = re.sub(r"process \(\d+\)", "process", text)
    text = re.sub(r"\[127\.0\.0\.1\]:\d+", "PEER", text)
    if text:
        return text if len(text) <= _SHOWN else text[:_SHOWN] + " ..."
    if one.code < 0:
        return f"nothing; ended by signal {-one.code}"
    return f"nothing; exit code {one.code}" if one.code else "nothing"
