"""One rank of the HCCL tests: real torch_npu and torch.distributed on the simulated device.

`hccl_worker.py SCENARIO` runs the function `scenario_SCENARIO` and prints "done SCENARIO" when all held.
RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set by the test.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch_npu

from tests.ascend_sim import clear_faults, ledger, set_faults

npu: Any = torch_npu.npu

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)
MOVED = (*FLOATS, *INTEGERS, torch.uint8, torch.bool, torch.float64)
REDUCTIONS: dict[str, tuple[dist.ReduceOp.RedOpType, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "sum": (dist.ReduceOp.SUM, torch.add),
    "prod": (dist.ReduceOp.PRODUCT, torch.mul),
    "max": (dist.ReduceOp.MAX, torch.maximum),
    "min": (dist.ReduceOp.MIN, torch.minimum),
}


def values(rank: int, count: int, dtype: torch.dtype, salt: int = 0) -> torch.Tensor:
    """[count] numbers on the host that every rank can work out for every other rank."""
    generator = torch.Generator().manual_seed(1000 * salt + rank)
    if dtype.is_floating_point:
        return torch.randn(count, generator=generator, dtype=torch.float32).to(dtype)
    low, high = (0, 2) if dtype is torch.bool else (0, 100) if dtype is torch.uint8 else (-50, 50)
    return torch.randint(low, high, (count,), generator=generator).to(dtype)


def on_device(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("npu")


def empty(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(count, dtype=dtype, device="npu")


def same(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Bit for bit."""
    host = found.cpu()
    if not torch.equal(host, expected):
        raise AssertionError(f"rank {RANK}, {what}: found {host[:8]}, expected {expected[:8]} ...")


def reduced(parts: list[torch.Tensor], operation: str) -> torch.Tensor:
    """The reduction in rank order, rounded to the type after every step, as the simulation promises it."""
    return functools.reduce(REDUCTIONS[operation][1], parts)


def splits(rank: int) -> list[int]:
    """How many elements `rank` sends to each rank: uneven, with zeros."""
    return [(3 * rank + 2 * to) % 5 * 300 for to in range(WORLD)]


def cut(tensor: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
    """The tensor in pieces of these lengths."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [tensor[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def backend(group: dist.ProcessGroup) -> Any:
    """torch_npu's own process group behind torch's."""
    return group._get_backend(torch.device("npu"))


def check_moves(dtype: torch.dtype, count: int) -> None:
    own, parts = values(RANK, count, dtype), [values(r, count, dtype) for r in range(WORLD)]
    out = empty(WORLD * count, dtype)
    dist.all_gather_into_tensor(out, on_device(own))
    same(out, torch.cat(parts), f"all-gather {dtype} {count}")

    root = WORLD - 1
    buffer = on_device(own)
    dist.broadcast(buffer, root)
    same(buffer, parts[root], f"broadcast {dtype} {count}")

    send = values(RANK, WORLD * count, dtype)
    out = empty(WORLD * count, dtype)
    dist.all_to_all_single(out, on_device(send))
    sent = [values(r, WORLD * count, dtype) for r in range(WORLD)]
    expected = torch.cat([part[RANK * count : (RANK + 1) * count] for part in sent])
    same(out, expected, f"all-to-all {dtype} {count}")


def check_uneven_all_to_all(dtype: torch.dtype) -> None:
    outgoing, incoming = splits(RANK), [splits(r)[RANK] for r in range(WORLD)]
    out = empty(sum(incoming), dtype)
    dist.all_to_all_single(out, on_device(values(RANK, sum(outgoing), dtype)), incoming, outgoing)
    expected = [cut(values(r, sum(splits(r)), dtype), splits(r))[RANK] for r in range(WORLD)]
    same(out, torch.cat(expected), f"uneven all-to-all {dtype}")


def check_reductions(dtype: torch.dtype, count: int) -> None:
    parts = [values(r, count, dtype) for r in range(WORLD)]
    long_parts = [values(r, WORLD * count, dtype) for r in range(WORLD)]
    for name, (operation, _) in REDUCTIONS.items():
        if name == "prod" and dtype in (torch.int16, torch.bfloat16):
            continue  # not supported by the real one either; see scenario_failing_calls
        buffer = on_device(parts[RANK])
        dist.all_reduce(buffer, operation)
        same(buffer, reduced(parts, name), f"all-reduce {name} {dtype} {count}")
        out = empty(count, dtype)
        dist.reduce_scatter_tensor(out, on_device(long_parts[RANK]), operation)
        expected = reduced([part[RANK * count : (RANK + 1) * count] for part in long_parts], name)
        same(out, expected, f"reduce-scatter {name} {dtype} {count}")
    buffer = on_device(parts[RANK])
    dist.reduce(buffer, 0, dist.ReduceOp.SUM)
    if RANK == 0:
        same(buffer, reduced(parts, "sum"), f"reduce {dtype} {count}")


def check_lists() -> None:
    """The forms with lists of tensors, equal and unequal."""
    parts = [values(r, 10, torch.float32) for r in range(WORLD)]
    outs = [empty(10) for _ in range(WORLD)]
    dist.all_gather(outs, on_device(parts[RANK]))
    same(torch.cat([out.cpu() for out in outs]), torch.cat(parts), "all-gather into a list")

    lengths = [5 + 3 * r for r in range(WORLD)]
    outs = [empty(n) for n in lengths]
    dist.all_gather(outs, on_device(values(RANK, lengths[RANK], torch.float32)))
    for r, out in enumerate(outs):
        same(out, values(r, lengths[r], torch.float32), "unequal all-gather into a list")

    out = empty(sum(lengths))
    torch_npu.distributed.all_gather_into_tensor_uneven(
        out, on_device(values(RANK, lengths[RANK], torch.float32)), lengths
    )
    same(out, torch.cat([values(r, n, torch.float32) for r, n in enumerate(lengths)]), "HcclAllGatherV")

    sent = [values(r, sum(lengths), torch.float32) for r in range(WORLD)]
    out = empty(lengths[RANK])
    torch_npu.distributed.reduce_scatter_tensor_uneven(out, on_device(sent[RANK]), lengths)
    same(out, reduced([cut(part, lengths)[RANK] for part in sent], "sum"), "HcclReduceScatterV")

    out = empty(10)
    scattered = [values(9, 10, torch.float32, salt=r) for r in range(WORLD)]
    dist.scatter(out, [on_device(part) for part in scattered] if RANK == 1 else None, src=1)
    same(out, scattered[RANK], "scatter")

    outs = [empty(splits(r)[RANK]) for r in range(WORLD)]
    pieces = [values(RANK, n, torch.float32, salt=to) for to, n in enumerate(splits(RANK))]
    dist.all_to_all(outs, [on_device(piece) for piece in pieces])
    for r, out in enumerate(outs):
        same(out, values(r, splits(r)[RANK], torch.float32, salt=RANK), "all-to-all of lists")


def check_point_to_point() -> None:
    following, previous = (RANK + 1) % WORLD, (RANK - 1) % WORLD
    for count in (1, 100_000):
        own, out = on_device(values(RANK, count, torch.float32)), empty(count)
        if RANK % 2 == 0:
            dist.send(own, following)
            dist.recv(out, previous)
        else:
            dist.recv(out, previous)
            dist.send(own, following)
        same(out, values(previous, count, torch.float32), f"send and receive of {count}")
        # Every rank sends before it receives: only a batch can do this.
        back = empty(count)
        works = dist.batch_isend_irecv([dist.P2POp(dist.isend, out, previous), dist.P2POp(dist.irecv, back, following)])
        for work in works:
            work.wait()
        same(back, values(RANK, count, torch.float32), f"batch of {count}")


def check_async_and_groups() -> None:
    pair = [RANK - RANK % 2, RANK - RANK % 2 + 1]
    groups = [dist.new_group([r, r + 1]) for r in range(0, WORLD, 2)]
    pairs, everyone = groups[RANK // 2], dist.new_group(list(range(WORLD)))
    for group in (
        pairs,
        everyone,
    ):  # communicators are made at the first use, and all ranks must make them in one order
        dist.barrier(group=group)
    sides = [npu.Stream() for _ in range(2)]
    for salt in range(3):
        a = on_device(values(RANK, 3000, torch.float32, salt))
        b = on_device(values(RANK, 3000, torch.float32, salt + 10))
        npu.synchronize()
        # Each from a stream of its own, in another order on odd ranks: the communicators are independent.
        calls = [(sides[0], a, pairs), (sides[1], b, everyone)]
        works = []
        for stream, tensor, group in calls if RANK % 2 == 0 else calls[::-1]:
            with npu.stream(stream):
                works.append((stream, dist.all_reduce(tensor, group=group, async_op=True)))
        for stream, work in works:
            with npu.stream(stream):
                work.wait()
        for stream in sides:
            stream.synchronize()
        same(a, reduced([values(r, 3000, torch.float32, salt) for r in pair], "sum"), "all-reduce of a pair")
        everybody = [values(r, 3000, torch.float32, salt + 10) for r in range(WORLD)]
        same(b, reduced(everybody, "sum"), "all-reduce of all")
    dist.barrier()


def check_ledger() -> None:
    """Bytes by communicator, and 2 x buffer of device memory from a communicator's first collective."""
    options = torch_npu._C._distributed_c10d.ProcessGroupHCCL.Options()
    options.hccl_config = {"hccl_buffer_size": 3}
    group = dist.new_group(list(range(WORLD)), pg_options=options)
    tensor = on_device(values(RANK, 100, torch.float32))
    npu.synchronize()
    with ledger.record() as before:
        pass
    assert not before.communicators, before.communicators
    with ledger.record() as counts:
        dist.all_reduce(tensor, group=group)
        dist.all_reduce(tensor, group=group)
        npu.synchronize()
    assert list(counts.communicators.values()) == [2 * 3 << 20], counts.table()
    entry = counts.collectives[0]
    assert (entry.operation, entry.count, entry.bytes) == ("HcclAllReduce", 2, 800), counts.table()
    assert entry.communicator in counts.communicators, counts.table()
    assert counts.notes["communicators_created"] == 1, counts.table()
    assert backend(group).get_hccl_comm_name(RANK) == entry.communicator, entry


def scenario_collectives() -> None:
    dist.init_process_group("hccl")
    for dtype in MOVED:
        for count in (1, 1500):
            check_moves(dtype, count)
        check_uneven_all_to_all(dtype)
    for dtype in (*FLOATS, *INTEGERS):
        check_reductions(dtype, 1300)
    check_reductions(torch.float32, 1)
    check_lists()
    check_point_to_point()
    check_async_and_groups()
    check_ledger()
    dist.destroy_process_group()


def expect_error(action: Callable[[], None], *words: str) -> None:
    """Runs something that must end with a RuntimeError whose text holds every one of the words."""
    begun = time.monotonic()
    try:
        action()
        npu.synchronize()
    except RuntimeError as error:
        missing = [word for word in words if word not in str(error)]
        print(f"rank {RANK} got after {time.monotonic() - begun:.1f} s: {error}", flush=True)
        if missing:
            raise AssertionError(f"rank {RANK}: the error does not say {missing}") from error
    else:
        raise AssertionError(f"rank {RANK}: no error, expected one with {words}")


def leave(scenario: str) -> None:
    """Ends without torch_npu's own farewell, which would wait on streams that are in error."""
    print(f"done {scenario}", flush=True)
    sys.stderr.flush()
    os._exit(0)


def scenario_failing_calls() -> None:
    """Errors of the call itself, after which the communicator is as good as before.

    With TASK_QUEUE_ENABLE=0: torch_npu's launching thread takes nothing more after its first error.
    """
    dist.init_process_group("hccl")
    tensor = on_device(values(RANK, 8, torch.float32))
    set_faults("hccl_error_at=2")
    dist.all_reduce(tensor)
    expect_error(lambda: dist.all_reduce(tensor), "fault hccl_error_at=2 makes this HcclAllReduce fail")
    set_faults("device_memory=1MiB")
    group = dist.new_group(list(range(WORLD)))
    expect_error(
        lambda: dist.all_reduce(tensor, group=group),
        "EL0004: Failed to allocate the buffers of communicator",
        "2 x 2 MB",
    )
    clear_faults()
    dist.all_reduce(tensor, group=group)
    parts = [values(r, 8, torch.float32) for r in range(WORLD)]
    once = reduced(parts, "sum")
    same(tensor, reduced([once] * WORLD, "sum"), "all-reduce after errors")
    expect_error(
        lambda: dist.all_reduce(on_device(values(RANK, 4, torch.int16)), dist.ReduceOp.PRODUCT),
        "prod of int16 is not supported on Atlas A2",
    )
    dist.destroy_process_group()


def scenario_mismatch() -> None:
    """Rank 0 sums, rank 1 gathers."""
    dist.init_process_group("hccl")
    tensor, out = on_device(values(RANK, 8, torch.float32)), empty(16)
    dist.all_reduce(tensor)
    npu.synchronize()

    def differ() -> None:
        if RANK == 0:
            dist.all_reduce(tensor)
        else:
            dist.all_gather_into_tensor(out, tensor)

    expect_error(
        differ,
        "rank 0: HcclAllReduce number 2, count 8, float32, sum",
        "rank 1: HcclAllGather number 2, count 8, float32",
    )
    leave("mismatch")


def check_large() -> None:
    """Messages of many rounds, with the default slots."""
    count = 1_500_001
    parts = [values(r, count, torch.float32) for r in range(WORLD)]
    buffer, out = on_device(parts[RANK]), empty(count)
    dist.all_reduce(buffer)
    same(buffer, reduced(parts, "sum"), "large all-reduce")
    if RANK == 0:
        dist.send(on_device(parts[0]), 1)
    else:
        dist.recv(out, 0)
        same(out, parts[0], "large receive")


def scenario_late() -> None:
    """Fault rank_late: the others wait for it, and the result is right; large messages after that."""
    begun = time.monotonic()
    dist.init_process_group("hccl")
    tensor = on_device(values(RANK, 8, torch.float32))
    dist.all_reduce(tensor)
    same(
        tensor,
        reduced([values(r, 8, torch.float32) for r in range(WORLD)], "sum"),
        "all-reduce with a late rank",
    )
    print(f"rank {RANK} took {time.monotonic() - begun:.1f} s", flush=True)
    check_large()
    dist.destroy_process_group()


def scenario_missing() -> None:
    """Rank 1 lives but never comes to the second collective."""
    dist.init_process_group("hccl")
    tensor = on_device(values(RANK, 8, torch.float32))
    dist.all_reduce(tensor)
    npu.synchronize()
    if RANK == 0:
        expect_error(lambda: dist.all_reduce(tensor), "rank 1 did not arrive within 2 s at HcclAllReduce number 2")
    else:
        time.sleep(5)
    leave("missing")


def scenario_dies_with_watchdog() -> None:
    """As a training run would see it, with torch_npu's watchdog at work."""
    dist.init_process_group("hccl")
    tensor = on_device(values(RANK, 8, torch.float32))
    for _ in range(10):
        dist.all_reduce(tensor)
    time.sleep(40)  # the watchdog is to end the process meanwhile
    leave("dies_with_watchdog")


if __name__ == "__main__":
    npu.set_device(RANK)
    globals()[f"scenario_{sys.argv[1]}"]()
    print(f"done {sys.argv[1]}", flush=True)
