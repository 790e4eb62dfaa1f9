"""Which calls of a layer are verified, from the word in the configuration on; and what ranks must agree on of it."""

from __future__ import annotations

from typing import Any

import pytest

from mindspeed_moe.config import load_config
from mindspeed_moe.environment import probe_environment
from mindspeed_moe.verify.verification import Verification
from mindspeed_moe.watching import common_settings, watched_as


def verification_of(verify: Any) -> Verification | None:
    versions = {"mindspeed_moe": "0.1.0"}
    return watched_as(load_config({"verify": verify}), probe_environment(), "cpu", versions).verification


@pytest.mark.parametrize(
    ("verify", "due"),
    [
        ("first", [0, 1]),  # what the first call handed out is looked at again in the second
        ("always", [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"every": 1}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"every": 3}, [0, 3, 6]),
        ({"every": 100}, [0]),
    ],
)
def test_the_schedule_says_which_of_eight_calls_are_verified(verify: Any, due: list[int]) -> None:
    verification = verification_of(verify)
    assert verification is not None
    assert [call for call in range(8) if verification.is_due(call)] == due


def test_off_is_no_verification_at_all() -> None:
    assert verification_of("off") is None


def test_ranks_must_agree_on_when_to_verify_but_not_on_where_dumps_go() -> None:
    """Another schedule on one rank would be another sequence of collectives."""
    common = common_settings(load_config({"verify": {"every": 3}, "dumps": "here"}))
    assert common["verify.every"] == "3"
    assert common["preprocess.exchange"] == "auto"
    assert common["dispatchers.alltoall"] == "auto"
    assert not {"dumps", "tuned"} & common.keys()
    assert not any(key.startswith("telemetry") for key in common)
    assert common != common_settings(load_config({"verify": {"every": 2}}))
    assert common == common_settings(load_config({"verify": {"every": 3}, "dumps": "there"}))
