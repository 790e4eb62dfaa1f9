"""Where experts live: numbers to check by hand."""

from __future__ import annotations

import dataclasses

import pytest

from mindspeed_moe.errors import GroupError
from mindspeed_moe.preprocess.layout import ExpertLayout


def test_eight_experts_on_two_by_two_ranks() -> None:
    """EP = 2 and TP = 2: experts 0..3 live on ranks 0 and 1 of the group, experts 4..7 on ranks 2 and 3."""
    ranks = [ExpertLayout(8, ep_size=2, tp_size=2, ep_rank=ep, tp_rank=tp) for ep in (0, 1) for tp in (0, 1)]
    assert [rank.num_local_experts for rank in ranks] == [4, 4, 4, 4]
    assert [rank.group_size for rank in ranks] == [4, 4, 4, 4]
    assert [rank.group_index for rank in ranks] == [0, 1, 2, 3]
    assert [rank.first_expert for rank in ranks] == [0, 0, 4, 4]


def test_the_group_is_ep_major() -> None:
    """EP = 3 and TP = 2: index = ep * TP + tp, so EP rank 2 with TP rank 1 comes last."""
    assert ExpertLayout(6, ep_size=3, tp_size=2, ep_rank=2, tp_rank=1).group_index == 5
    assert ExpertLayout(6, ep_size=3, tp_size=2, ep_rank=1, tp_rank=0).group_index == 2


def test_one_rank_owns_all() -> None:
    alone = ExpertLayout(5, ep_size=1, tp_size=1, ep_rank=0, tp_rank=0)
    assert (alone.num_local_experts, alone.group_size, alone.group_index, alone.first_expert) == (5, 1, 0, 0)


def test_a_layout_is_frozen_and_comparable() -> None:
    one, same = (ExpertLayout(4, 2, 1, 0, 0) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.ep_rank = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ((8, 3, 1, 0, 0), "8 experts do not divide by EP = 3"),
        ((2, 4, 1, 0, 0), "2 experts do not divide by EP = 4"),
        ((0, 1, 1, 0, 0), "sizes must be at least 1"),
        ((8, 0, 1, 0, 0), "sizes must be at least 1"),
        ((8, 2, 0, 0, 0), "sizes must be at least 1"),
        ((-8, 2, 1, 0, 0), "sizes must be at least 1"),
        ((8, 2, 1, 2, 0), "coordinates outside of EP x TP"),
        ((8, 2, 1, -1, 0), "coordinates outside of EP x TP"),
        ((8, 2, 2, 0, 2), "coordinates outside of EP x TP"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(sizes: tuple[int, ...], told: str) -> None:
    with pytest.raises(GroupError, match=told) as caught:
        ExpertLayout(*sizes)
    assert f"num_experts={sizes[0]}" in str(caught.value)
