"""gloo refuses parts of unequal size; what the plugin puts in its place on the cpu gives the plain answer, exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from distributed.launcher import RankPool, World
from distributed.layers import STOCK, enabled

pytestmark = pytest.mark.megatron

WORLD = World(1, 1)  # the jobs use the default group; Megatron is there to be patched
LENGTHS = [(2, 2, 2, 2), (3, 1, 4, 2), (0, 5, 1, 0)]


def values(rank: int, rows: int) -> torch.Tensor:
    """Other numbers on every rank; small integers, so that sums are exact in any order."""
    return torch.arange(rows * 3, dtype=torch.float32).reshape(rows, 3) + 100 * rank


def gather(lengths: tuple[int, ...], strided: bool) -> list[list[Any]]:
    with enabled(STOCK):
        rank = dist.get_rank()
        own = values(rank, lengths[rank])
        if strided:
            own = own.t().contiguous().t()
        parts = [torch.full((rows, 3), -1.0) for rows in lengths]
        dist.all_gather(parts, own)
        return [part.tolist() for part in parts]


def reduce_scatter(lengths: tuple[int, ...]) -> list[Any]:
    with enabled(STOCK):
        rank = dist.get_rank()
        output = torch.full((lengths[rank], 3), -1.0)
        dist.reduce_scatter(output, list(torch.split(values(rank, sum(lengths)), list(lengths))))
        return output.tolist()


def refused() -> list[str]:
    """What is not offered for unequal parts, as messages."""
    told = []
    parts = [torch.zeros(rows) for rows in (1, 2, 3, 4)]
    with enabled(STOCK):
        for call in (
            lambda: dist.all_gather(parts, parts[dist.get_rank()], async_op=True),
            lambda: dist.reduce_scatter(parts[dist.get_rank()], parts, async_op=True),
            lambda: dist.reduce_scatter(parts[dist.get_rank()], parts, op=dist.ReduceOp.MAX),
        ):
            try:
                call()
            except Exception as error:
                told.append(f"{type(error).__name__}: {error}")
    return told


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_all_gather(ranks: RankPool, lengths: tuple[int, ...], strided: bool):
    expected = [values(rank, rows).tolist() for rank, rows in enumerate(lengths)]
    assert ranks.run(gather, lengths, strided, world=WORLD) == [expected] * 4


@pytest.mark.parametrize("lengths", LENGTHS)
def test_reduce_scatter(ranks: RankPool, lengths: tuple[int, ...]):
    found = ranks.run(reduce_scatter, lengths, world=WORLD)
    row = 0
    for rank, rows in enumerate(lengths):
        one = [[4.0 * (3 * at + column) + 600.0 for column in range(3)] for at in range(row, row + rows)]
        assert found[rank] == one
        row += rows


def test_what_is_refused(ranks: RankPool):
    for told in ranks.run(refused, world=WORLD):
        assert len(told) == 3
        assert all(one.startswith("UnsupportedError: ") for one in told), told
