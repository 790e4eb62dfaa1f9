"""Wrong input at run time, on real processes: a message that names the rule, on every rank, and never a hang.

Every job gets process groups of its own, and a limit after which the launcher fails the test: a hang is a failure.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from distributed import bad_input
from distributed.bad_input import EP, EXPERTS, PATIENCE, TP, Outcome
from distributed.launcher import RankPool, World
from distributed.layers import PLUGIN, STOCK, Layer

pytestmark = [pytest.mark.megatron, pytest.mark.once]

PACKED, REFERENCE = PLUGIN["packed, all_to_all, byte_lanes"], PLUGIN["reference"]
GATHERING = PLUGIN["packed, all_gather, byte_lanes"]
EITHER = pytest.mark.parametrize("config", [PACKED, REFERENCE], ids=["packed", "reference"])

WORLD_TIMEOUT, LIMIT = 600.0, 900.0  # seconds that ranks wait for each other, and that a job has
_numbers = itertools.count()


def run(ranks: RankPool, job: Callable[..., Any], *args: Any) -> list[Any]:
    """Run a job in process groups of its own, so that what it breaks stays with it."""
    return ranks.run(
        job, *args, world=World(EP, TP, timeout=WORLD_TIMEOUT, name=f"bad input {next(_numbers)}"), limit=LIMIT
    )


def require_messages(found: list[Outcome], error: str, *patterns: str) -> None:
    """AssertionError unless every rank ended with `error` and the message of its own pattern."""
    for rank, (one, pattern) in enumerate(zip(found, patterns, strict=True)):
        assert one.error == error, f"rank {rank}: {one}"
        assert re.search(pattern, one.message), f"rank {rank}: {one.message}"


@EITHER
@pytest.mark.parametrize("padded", [False, True])
def test_bad_routing_maps(ranks: RankPool, config: Any, padded: bool):
    expected = {
        "bytes": r"dtype torch\.uint8; expected torch\.bool",
        "floats": r"dtype torch\.float32; expected torch\.bool",
        "one dimension": rf"shape \({EXPERTS},\); expected \[tokens, {EXPERTS}\]",
        "three dimensions": rf"shape \(3, 2, {EXPERTS}\); expected \[tokens, {EXPERTS}\]",
        "too wide": rf"shape \(6, {EXPERTS + 1}\); expected \[tokens, {EXPERTS}\]",
        "too narrow": rf"shape \(6, {EXPERTS - 1}\); expected \[tokens, {EXPERTS}\]",
        "transposed": rf"shape \({EXPERTS}, 6\); expected \[tokens, {EXPERTS}\]",
        "on another device": "on device meta; expected cpu",
    }
    for found in run(ranks, bad_input.give_bad_maps, config, padded):
        assert found.pop("good").error == ""
        assert {name: one.error for name, one in found.items()} == dict.fromkeys(expected, "RoutingMapError")
        for name, one in found.items():
            assert re.search(expected[name], one.message), one.message


def test_maps_that_are_not_contiguous_work(ranks: RankPool):
    for found in run(ranks, bad_input.give_strided_maps):
        expected = found.pop("stock")
        assert sum(expected[0]) > 0
        assert len(found) == 2 * len(PLUGIN)
        assert {name: one for name, one in found.items() if one != expected} == {}


@pytest.mark.parametrize("rank", [0, 2])
def test_one_rank_with_a_bad_map(ranks: RankPool, rank: int):
    found = run(ranks, bad_input.one_rank_has_a_bad_map, rank, PACKED)
    culprit = found.pop(rank)
    assert culprit.error == "RoutingMapError"
    heard = rf"rank {rank} of the TPxEP group cannot take part: routing map: dtype torch\.uint8; expected torch\.bool"
    require_messages(found, "GroupError", *[heard] * 3)
    assert max(one.seconds for one in found) < WORLD_TIMEOUT, "nobody waits for a rank that has said why"


@EITHER
def test_a_bad_map_in_a_later_call(ranks: RankPool, config: Any):
    """No comparison precedes later exchanges: the others end with gloo's own message when the rank has ended."""
    found = run(ranks, bad_input.a_later_call_has_a_bad_map, 2, config)
    assert [first.error for first, _ in found] == [""] * 4
    assert [second.error for _, second in found] == ["RuntimeError", "RuntimeError", "RoutingMapError", "RuntimeError"]


@EITHER
def test_a_group_of_another_size(ranks: RankPool, config: Any):
    found = run(ranks, bad_input.group_of_wrong_size, config)
    require_messages(found, "GroupError", *["TPxEP group has 2 ranks; EP = 2 x TP = 2 needs 4"] * 4)


def test_members_in_another_order(ranks: RankPool):
    found = run(ranks, bad_input.group_in_wrong_order, PACKED)
    wrong = [
        rf"number {one} in the TPxEP group.*it must be {other} \(EP-major order\)" for one, other in ((1, 2), (2, 1))
    ]
    heard = rf"rank 1 of the TPxEP group cannot take part: .*{wrong[0]}; rank 2 .*{wrong[1]}"
    require_messages(found, "GroupError", heard, *(f"^this rank is {one}" for one in wrong), heard)


@EITHER
@pytest.mark.parametrize("rank", [0, 3])
def test_another_number_of_experts(ranks: RankPool, config: Any, rank: int):
    found = run(ranks, bad_input.disagree_on_experts, rank, config)
    told = rf"disagree: .*num_experts: .*16 on ranks \[{rank}\]"
    require_messages(found, "GroupError", *[told] * 4)


def test_another_number_of_local_experts(ranks: RankPool):
    found = run(ranks, bad_input.disagree_on_local_experts, 2, PACKED)
    told = r"local experts \[4, 5\] of 8 on EP = 2: expected 4 neighbours on every rank"
    heard = rf"^rank \d: rank 2 of the TPxEP group cannot take part: {told}"
    require_messages(found, "GroupError", heard, heard, rf"^{told}", heard)
    assert max(one.seconds for one in found) < WORLD_TIMEOUT, "nobody waits for a rank that has said why"


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (REFERENCE, r"implementation: 'packed' on ranks \[0, 2, 3\]; 'reference' on ranks \[1\]"),
        (GATHERING, r"exchange: 'all_to_all' on ranks \[0, 2, 3\]; 'all_gather' on ranks \[1\]"),
        ({**PACKED, "verify": "always"}, r"verify: 'off' on ranks \[0, 2, 3\]; 'always' on ranks \[1\]"),
        (
            {**PACKED, "verify": {"every": 3}},
            r"verify: 'off' on ranks \[0, 2, 3\]; None on ranks \[1\] \| .*"
            r"verify\.every: None on ranks \[0, 2, 3\]; '3' on ranks \[1\]",
        ),
        (
            {**PACKED, "preprocess": {**PACKED["preprocess"], "max_slots": 3}},
            r"preprocess\.max_slots: '8' on ranks \[0, 2, 3\]; '3' on ranks \[1\]",
        ),
    ],
    ids=["implementation", "exchange", "verify", "how often", "another YAML"],
)
def test_another_configuration(ranks: RankPool, other: Any, told: str):
    found = run(ranks, bad_input.disagree_on_configuration, 1, PACKED, other)
    require_messages(found, "GroupError", *[told] * 4)


@pytest.mark.parametrize("mode", ["dropless", "pad"])
@pytest.mark.parametrize("ep", [2, 1])
def test_another_configuration_in_another_group(ranks: RankPool, ep: int, mode: str):
    """Data-parallel replicas would train on; ranks without an exchange, and padded ones, would not even meet."""
    layer, other = Layer(ep, 1, EXPERTS, 2, mode), {**PACKED, "verify": "first"}
    world = World(ep, 1, timeout=WORLD_TIMEOUT, name=f"bad input {next(_numbers)}")
    odd = (2, 3)
    found = ranks.run(bad_input.disagree_between_groups, layer, odd, PACKED, other, world=world, limit=LIMIT)
    told = r"the ranks of this launch disagree \(rank \d came first.*verify: '(off|first)' on ranks \[\d"
    require_messages(found, "GroupError", *[told] * 4)
    (message,) = {one.message.split(": ", 1)[1] for one in found}  # every rank says the same
    first, *others = [[int(rank) for rank in who.split(",")] for who in re.findall(r"on ranks \[([\d, ]+)\]", message)]
    assert f"rank {first[0]} came first" in message
    assert [sorted(who) for who in others] == [[0, 1] if first[0] in odd else [2, 3]]


def test_another_version(ranks: RankPool):
    found = run(ranks, bad_input.disagree_on_version, 3, PACKED)
    told = r"mindspeed_moe: '1\.0\.0' on ranks \[0, 1, 2\]; '9\.9\.9' on ranks \[3\]"
    require_messages(found, "GroupError", *[told] * 4)


def test_one_rank_on_stock_in_a_later_enable(ranks: RankPool):
    """The plugin's ranks say so; the stock rank, alone in its all-gather, fails when they end."""
    found = run(ranks, partial(bad_input.disagree_on_configuration, patience=PATIENCE), 1, PACKED, STOCK)
    stock = found.pop(1)
    assert stock.error
    told = r"ranks \[1\] of the TPxEP group .* did not report.*is the plugin enabled there"
    require_messages(found, "GroupError", *[told] * 3)


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_of_a_launch_on_stock(ranks: RankPool, rank: int):
    """It does not come to the comparison, but has told what it runs; nobody waits for as long as the store does."""
    found = run(ranks, partial(bad_input.disagree_on_configuration, of_a_launch=True), rank, PACKED, STOCK)
    stock = found.pop(rank)
    assert stock.error
    told = (
        r"rank \d: the ranks of this launch disagree .*alltoall: '(packed|stock)' on ranks \[\d.*; '(packed|stock)' on"
    )
    require_messages(found, "GroupError", *[told] * 3)
    assert max(one.seconds for one in found) < WORLD_TIMEOUT


@pytest.mark.parametrize("rank", [0, 3])
def test_a_rank_that_is_later_than_the_store_waits_and_not_than_the_group(ranks: RankPool, rank: int):
    found = run(ranks, bad_input.one_rank_comes_late, rank, PACKED)
    assert [one.error for one in found] == [""] * 4, found


def test_one_rank_that_never_comes_and_a_new_start(ranks: RankPool):
    found = run(ranks, bad_input.one_rank_never_comes, 3, PACKED)
    assert found.pop().error == ""
    require_messages(found, "GroupError", *[r"ranks \[3\] of the TPxEP group .* did not report"] * 3)
    assert all(PATIENCE * 0.9 < one.seconds < WORLD_TIMEOUT for one in found)
    # The next process groups start afresh: rank 3 has one comparison less behind it than the others.
    found = run(ranks, bad_input.a_new_layer_in_new_groups, PACKED)
    assert [one.error for one in found] == [""] * 4, found
