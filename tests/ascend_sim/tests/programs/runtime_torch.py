"""Lateness, order, counts and limits as torch_npu shows them. Prints one JSON document."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch

from tests.ascend_sim import ledger, set_faults, set_schedule, write_timeline
from tests.ascend_sim.faults import faults, faults_in_force

SEEDS = range(20)
COUNT = 1024
out: dict[str, Any] = {}
device = torch.device("npu", 0)
torch.npu.set_device(device)
source = torch.arange(COUNT, dtype=torch.int32, device=device)
truth = torch.arange(COUNT, dtype=torch.int32)
poison = torch.full((COUNT,), 0xA5, dtype=torch.uint8).view(torch.int32)[0]
side = torch.npu.Stream()


def pinned() -> torch.Tensor:
    return torch.zeros(COUNT, dtype=torch.int32, pin_memory=True)


def late_read(seed: int) -> list[bool]:
    set_schedule(seed, hold_us=100_000)
    target = pinned()
    target.copy_(source, non_blocking=True)
    _ = torch.npu.current_stream().npu_stream  # torch_npu has handed the copy over
    too_early = target.clone()
    torch.npu.current_stream().synchronize()
    return [bool((too_early == poison).all()), torch.equal(target, truth)]


out["late"] = [late_read(seed) for seed in SEEDS]


def side_copy(seed: int, wait: bool, right_event: bool = True) -> bool:
    """Whether a copy on the side stream saw what the current stream had computed before."""
    set_schedule(seed, hold_us=50_000)
    computed, done, target = torch.npu.Event(), torch.npu.Event(), pinned()
    value = source + (seed + 1)  # differs each time: torch gives the same memory again, with what it held
    computed.record()
    if wait:
        side.wait_event(computed)
    with torch.npu.stream(side):
        target.copy_(value, non_blocking=True)
        if right_event:
            done.record()
    if not right_event:
        done.record()
    done.synchronize()
    right = torch.equal(target, truth + (seed + 1))
    torch.npu.synchronize()
    return right


out["side stream waits"] = [side_copy(seed, True) for seed in SEEDS]
out["side stream does not wait"] = [side_copy(seed, False) for seed in SEEDS]
out["event on the wrong stream"] = [side_copy(seed, True, right_event=False) for seed in SEEDS]

# Exact counts, for what torch_npu launches from its own thread as well.
set_schedule(0, hold_us=2000)
target = pinned()
torch.npu.synchronize()
with ledger.record() as counts:
    pass
out["nothing"] = [what for what, _, _ in counts.rows() if what != "event queries"]
with ledger.record() as counts:
    for _ in range(300):
        target.copy_(source, non_blocking=True)
out["300 copies"] = [
    counts.copy_count(),
    counts.copy_count("device_to_host", asynchronous=True, pinned=True),
    counts.copy_bytes(),
]
with ledger.record() as counts:
    value = source + 1
    value += 1
    event = torch.npu.Event()
    event.record()
    side.wait_event(event)
    event.synchronize()
    side.synchronize()
    torch.npu.synchronize()
    source.cpu()
    truth.to(device)
out["mixed"] = counts.__dict__ | {
    "copies": [entry.__dict__ for entry in counts.copies],
    "device_allocations": [entry.__dict__ for entry in counts.device_allocations],
    "kernel_count": counts.kernel_count,
}
out["table"] = counts.table()

# Pageable memory: asynchronous by name, counted as such, and the data is there at once.
pageable = torch.zeros(COUNT, dtype=torch.int32)
with ledger.record() as counts:
    pageable.copy_(source, non_blocking=True)
    _ = torch.npu.current_stream().npu_stream
    right = torch.equal(pageable, truth)
out["pageable"] = [
    right,
    counts.copy_count("device_to_host", asynchronous=True, pinned=False),
    counts.copy_count(pinned=True),
]

# Times of events.
start, end, plain = (
    torch.npu.Event(enable_timing=True),
    torch.npu.Event(enable_timing=True),
    torch.npu.Event(),
)
begin = time.monotonic()
start.record()
for _ in range(20):
    value = value + 1
end.record()
plain.record()
torch.npu.synchronize()
out["elapsed ms"] = [start.elapsed_time(end), (time.monotonic() - begin) * 1e3]
try:
    start.elapsed_time(plain)
except RuntimeError as error:
    out["elapsed without timing"] = str(error)
out["never recorded"] = [torch.npu.Event().query(), torch.npu.Event().synchronize()]

# Limits and faults.
with faults("device_memory=64MiB"):
    try:
        torch.empty(128 << 20, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        out["out of memory"] = str(error)
    out["inside"] = faults_in_force()
out["after"] = faults_in_force()
out["memory again"] = torch.empty(128 << 20, dtype=torch.uint8, device=device).numel()
with ledger.record() as counts:
    torch.empty(64 << 20, dtype=torch.uint8, pin_memory=True)
out["pinned allocation"] = [counts.host_allocations, counts.host_allocation_bytes]
for text in (
    "hccl_error_at=0",
    "rank_late=1",
    "device_memory=3XB",
    "hccl_error_at=1;hccl_error_at=2",
    "speed=9",
):
    try:
        set_faults(text)
    except ValueError as error:
        out.setdefault("fault errors", []).append(str(error))
try:
    set_schedule(-1)
except ValueError as error:
    out["seed"] = str(error)

with ledger.record(timeline=sys.argv[1] + ".block"):
    value = source + 1
    torch.npu.synchronize()
write_timeline(sys.argv[1] + ".all")
print(json.dumps(out))
