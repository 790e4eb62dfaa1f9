"""Counting a routing map: all ways give the integers that plain loops give."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mindspeed_moe.preprocess.counts import COUNTS

Count = Callable[..., torch.Tensor]

pytestmark = pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS.keys())


def counted(count: Count, routing_map: torch.Tensor) -> list[int]:
    """Count into the middle of a larger buffer, whose ends must stay as they are."""
    experts = routing_map.shape[1]
    buffer = torch.full((experts + 2,), -7, dtype=torch.int32)
    count(routing_map, buffer[1:-1])
    assert (buffer[0], buffer[-1]) == (-7, -7)
    alone = count(routing_map)
    assert alone.dtype is torch.int64
    assert alone.tolist() == buffer[1:-1].tolist(), "without a buffer the counts are others"
    return buffer[1:-1].tolist()


def by_loops(rows: list[list[bool]], experts: int) -> list[int]:
    return [sum(1 for row in rows if row[expert]) for expert in range(experts)]


def test_a_map_to_count_by_hand(count: Count) -> None:
    routing_map = torch.tensor(
        [
            [True, False, True],
            [True, False, False],
            [False, False, True],
            [True, False, True],
        ]
    )
    assert counted(count, routing_map) == [3, 0, 3]


def test_no_tokens(count: Count) -> None:
    assert counted(count, torch.zeros(0, 5, dtype=torch.bool)) == [0] * 5
    assert counted(count, torch.zeros(0, 5000, dtype=torch.bool)) == [0] * 5000


@pytest.mark.parametrize("tokens", [1, 254, 255, 256, 257, 511, 65_025, 65_026, 65_279, 65_280, 65_536, 70_001])
@pytest.mark.parametrize("experts", [1, 3, 8])
def test_every_token_on_every_expert(count: Count, tokens: int, experts: int) -> None:
    """A byte holds 255: no lane may carry into its neighbour."""
    assert counted(count, torch.ones(tokens, experts, dtype=torch.bool)) == [tokens] * experts


@pytest.mark.parametrize("expert", [0, 3, 6])
def test_all_tokens_on_one_expert(count: Count, expert: int) -> None:
    routing_map = torch.zeros(3000, 7, dtype=torch.bool)
    routing_map[:, expert] = True
    assert counted(count, routing_map) == [3000 if index == expert else 0 for index in range(7)]


@pytest.mark.parametrize("experts", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 63, 64, 130])
@pytest.mark.parametrize("tokens", [1, 2, 7, 33, 300, 701])
def test_random_maps_against_loops(count: Count, tokens: int, experts: int) -> None:
    random = Random(f"{tokens} x {experts}")
    rows = [[random.random() < 0.3 for _ in range(experts)] for _ in range(tokens)]
    assert counted(count, torch.tensor(rows)) == by_loops(rows, experts)


def transposed(rows: Any) -> torch.Tensor:
    return torch.tensor([list(column) for column in zip(*rows, strict=True)]).t()


def every_other_row(rows: Any) -> torch.Tensor:
    return torch.tensor([row for row in rows for _ in range(2)])[::2]


def some_columns(rows: Any) -> torch.Tensor:
    return torch.tensor([[True, *row, True] for row in rows])[:, 1:-1]


@pytest.mark.parametrize("strided", [transposed, every_other_row, some_columns])
@pytest.mark.parametrize("tokens", [20, 900])
def test_a_map_that_is_not_contiguous(count: Count, strided: Callable[[Any], torch.Tensor], tokens: int) -> None:
    random = Random(tokens)
    rows = [[random.random() < 0.5 for _ in range(6)] for _ in range(tokens)]
    routing_map = strided(rows)
    assert routing_map.shape == (tokens, 6)
    assert not routing_map.is_contiguous()
    assert counted(count, routing_map) == by_loops(rows, 6)


def test_the_map_is_left_as_it_is(count: Count) -> None:
    routing_map = torch.rand(600, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    before = routing_map.clone()
    counted(count, routing_map)
    assert torch.equal(routing_map, before)


@pytest.mark.parametrize("offset", [0, 1, 8, 11])
@pytest.mark.parametrize(("tokens", "experts"), [(4096, 8), (4099, 8), (4096, 12), (2500, 33), (20_000, 16)])
def test_a_map_that_begins_anywhere_in_its_memory(count: Count, offset: int, tokens: int, experts: int) -> None:
    """Words must be whole: a map that does not begin at one is counted in another way."""
    memory = torch.rand(offset + tokens * experts, generator=torch.Generator().manual_seed(offset)) < 0.3
    routing_map = memory[offset:].view(tokens, experts)
    assert counted(count, routing_map) == [sum(column) for column in zip(*routing_map.tolist(), strict=True)]


def test_threads_count_apart(count: Count) -> None:
    """Recomputation may count in a thread of autograd's, while the main thread counts a map of the same shape."""
    maps = [torch.rand(2048, 64, generator=torch.Generator().manual_seed(seed)) < 0.1 * (seed + 1) for seed in range(4)]
    expected = [[sum(column) for column in zip(*one.tolist(), strict=True)] for one in maps]
    with ThreadPoolExecutor(len(maps)) as pool:
        found = pool.map(lambda one: [count(one).tolist() for _ in range(200)], maps)
        for rows, sums in zip(found, expected, strict=True):
            assert all(row == sums for row in rows)


def test_many_shapes_in_turn(count: Count) -> None:
    """More shapes than buffers are kept for, and the first one again."""
    for tokens in [*range(4096, 4096 + 128 * 70, 128), 4096]:
        routing_map = torch.ones(tokens, 8, dtype=torch.bool)
        assert count(routing_map).tolist() == [tokens] * 8


def test_nothing_is_kept_for_another_stream(count: Count, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing tells a stream when another has made what is kept. ("meta" has no streams; it is given two.)"""
    made, current = [], SimpleNamespace(stream="first")
    ones = torch.ones
    monkeypatch.setattr(torch, "meta", SimpleNamespace(current_stream=lambda: current.stream), raising=False)
    monkeypatch.setattr(torch, "ones", lambda *a, **k: (made.append(current.stream), ones(*a, **k))[1])
    routing_map = torch.empty(999, 2, dtype=torch.bool, device="meta")
    for stream in ("first", "first", "second", "first", "second"):
        current.stream = stream
        count(routing_map)
    assert made in ([], ["first", "second"])


BYTES = st.sampled_from([0, 0, 0, 1, 1, 1, 2, 3, 127, 128, 254, 255])


@settings(deadline=None, max_examples=15)
@given(
    data=st.data(),
    tokens=st.sampled_from([1, 128, 2048, 5000, 5001]),
    experts=st.sampled_from([1, 3, 7, 8, 12, 16, 64]),
    transposed=st.booleans(),
    offset=st.sampled_from([0, 3, 8]),
)
def test_a_map_of_any_bytes_is_counted_as_torch_reads_it(
    count: Count, data: st.DataObject, tokens: int, experts: int, transposed: bool, offset: int
) -> None:
    """Every byte but 0 is True, as it is for Megatron's own sum."""
    few = data.draw(st.lists(BYTES, min_size=1, max_size=97))
    values = bytes(few[at % len(few)] for at in range(offset + tokens * experts))
    memory = torch.frombuffer(bytearray(values), dtype=torch.uint8)[offset:].view(torch.bool)
    if transposed:
        routing_map, rows = memory.view(experts, tokens).t(), [values[offset + at :: tokens] for at in range(tokens)]
    else:
        starts = range(offset, len(values), experts)
        routing_map, rows = memory.view(tokens, experts), [values[at : at + experts] for at in starts]
    expected = by_loops([[byte != 0 for byte in row] for row in rows], experts)
    entries = sum(expected)
    assert counted(count, routing_map) == expected
    assert count(routing_map, None, entries).tolist() == expected, "however many were to be expected"
    assert count(routing_map, None, entries + 1).tolist() == expected


@pytest.mark.parametrize("byte", [1, 2, 255])
@pytest.mark.parametrize("entries", [None, 10_000])
def test_a_view_of_a_byte_mask(count: Count, byte: int, entries: int | None) -> None:
    bytes_ = torch.zeros(5000, 8, dtype=torch.uint8)
    for token in range(5000):
        bytes_[token, token % 8] = bytes_[token, token * 3 % 7 + (token % 8 <= token * 3 % 7)] = byte
    routing_map = bytes_.view(torch.bool)
    expected = by_loops([[value > 0 for value in row] for row in bytes_.tolist()], 8)
    assert sum(expected) == 10_000
    assert count(routing_map, None, entries).tolist() == expected
    out = torch.empty(8, dtype=torch.int32)
    assert count(routing_map, out, entries) is out
    assert out.tolist() == expected
