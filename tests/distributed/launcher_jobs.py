"""Jobs for the launcher's own tests. Nothing heavy is imported here: the processes come and go."""

from __future__ import annotations

import os
import sys
import time
from typing import Any


def gather(word: str) -> list[str]:
    import torch.distributed as dist

    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, f"{word} {dist.get_rank()}")
    return every


def raise_in_a_group(rank: int) -> None:
    import torch.distributed as dist

    if dist.get_rank() == rank:
        raise ValueError(f"a broken rank {rank}")


def collective_without(rank: int) -> None:
    import torch
    import torch.distributed as dist

    if dist.get_rank() == rank:
        raise ValueError("did not come")
    dist.all_reduce(torch.ones(1))


def hang_one_of(processes: list[int]) -> None:
    if os.getpid() == processes[1]:
        waiting_for_godot()


def waiting_for_godot() -> None:
    time.sleep(600)


def kill_one_of(processes: list[int]) -> None:
    if os.getpid() == processes[1]:
        os._exit(7)


def pid() -> int:
    return os.getpid()


def has_torch() -> bool:
    return "torch" in sys.modules


def speak_and_raise() -> None:
    print("last words", flush=True)
    raise ValueError


def no_pickle() -> Any:
    return lambda: None


def leave_enabled() -> None:
    import mindspeed_moe

    mindspeed_moe.enable({"enabled": False})
