"""One rank that calls the simulated libhccl directly, without torch, also as torch_npu never would.

`hccl_calls_worker.py SCENARIO RANK WORLD FOLDER` runs one function below and prints what it found as JSON.
"""

from __future__ import annotations

import ctypes
import json
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCENARIO, RANK, WORLD, FOLDER = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
acl, hccl = ctypes.CDLL("libascendcl.so"), ctypes.CDLL("libhccl.so")
acl.aclGetRecentErrMsg.restype = ctypes.c_char_p
INT32, FP32, INT64 = 2, 4, 5
SUM, MAX = 0, 2
Pointer = ctypes.c_void_p


def check(code: int, what: str) -> None:
    if code != 0:
        raise RuntimeError(f"{what} returned {code}: {message()}")


def message() -> str:
    return (acl.aclGetRecentErrMsg() or b"").decode()


def stream() -> Pointer:
    made = Pointer()
    check(acl.aclrtCreateStream(ctypes.byref(made)), "aclrtCreateStream")
    return made


def device(values: list[int], length: int | None = None) -> Pointer:
    """Device memory with these int32 values."""
    data = struct.pack(f"{len(values)}i", *values)
    pointer, size = Pointer(), 4 * max(len(values), length or 0, 1)
    check(acl.aclrtMalloc(ctypes.byref(pointer), ctypes.c_size_t(size), 0), "aclrtMalloc")
    check(acl.aclrtMemcpy(pointer, ctypes.c_size_t(size), data, ctypes.c_size_t(len(data)), 1), "aclrtMemcpy")
    return pointer


def host(pointer: Pointer, count: int) -> list[int]:
    data = ctypes.create_string_buffer(4 * count)
    size = ctypes.c_size_t(4 * count)
    check(acl.aclrtMemcpy(data, size, pointer, size, 2), "aclrtMemcpy")
    return list(struct.unpack(f"{count}i", data.raw))


def counts(*values: int) -> Any:
    return (ctypes.c_uint64 * len(values))(*values)


def root_info(name: str) -> bytes:
    """Made by rank 0 and read by the others, as a store would hand it round."""
    path = FOLDER / name
    if RANK == 0:
        made = ctypes.create_string_buffer(4108)
        check(hccl.HcclGetRootInfo(made), "HcclGetRootInfo")
        path.with_suffix(".part").write_bytes(made.raw)
        path.with_suffix(".part").rename(path)
    while not path.exists():
        time.sleep(0.01)
    return path.read_bytes()


def communicator(name: str = "world", world: int = WORLD, rank: int = RANK) -> Pointer:
    made = Pointer()
    check(hccl.HcclCommInitRootInfo(world, root_info(name), rank, ctypes.byref(made)), "HcclCommInitRootInfo")
    return made


def all_reduce(comm: Pointer, on: Pointer, count: int = 4, dtype: int = INT32, op: int = SUM) -> Any:
    buffer = device([RANK + 1] * 2 * count)
    return hccl.HcclAllReduce(buffer, buffer, ctypes.c_uint64(count), dtype, op, comm, on)


def all_gather(comm: Pointer, on: Pointer, count: int = 4) -> Any:
    return hccl.HcclAllGather(
        device([RANK] * count), device([], WORLD * count), ctypes.c_uint64(count), INT32, comm, on
    )


def broadcast(comm: Pointer, on: Pointer, root: int) -> Any:
    return hccl.HcclBroadcast(device([RANK] * 4), ctypes.c_uint64(4), INT32, root, comm, on)


def all_to_all_v(comm: Pointer, on: Pointer, sends: list[int], receives: list[int]) -> Any:
    def offsets(lengths: list[int]) -> Any:
        return counts(*[sum(lengths[:i]) for i in range(len(lengths))])

    out, into = device([RANK] * sum(sends)), device([], sum(receives))
    return hccl.HcclAlltoAllV(
        out,
        counts(*sends),
        offsets(sends),
        INT32,
        into,
        counts(*receives),
        offsets(receives),
        INT32,
        comm,
        on,
    )


def send(comm: Pointer, on: Pointer, to: int, count: int = 4) -> Any:
    return hccl.HcclSend(device([RANK] * count), ctypes.c_uint64(count), INT32, to, comm, on)


def receive(comm: Pointer, on: Pointer, source: int, count: int = 4, into: Pointer | None = None) -> Any:
    return hccl.HcclRecv(into or device([], count), ctypes.c_uint64(count), INT32, source, comm, on)


def outcome(comm: Pointer, on: Pointer) -> dict[str, Any]:
    """How the stream ends: its code, its message, the error the communicator reports, and after how long."""
    begun = time.monotonic()
    code = acl.aclrtSynchronizeStream(on)
    error = ctypes.c_int()
    text = message()
    check(hccl.HcclGetCommAsyncError(comm, ctypes.byref(error)), "HcclGetCommAsyncError")
    return {"code": code, "message": text, "async": error.value, "seconds": time.monotonic() - begun}


# What rank 0 and rank 1 do where they should do the same. (comm, stream) -> None
MISMATCHES: dict[str, tuple[Callable[[Pointer, Pointer], int], Callable[[Pointer, Pointer], int]]] = {
    "operation": (all_reduce, all_gather),
    "count": (lambda c, s: all_reduce(c, s, 4), lambda c, s: all_reduce(c, s, 5)),
    "dtype": (lambda c, s: all_reduce(c, s, 4, INT32), lambda c, s: all_reduce(c, s, 4, FP32)),
    "size": (lambda c, s: all_reduce(c, s, 4, INT32), lambda c, s: all_reduce(c, s, 2, INT64)),
    "reduction": (lambda c, s: all_reduce(c, s, op=SUM), lambda c, s: all_reduce(c, s, op=MAX)),
    "root": (lambda c, s: broadcast(c, s, 0), lambda c, s: broadcast(c, s, 1)),
    "uneven": (
        lambda c, s: all_to_all_v(c, s, [1, 2], [1, 3]),
        lambda c, s: all_to_all_v(c, s, [4, 0], [2, 0]),
    ),
    "order": (
        lambda c, s: all_reduce(c, s) or hccl.HcclBarrier(c, s),
        lambda c, s: hccl.HcclBarrier(c, s) or all_reduce(c, s),
    ),
    "send_length": (lambda c, s: send(c, s, 1, 4), lambda c, s: receive(c, s, 0, 5)),
    "both_send": (
        lambda c, s: send(c, s, 1) or receive(c, s, 1),
        lambda c, s: send(c, s, 0) or receive(c, s, 0),
    ),
    "both_receive": (lambda c, s: receive(c, s, 1), lambda c, s: receive(c, s, 0)),
    "send_and_collective": (lambda c, s: send(c, s, 1), all_reduce),
    "never_comes": (all_reduce, lambda c, s: 0),
    "destroys": (all_reduce, lambda c, s: hccl.HcclCommDestroy(c)),
}


def mismatch(kind: str) -> dict[str, Any]:
    comm, on = communicator(), stream()
    check(all_gather(comm, on), "a collective that fits")
    check(acl.aclrtSynchronizeStream(on), "a collective that fits")
    check(MISMATCHES[kind][RANK](comm, on), kind)
    if RANK == 1 and kind == "destroys":
        time.sleep(1)
        return {}
    if RANK == 1 and kind == "never_comes":
        time.sleep(2)
    return outcome(comm, on)


def circle_of_three() -> dict[str, Any]:
    """Each of three ranks waits for the next one to send."""
    comm, on = communicator(), stream()
    check(receive(comm, on, (RANK + 1) % 3), "HcclRecv")
    return outcome(comm, on)


def correct() -> dict[str, Any]:
    """Calls that torch_npu does not make, or makes only with other settings."""
    comm, on = communicator(), stream()
    matrix = [1, 2, 0, 3]  # row: who sends
    into = device([], 8)
    sent = device([10 * RANK + i for i in range(4)])
    check(hccl.HcclAlltoAllVC(sent, counts(*matrix), INT32, into, INT32, comm, on), "HcclAlltoAllVC")
    check(acl.aclrtSynchronizeStream(on), "HcclAlltoAllVC")
    result: dict[str, Any] = {"all_to_all_vc": host(into, [1, 5][RANK])}

    scattered = device([], 2)
    check(
        hccl.HcclScatter(device([5, 6, 7, 8]), scattered, ctypes.c_uint64(2), INT32, 1, comm, on),
        "HcclScatter",
    )
    check(hccl.HcclBarrier(comm, on), "HcclBarrier")

    # Sends before receives, in a group; one of them to itself.
    grouped, own, other = device([RANK] * 3), device([], 3), device([], 3)
    check(hccl.HcclGroupStart(), "HcclGroupStart")
    for peer, place in ((RANK, own), (1 - RANK, other)):
        check(hccl.HcclSend(grouped, ctypes.c_uint64(3), INT32, peer, comm, on), "HcclSend")
        check(receive(comm, on, peer, 3, place), "HcclRecv")
    check(hccl.HcclGroupEnd(), "HcclGroupEnd")

    # Two streams, one communicator: the operations keep the order of the calls.
    second, first, later = stream(), device([RANK]), device([], 2)
    check(hccl.HcclAllReduce(first, first, ctypes.c_uint64(1), INT32, SUM, comm, on), "HcclAllReduce")
    check(hccl.HcclAllGather(device([RANK]), later, ctypes.c_uint64(1), INT32, comm, second), "HcclAllGather")
    check(acl.aclrtSynchronizeStream(second), "second stream")
    check(acl.aclrtSynchronizeStream(on), "first stream")
    result |= {"scatter": host(scattered, 2), "own": host(own, 3), "other": host(other, 3)}
    result |= {"sum": host(first, 1), "gathered": host(later, 2)}

    size, rank, name = ctypes.c_uint32(), ctypes.c_uint32(), ctypes.create_string_buffer(128)
    check(hccl.HcclGetRankSize(comm, ctypes.byref(size)), "HcclGetRankSize")
    check(hccl.HcclGetRankId(comm, ctypes.byref(rank)), "HcclGetRankId")
    check(hccl.HcclGetCommName(comm, name), "HcclGetCommName")
    check(hccl.HcclCommDestroy(comm), "HcclCommDestroy")
    return result | {"size": size.value, "rank": rank.value, "named": bool(name.value)}


def wrong_arguments() -> dict[str, Any]:
    """Each call must be refused at once, with a message of its own."""
    comm, on = communicator(), stream()
    null, good = Pointer(), device([0] * 8)
    on_host = (ctypes.c_int32 * 8)()
    four = ctypes.c_uint64(4)
    config = ctypes.create_string_buffer(2240)
    zero_buffer = struct.pack("<QIIQI", 2240, 0xF0F0F0F0, 10, 0, 0) + bytes(2212)
    made = Pointer()
    attempts: dict[str, Callable[[], int]] = {
        "null communicator": lambda: hccl.HcclAllReduce(good, good, four, INT32, SUM, null, on),
        "unknown communicator": lambda: hccl.HcclAllReduce(good, good, four, INT32, SUM, Pointer(4096), on),
        "null buffer": lambda: hccl.HcclAllReduce(null, good, four, INT32, SUM, comm, on),
        "host buffer": lambda: hccl.HcclAllReduce(on_host, good, four, INT32, SUM, comm, on),
        "data type": lambda: hccl.HcclAllReduce(good, good, four, 99, SUM, comm, on),
        "reduction": lambda: hccl.HcclAllReduce(good, good, four, INT32, 9, comm, on),
        "root": lambda: hccl.HcclBroadcast(good, four, INT32, 7, comm, on),
        "itself": lambda: hccl.HcclSend(good, four, INT32, RANK, comm, on),
        "group end": lambda: hccl.HcclGroupEnd(),
        "all-to-all counts": lambda: hccl.HcclAlltoAll(good, four, INT32, good, ctypes.c_uint64(2), INT32, comm, on),
        "root information": lambda: hccl.HcclCommInitRootInfo(1, bytes(4108), 0, ctypes.byref(made)),
        "rank": lambda: hccl.HcclCommInitRootInfo(2, root_info("world"), 2, ctypes.byref(made)),
        "empty configuration": lambda: hccl.HcclCommInitRootInfoConfig(
            1, root_info("other"), 0, config, ctypes.byref(made)
        ),
        "buffer of 0 MB": lambda: hccl.HcclCommInitRootInfoConfig(
            1, root_info("other"), 0, zero_buffer, ctypes.byref(made)
        ),
    }
    return {name: [attempt(), message()] for name, attempt in attempts.items()}


def joins(other_world: int, same_rank: bool) -> dict[str, Any]:
    """Rank 1 joins with another number of ranks, or as rank 0 again."""
    made = Pointer()
    world, rank = (other_world, RANK) if RANK == 1 else (2, 0)
    code = hccl.HcclCommInitRootInfo(world, root_info("world"), 0 if same_rank else rank, ctypes.byref(made))
    return {"code": code, "message": message()}


def main() -> None:
    check(acl.aclInit(None), "aclInit")
    check(acl.aclrtSetDevice(RANK), "aclrtSetDevice")
    if SCENARIO in MISMATCHES:
        result = mismatch(SCENARIO)
    elif SCENARIO == "joins_with_other_world":
        result = joins(3, False)
    elif SCENARIO == "joins_twice":
        result = joins(2, True)
    else:
        result = globals()[SCENARIO]()
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
