"""Ranks without a common group that disagree, before and after MindSpeed's `repatch`."""

from __future__ import annotations

from pathlib import Path

import pytest

from under_mindspeed.launching import together

pytestmark = pytest.mark.megatron

ONE, OTHER = "all_to_all", "all_gather"


@pytest.mark.parametrize(
    ("exchanges", "apart"),
    [
        ((ONE, ONE, ONE), (False, False, False)),
        ((ONE, OTHER), (False, True)),
        ((ONE, ONE, OTHER), (False, False, True)),
    ],
)
def test_every_pass_is_compared(exchanges: tuple[str, ...], apart: tuple[bool, ...], tmp_path: Path) -> None:
    told = together("disagreement", 2, tmp_path, *exchanges)
    for messages in told:
        assert tuple(map(bool, messages)) == apart
        assert all("preprocess.exchange: 'all_" in message for message in messages if message)
