"""Used by ci/full.sh: what has run with a release of megatron-core on a stack, into the committed record.

python ci/evidence.py record RELEASE STACK TORCH_NPU CPU ONE_PROCESS NPU LEDGERS   the four files of one run
"""

from __future__ import annotations

import datetime
import json
import platform
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from mindspeed_moe.evidence import FILE, Counts, Evidence, Ledger, Run, Suite, read_evidence

COUNTS = ("passed", "failed", "skipped")
TESTS_FAILED = 1  # pytest's exit code


def outcomes(file: str) -> list[dict[str, Any]]:
    """Return what `pytest --outcomes` wrote. Raises ValueError where pytest itself failed."""
    found = json.loads(Path(file).read_text())
    if found["exit"] not in (0, TESTS_FAILED):
        raise ValueError(f"{Path(file).name}: pytest ended with exit code {found['exit']}; nothing is recorded")
    return list(found["suites"])


def run_of(stack: str, torch_npu: str, cpu: str, one_process: str, npu: str, ledgers: str) -> Run:
    """Return the record of one release. Raises ValueError for files that hold no complete run."""
    total: Counter[str] = Counter()
    for suite in outcomes(one_process):
        total.update({name: suite[name] for name in COUNTS})
    suites = [Suite(**one) for file in (cpu, npu) for one in outcomes(file) if one["device"]]
    return Run(
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        stack=stack,
        python=platform.python_version(),
        torch=torch.__version__,
        torch_npu=torch_npu,
        one_process=Counts(**{name: total[name] for name in COUNTS}),
        suites=tuple(suites),
        ledgers=tuple(Ledger(**one) for one in json.loads(Path(ledgers).read_text())),
    )


def line(release: str, run: Run) -> str:
    """Return what a terminal shows of a run."""
    parts = []
    for device in ("cpu", "npu"):
        own = [suite for suite in run.suites if suite.device == device]
        counted = "; ".join(
            f"{one.dispatcher} {one.implementation} {one.passed} passed, {one.failed} failed, {one.skipped} skipped"
            for one in own
        )
        parts.append(f"{'simulated npu' if device == 'npu' else device}: {counted or 'nothing ran'}")
    parts.append(f"one process: {run.one_process.passed} passed, {run.one_process.failed} failed")
    return f"{release}  " + " | ".join(parts)


def main(command: str, *arguments: str) -> int:
    """Return 1 when a recorded run has failures."""
    if command != "record":
        print(__doc__, file=sys.stderr)
        return 2
    release, *others = arguments
    run = run_of(*others)
    evidence = read_evidence() if FILE.exists() else Evidence()
    FILE.write_text(evidence.with_run(release, run).text(), encoding="utf-8")
    print(line(release, run))
    return int(any(one.failed for one in (run.one_process, *run.suites)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
