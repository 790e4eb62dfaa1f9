"""Ledgers of one call with the installed release, as data: `python -m tests.npu.evidence FILE` (simulated).

Run it where the simulated tests run: with torch_npu and megatron-core on the path.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT / "tests") not in sys.path:  # pytest has it there
    sys.path.insert(0, str(ROOT / "tests"))

from npu.floor import PACKED, REFERENCE, STOCK, Case  # noqa: E402
from oracle.plan import DROPLESS  # noqa: E402

EP, TP, LOCAL = 2, 1, 4
# implementation, where the experts read their counts (stock always leaves them on the host), exchange, stream
CONTESTANTS = (
    (STOCK, "", "", ""),
    (REFERENCE, "device", "", ""),
    (PACKED, "device", "all_to_all", "current"),
    (PACKED, "host", "all_to_all", "current"),
)
COLUMNS = ("kernels", "collectives", "copies", "records", "event_waits", "stream_synchronizations")


def wanted(dispatchers: tuple[str, ...]) -> list[Case]:
    """Return what is counted."""
    return [Case(TP, EP, LOCAL, DROPLESS, *one, dispatcher=name) for name in dispatchers for one in CONTESTANTS]


def ledgers(found: Mapping[Case, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return one entry a case. Raises ValueError for wrong results, or ranks that cost differently."""
    entries = []
    for case, ranks in found.items():
        if wrong := [rank["wrong"] for rank in ranks if rank["wrong"]]:
            raise ValueError(f"{case}: the results are wrong: {wrong[0]}")
        costs = [{name: rank["cost"][name] for name in COLUMNS} for rank in ranks]
        if any(cost != costs[0] for cost in costs):
            raise ValueError(f"{case}: the ranks differ: {costs}")
        named = {"dispatcher": case.dispatcher, "implementation": case.implementation}
        entries.append({**named, "tokens_per_expert": case.counts or "host", **costs[0]})
    return entries


def main(file: str) -> None:
    from distributed.layers import ALLTOALL, SEQ, has_sequence_dispatcher
    from npu.measured import calls

    dispatchers = (ALLTOALL, SEQ) if has_sequence_dispatcher() else (ALLTOALL,)
    with tempfile.TemporaryDirectory() as folder:
        found = calls(wanted(dispatchers), EP * TP, Path(folder))
    Path(file).write_text(json.dumps(ledgers(found), indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
