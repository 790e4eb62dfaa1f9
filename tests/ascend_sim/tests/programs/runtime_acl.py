"""Semantics of the C interface that torch_npu does not show. Prints one JSON document."""

from __future__ import annotations

import ctypes
import json
import time
from typing import Any

import torch
from acl import (
    DEFAULT,
    DEVICE_TO_DEVICE,
    DEVICE_TO_HOST,
    HOST_TO_DEVICE,
    SYNC,
    TIME_LINE,
    acl,
    device_bytes,
    device_memory,
    elapsed_ms,
    event,
    event_done,
    host_bytes,
    message,
    pinned_memory,
    stream,
)

from tests.ascend_sim import set_faults, set_schedule

out: dict[str, Any] = {}
torch.npu.set_device(0)
SIZE = 64
POISON = bytes([0xA5]) * SIZE


def synchronised(handle: int) -> tuple[int, str]:
    code = acl.aclrtSynchronizeStream(handle)
    return code, message()


# Fresh and freed memory.
memory, pinned = device_memory(SIZE), pinned_memory(SIZE)
out["fresh device memory is poison"] = device_bytes(memory, SIZE) == POISON
out["fresh pinned memory is poison"] = host_bytes(pinned, SIZE) == POISON
out["pinned memory is aligned to 64"] = pinned % 64 == 0

# An event that was never recorded is complete, and waiting for it waits for nothing.
never, first, second = event(), stream(), stream()
out["never recorded"] = [
    event_done(never),
    acl.aclrtSynchronizeEvent(never),
    acl.aclrtStreamWaitEvent(first, never),
    acl.aclrtSynchronizeStream(first),
]

# A wait waits for the record that was the latest when it was called, not for a later one.
set_schedule(1, hold_us=5_000_000)
mine = event()
acl.aclrtRecordEvent(mine, first)
acl.aclrtStreamWaitEvent(second, mine)
acl.aclrtMemsetAsync(memory, SIZE, 7, SIZE, second)
acl.aclrtMemsetAsync(memory, SIZE, 1, SIZE, first)  # later on the first stream, held back for seconds
acl.aclrtRecordEvent(mine, first)
begin = time.monotonic()
code = acl.aclrtSynchronizeStream(second)
out["a wait keeps its record"] = [
    code,
    time.monotonic() - begin < 2,
    device_bytes(memory, SIZE) == bytes([7]) * SIZE,
    event_done(mine),
]
out["synchronising reaches through the latest record"] = [
    acl.aclrtSynchronizeEvent(mine),
    event_done(mine),
    device_bytes(memory, SIZE) == bytes([1]) * SIZE,
]

# Query does not wait and does not hurry anything.
acl.aclrtRecordEvent(mine, first)
out["query before it is done"] = event_done(mine)
acl.aclrtSynchronizeEvent(mine)
set_schedule(1, hold_us=2000)

# Events made without a flag lack what the flag is for.
timed, untimed, bare = event(SYNC | TIME_LINE), event(SYNC), event(0)
out["elapsed, never recorded"] = elapsed_ms(timed, timed)[0]
acl.aclrtRecordEvent(timed, first)
acl.aclrtRecordEvent(untimed, first)
acl.aclrtSynchronizeStream(first)
out["elapsed, no time line"] = [elapsed_ms(timed, untimed)[0], message()]
out["wait without sync flag"] = acl.aclrtStreamWaitEvent(first, bare)
later = event(SYNC | TIME_LINE)
time.sleep(0.02)
acl.aclrtRecordEvent(later, first)
acl.aclrtSynchronizeEvent(later)
out["elapsed ms"] = elapsed_ms(timed, later)

# Destroying: a stream ends its work first, a forced one drops it, an event's records live on.
third = stream()
acl.aclrtMemsetAsync(memory, SIZE, 3, SIZE, third)
out["destroy waits"] = [acl.aclrtDestroyStream(third), device_bytes(memory, SIZE) == bytes([3]) * SIZE]
set_schedule(1, hold_us=5_000_000)
fourth, dropped = stream(), event()
acl.aclrtMemsetAsync(memory, SIZE, 4, SIZE, fourth)
acl.aclrtRecordEvent(dropped, fourth)
out["force drops"] = [acl.aclrtDestroyStreamForce(fourth), device_bytes(memory, SIZE) == bytes([3]) * SIZE]
out["nobody waits for what was dropped"] = acl.aclrtSynchronizeEvent(dropped) != 0
fifth, sixth, gone = stream(), stream(), event()
acl.aclrtMemsetAsync(memory, SIZE, 5, SIZE, fifth)
acl.aclrtRecordEvent(gone, fifth)
acl.aclrtStreamWaitEvent(sixth, gone)
acl.aclrtDestroyEvent(gone)
acl.aclrtMemcpyAsync(pinned, SIZE, memory, SIZE, DEVICE_TO_HOST, sixth)
out["a destroyed event's wait holds"] = [
    acl.aclrtSynchronizeStream(sixth),
    host_bytes(pinned, SIZE) == bytes([5]) * SIZE,
]
message()
out["stale handles"] = [
    acl.aclrtSynchronizeStream(fourth),
    message(),
    acl.aclrtSynchronizeEvent(gone),
    message(),
]

# Copies: poison until done; pageable memory makes the call wait; the source is read late.
set_schedule(2, hold_us=5_000_000)
acl.aclrtMemset(memory, SIZE, 9, SIZE)
acl.aclrtMemcpyAsync(pinned, SIZE, memory, SIZE, DEVICE_TO_HOST, first)
before = host_bytes(pinned, SIZE)
acl.aclrtSynchronizeStream(first)
out["pinned copy"] = [before == POISON, host_bytes(pinned, SIZE) == bytes([9]) * SIZE]
pageable = ctypes.create_string_buffer(SIZE)
code = acl.aclrtMemcpyAsync(pageable, SIZE, memory, SIZE, DEVICE_TO_HOST, first)
out["pageable copy waits"] = [code, pageable.raw == bytes([9]) * SIZE]
ctypes.memset(pinned, 1, SIZE)
acl.aclrtMemcpyAsync(memory, SIZE, pinned, SIZE, HOST_TO_DEVICE, first)
ctypes.memset(pinned, 2, SIZE)  # too early
acl.aclrtSynchronizeStream(first)
out["a source overwritten too early"] = device_bytes(memory, SIZE) == bytes([2]) * SIZE
other = ctypes.create_string_buffer(SIZE)
out["host to host"] = acl.aclrtMemcpyAsync(other, SIZE, pageable, SIZE, 0, first)
out["refused copies"] = [
    acl.aclrtMemcpy(pageable, SIZE, memory, SIZE, HOST_TO_DEVICE),
    acl.aclrtMemcpy(pageable, SIZE, memory, SIZE + 1, DEVICE_TO_HOST),
    acl.aclrtMemcpy(memory, 2 * SIZE, ctypes.create_string_buffer(2 * SIZE), 2 * SIZE, HOST_TO_DEVICE),
    acl.aclrtMemcpy(memory, SIZE, memory, SIZE, 9),
]
out["default kind"] = acl.aclrtMemcpy(pageable, SIZE, memory, SIZE, DEFAULT)
message()

# What is freed before a copy runs is an error of that stream from then on.
doomed, victim = device_memory(SIZE), stream()
acl.aclrtMemcpyAsync(memory, SIZE, doomed, SIZE, DEVICE_TO_DEVICE, victim)
acl.aclrtFree(doomed)
out["freed source"] = synchronised(victim)
out["the error stays"] = acl.aclrtSynchronizeStream(victim)
message()
doomed, victim = pinned_memory(SIZE), stream()
acl.aclrtMemcpyAsync(doomed, SIZE, memory, SIZE, DEVICE_TO_HOST, victim)
acl.aclrtFreeHost(doomed)
out["freed pinned target"] = synchronised(victim)
follower, hand_over = stream(), event()
acl.aclrtRecordEvent(hand_over, victim)
acl.aclrtStreamWaitEvent(follower, hand_over)
out["who waits for a failed stream fails"] = acl.aclrtSynchronizeStream(follower)
message()
out["free twice"] = [acl.aclrtFree(memory), acl.aclrtFree(memory), message()]
out["message is cleared when read"] = message()

# Limits.
set_schedule(2, hold_us=2000)
set_faults("device_memory=1MiB;host_memory=1MiB;pinned_alloc_fails_at=2")
handle = ctypes.c_void_p()
out["device out of memory"] = [acl.aclrtMalloc(ctypes.byref(handle), 2 << 20, 0), handle.value, message()]
out["pinned out of memory"] = [acl.aclrtMallocHost(ctypes.byref(handle), 2 << 20), handle.value]
out["second pinned allocation"] = [
    acl.aclrtMallocHost(ctypes.byref(handle), 64),
    acl.aclrtMallocHost(ctypes.byref(handle), 64),
]
set_faults("")
try:
    set_faults("no_such_fault=1")
except ValueError as error:
    out["unknown fault"] = str(error)

# Streams that time out, and symbols that must not be reached.
seventh = stream()
set_faults("event_never_completes=1")
acl.aclrtRecordEvent(mine, seventh)
set_faults("")
begin = time.monotonic()
out["stream timeout"] = [acl.aclrtSynchronizeStreamWithTimeout(seventh, 100), time.monotonic() - begin < 0.9]
out["task timeout"] = synchronised(seventh)
out["not simulated"] = [acl.aclrtMapMem(0, 0, 0, 0, 0), message(), acl.rtKernelLaunch()]
message()
out["missing operator"] = [acl.aclopCompileAndExecute(ctypes.c_char_p(b"Sinh")), message()]
print(json.dumps(out))
