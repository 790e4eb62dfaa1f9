"""A stream is destroyed by force in the middle of a task: who waits for the device waits for that task."""

from __future__ import annotations

import json
import time

from acl import acl, device_bytes, device_memory, message, stream

from tests.ascend_sim import set_schedule

BYTES = 1 << 30  # a memset of this takes long enough to be caught in the middle
assert acl.aclInit(0) == 0, message()
assert acl.aclrtSetDevice(0) == 0, message()
set_schedule(1, delay_us=0, hold_us=0)
memory = device_memory(BYTES)
victim = stream()
for value in (1, 2, 3):
    acl.aclrtMemsetAsync(memory, BYTES, value, BYTES, victim)
while device_bytes(memory, 1) != b"\x01":  # the first has begun
    time.sleep(0)
begun_only = device_bytes(memory + BYTES - 1, 1) != b"\x01"
acl.aclrtDestroyStreamForce(victim)
code = acl.aclrtSynchronizeDevice()
last = device_bytes(memory + BYTES - 1, 1)[0]
print(json.dumps({"caught in the middle": begun_only, "last byte": last, "code": code}))
