"""Several host threads use streams, events and copies at once, for sanitizers; without torch."""

from __future__ import annotations

import random
import sys
import threading

from acl import (
    DEVICE_TO_DEVICE,
    DEVICE_TO_HOST,
    HOST_TO_DEVICE,
    acl,
    device_memory,
    event,
    event_done,
    host_bytes,
    message,
    pinned_memory,
    stream,
)

from tests.ascend_sim import ledger, library, set_schedule

SIZE, ROUNDS, THREADS = 256, int(sys.argv[1]), 4
wrong: list[str] = []
records = [0] * THREADS


def host_thread(number: int) -> None:
    draw = random.Random(number)
    assert acl.aclrtSetDevice(number % 2) == 0, message()
    first, second = device_memory(SIZE), device_memory(SIZE)
    source, target = pinned_memory(SIZE), pinned_memory(SIZE)
    upload, download = stream(), stream()
    for turn in range(ROUNDS):
        value = (number * 37 + turn) % 255
        acl.aclrtMemset(source, SIZE, value, SIZE)
        handed_over, done = event(), event()
        acl.aclrtMemcpyAsync(first, SIZE, source, SIZE, HOST_TO_DEVICE, upload)
        acl.aclrtMemcpyAsync(second, SIZE, first, SIZE, DEVICE_TO_DEVICE, upload)
        acl.aclrtRecordEvent(handed_over, upload)
        acl.aclrtStreamWaitEvent(download, handed_over)
        acl.aclrtMemcpyAsync(target, SIZE, second, SIZE, DEVICE_TO_HOST, download)
        acl.aclrtRecordEvent(done, download)
        records[number] += 2
        acl.aclrtDestroyEvent(handed_over)
        if draw.random() < 0.3:
            event_done(done)
        how = draw.randrange(4)
        if how == 0:
            acl.aclrtSynchronizeEvent(done)
        elif how == 1:
            acl.aclrtSynchronizeStream(download)
        elif how == 2:
            acl.aclrtSynchronizeDevice()
        else:
            acl.aclrtDestroyStream(download)
            download = stream()
        if host_bytes(target, SIZE) != bytes([value]) * SIZE:
            wrong.append(f"thread {number}, round {turn}, way {how}")
        acl.aclrtDestroyEvent(done)
        if draw.random() < 0.2:
            victim = stream()
            for _ in range(5):
                acl.aclrtMemsetAsync(second, SIZE, 1, SIZE, victim)
            acl.aclrtDestroyStreamForce(victim)
            acl.aclrtSynchronizeDevice()  # a memset that had begun has ended
        if draw.random() < 0.2:
            acl.aclrtFree(first)
            first = device_memory(SIZE)


assert acl.aclInit(0) == 0, message()
set_schedule(1, delay_us=20, hold_us=200)
library.running().ascend_sim_mark()
threads = [threading.Thread(target=host_thread, args=(number,)) for number in range(THREADS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
counts = ledger._parse(library.text(library.running(), "ascend_sim_ledger"))
assert counts.event_records == sum(records), (counts.event_records, records)
assert counts.copy_count() == 3 * ROUNDS * THREADS, counts.table()
print("wrong:", wrong)
# Ends with work still queued.
acl.aclrtSetDevice(0)
last, memory = stream(), device_memory(SIZE)
for _ in range(1000):
    acl.aclrtMemsetAsync(memory, SIZE, 1, SIZE, last)
sys.exit(1 if wrong else 0)
