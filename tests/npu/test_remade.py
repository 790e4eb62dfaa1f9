"""Process groups that are destroyed and made again while layers live on, behind wrappers that a framework hands out."""

from __future__ import annotations

from pathlib import Path

import pytest

from npu.launch import run_ranks

pytestmark = [pytest.mark.simulated, pytest.mark.megatron]


@pytest.mark.parametrize("ranks", [2, 4], ids=["of all ranks", "of some ranks"])
def test_a_dedicated_group_outlives_the_groups_that_are_made_again(tmp_path: Path, ranks: int) -> None:
    arguments = {"device": "npu", "ep": 2, "times": 2}
    for found in run_ranks("remade", ranks, tmp_path, arguments=arguments):
        assert found == {"wrong": [], "made": 1}
