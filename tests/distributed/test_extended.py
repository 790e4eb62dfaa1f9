"""Ranks that own whole experts, on real gloo: every rank's plan is the oracle's, and tokens reach their experts."""

from __future__ import annotations

import random
from dataclasses import asdict
from typing import Any

import pytest

from distributed.extended_job import disagree, pad_and_send, plan_and_send
from distributed.launcher import RankPool, World
from mindspeed_moe.preprocess.counts import COUNTS
from mindspeed_moe.preprocess.exchange import EXCHANGES
from one_process.cases import COUNTED, make_map
from oracle.extended import Owned, padded, plans, rows_of_experts
from oracle.plan import DROPLESS, RoutingMap

WORLD = World(name="extended")
RANKS = 4
TOKENS = ((5, 9, 1, 4), (7, 0, 3, 12), (0, 0, 0, 0))  # of each micro-batch, by rank


def owners(local: int, seed: int) -> list[list[int]]:
    """Owners in order for seed 0, else in any other."""
    experts = list(range(RANKS * local))
    if seed:
        random.Random(seed).shuffle(experts)
    return [experts[first : first + local] for first in range(0, len(experts), local)]


def travelled(owned: Owned, maps: list[RoutingMap]) -> list[list[list[tuple[int, int, int]]]]:
    """By rank and own expert: the rows that it must end up with, in their order."""
    return [
        [[(sender, token, expert) for sender, token in rows] for expert, rows in zip(own, of_rank, strict=True)]
        for own, of_rank in zip(owned, rows_of_experts(owned, maps), strict=True)
    ]


@pytest.mark.parametrize("mode", COUNTED)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("local", [1, 3])
@pytest.mark.parametrize("exchange", sorted(EXCHANGES))
def test_tokens_reach_their_experts(ranks: RankPool, exchange: str, local: int, seed: int, mode: str):
    owned, topk = owners(local, seed), 2
    rng = random.Random(f"{local} {seed} {mode}")
    batches = [
        [make_map(rng, tokens, RANKS * local, topk, mode, "random") for tokens in of_batch] for of_batch in TOKENS
    ]
    known = topk if mode == DROPLESS else None
    options = {"exchange": exchange, "counts": rng.choice(sorted(COUNTS))}
    found = ranks.run(plan_and_send, owned, batches, known, options, world=WORLD)
    for batch, maps in enumerate(batches):
        wanted = [
            {**asdict(plan), "rows": rows}
            for plan, rows in zip(plans(owned, maps, known), travelled(owned, maps), strict=True)
        ]
        assert [rank[batch] for rank in found] == wanted


@pytest.mark.parametrize("seed", [0, 1])
def test_padded_tokens_reach_their_experts(ranks: RankPool, seed: int):
    owned, capacity = owners(2, seed), 3
    maps = [[[True] * 8] * capacity] * RANKS
    wanted = [
        {**asdict(plan), "rows": rows}
        for plan, rows in zip(padded(owned, capacity), travelled(owned, maps), strict=True)
    ]
    assert ranks.run(pad_and_send, owned, capacity, world=WORLD) == wanted


def test_ranks_that_disagree_end_with_a_message(ranks: RankPool):
    one, other = owners(2, 1), owners(2, 2)
    cases: tuple[tuple[Any, ...], ...] = (
        ([one, one, other, one], ["all_to_all"] * 4, ("owned_experts: ", " on ranks [0, 1, 3]; ", " on ranks [2]")),
        (
            [one] * 4,
            ["all_to_all"] * 3 + ["all_gather"],
            ("exchange: 'all_to_all' on ranks [0, 1, 2]; 'all_gather' on ranks [3]",),
        ),
    )
    world = World(name="extended, at odds")
    for owned, exchanges, told in cases:
        for outcome in ranks.run(disagree, owned, exchanges, world=world):
            assert outcome.error == "GroupError"
            assert all(part in outcome.message for part in told), outcome.message
    for outcome in ranks.run(disagree, [one] * 4, ["all_to_all"] * 4, world=world):
        assert not outcome.error, outcome.message
