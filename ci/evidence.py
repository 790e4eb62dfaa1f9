"""Used by ci/full.sh: what has run with a release of megatron-core on a stack, into the committed record.

python ci/evidence.py RELEASE TABLE   a table of ci/table.py with the steps "parity", "one process" and "ledger"
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

from mindspeed_moe.evidence import FILE, Counts, Evidence, Ledger, Run, Suite, read_evidence

STEPS = ("parity", "one process", "ledger")
TESTS_FAILED = "failed (1)"  # pytest's exit code


def run_of(table: Path) -> Run:
    """Return the record of one release. Raises ValueError for a table that holds no complete run."""
    lines = table.read_text(encoding="utf-8").splitlines()
    steps: dict[str, dict[str, Any]] = {step["what"]: step for step in map(json.loads, lines)}
    for name in STEPS:
        result = steps[name]["result"] if name in steps else "not run"
        if result not in ("passed", TESTS_FAILED):
            raise ValueError(f"{table.name}: step {name!r}: {result}; nothing is recorded")
    parity, one_process, ledger = (steps[name] for name in STEPS)
    suites = [
        Suite(**dict(zip(("device", "dispatcher", "implementation"), proved.split(), strict=True)), **counts)
        for step in (parity, ledger)
        for proved, counts in sorted(step["proved"].items())
    ]
    return Run(
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        **{name: parity[name] for name in ("stack", "python", "torch", "torch_npu")},
        one_process=Counts(**{name: one_process[name] for name in Counts.model_fields}),
        suites=tuple(suites),
        ledgers=tuple(Ledger(**one) for one in ledger["ledgers"]),
    )


def main(release: str, table: str) -> int:
    """Record a run and print it; returns 1 when it has failures."""
    run = run_of(Path(table))
    evidence = read_evidence() if FILE.exists() else Evidence()
    FILE.write_text(evidence.with_run(release, run).text(), encoding="utf-8")
    counted = [(f"{one.device} {one.dispatcher} {one.implementation}", one) for one in run.suites]
    told = [
        f"{name}: {one.passed} passed, {one.failed} failed"
        for name, one in (*counted, ("one process", run.one_process))
    ]
    print(f"{release} on {run.stack}: " + "; ".join(told))
    return int(any(one.failed for one in (run.one_process, *run.suites)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
