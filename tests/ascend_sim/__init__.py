"""A simulated Ascend runtime: the real torch_npu without an NPU and without CANN. See README.md here."""

from __future__ import annotations

from tests.ascend_sim.faults import clear_faults, set_faults
from tests.ascend_sim.launching import RefusedError, environment
from tests.ascend_sim.ledger import Counts, mark, read, record, write_timeline
from tests.ascend_sim.schedule import set_schedule

__all__ = [
    "Counts",
    "RefusedError",
    "clear_faults",
    "environment",
    "mark",
    "read",
    "record",
    "set_faults",
    "set_schedule",
    "write_timeline",
]
