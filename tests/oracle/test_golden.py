"""Cases small enough to be worked out with a pencil, so that the oracle itself stands on something."""

from __future__ import annotations

from oracle.plan import DROP, DROPLESS, PAD, RankPlan, plan_group


def routing_map(experts: int, *tokens: str) -> list[list[bool]]:
    """One word a token: "02" is a token that goes to experts 0 and 2."""
    return [[str(expert) in token for expert in range(experts)] for token in tokens]


def test_two_by_two_four_experts():
    """EP = 2, TP = 2, E = 4, L = 2, top-2; ranks (i, k) with 3, 1, 0 and 2 tokens.

    tokens per expert:      e0 e1 | e2 e3
        (0, 0) 01 02 03      3  1 |  1  1
        (0, 1) 23            0  0 |  1  1
        (1, 0) none          0  0 |  0  0
        (1, 1) 12 12         0  2 |  2  0
    EP rank 0 owns e0 e1, EP rank 1 owns e2 e3.
    """
    maps = [
        routing_map(4, "01", "02", "03"),
        routing_map(4, "23"),
        routing_map(4),
        routing_map(4, "12", "12"),
    ]
    plans = plan_group(maps, ep=2, tp=2, experts=4, topk=2, mode=DROPLESS)
    # rows of the tables: (tp, ep) = (0, 0), (0, 1), (1, 0), (1, 1), that is ranks 0, 2, 1, 3
    left = [[3, 1], [0, 0], [0, 0], [0, 2]]
    right = [[1, 1], [0, 0], [1, 1], [2, 0]]
    assert plans == [
        RankPlan([4, 2], [4, 0], [4, 2], [3, 3], left, 6),
        RankPlan([0, 2], [0, 2], [4, 2], [3, 3], left, 2),
        RankPlan([0, 0], [2, 0], [2, 4], [4, 2], right, 0),
        RankPlan([2, 2], [2, 2], [2, 4], [4, 2], right, 4),
    ]


def test_one_local_expert_has_no_table():
    """EP = 2, TP = 1, E = 2: expert 0 gets 2 + 0 tokens, expert 1 gets 1 + 1."""
    maps = [routing_map(2, "0", "0", "1"), routing_map(2, "1")]
    assert plan_group(maps, ep=2, tp=1, experts=2, topk=1, mode=DROPLESS) == [
        RankPlan([2, 1], [2, 0], [2], [2], None, 3),
        RankPlan([0, 1], [1, 1], [2], [2], None, 1),
    ]


def test_expert_tensor_parallel_alone():
    """EP = 1, TP = 2, E = 2: all experts are everybody's own, so both ranks receive everything."""
    maps = [routing_map(2, "0", "1"), routing_map(2, "1")]
    table = [[1, 1], [0, 1]]
    assert plan_group(maps, ep=1, tp=2, experts=2, topk=1, mode=DROPLESS) == [
        RankPlan([2], [2], [2, 1], [1, 2], table, 2),
        RankPlan([1], [1], [2, 1], [1, 2], table, 1),
    ]


def test_alone_nothing_is_split():
    plans = plan_group([routing_map(3, "01", "02")], ep=1, tp=1, experts=3, topk=2, mode=DROPLESS)
    assert plans == [RankPlan(None, None, None, [2, 1, 1], [[2, 1, 1]], 4)]


def test_dropped_tokens_count_as_they_are():
    """Top-2 of two tokens would be 4 rows; the router dropped one."""
    plans = plan_group([routing_map(3, "01", "0")], ep=1, tp=1, experts=3, topk=2, mode=DROP)
    assert plans == [RankPlan(None, None, None, [2, 1, 0], [[2, 1, 0]], 3)]


def test_padding_needs_no_counts():
    """3 tokens, top-1, E = 4, factor 1.5: 3 * 1 / 4 * 1.5 = 1.125 rows, so capacity 2, from each of 4 ranks."""
    maps = [routing_map(4, "0", "0", "0")] * 4
    plans = plan_group(maps, ep=2, tp=2, experts=4, topk=1, mode=PAD, factor=1.5)
    assert plans == [RankPlan(None, None, None, [8, 8], [2] * 8, 8, 2)] * 4
