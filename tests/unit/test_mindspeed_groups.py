"""What groups cost under MindSpeed's flags: figures by hand."""

from __future__ import annotations

import pytest

from mindspeed_moe.errors import ConfigError
from mindspeed_moe.mindspeed.groups import group_costs, read_buffer_sizes

ADAPTIVE = {"hccl_group_buffer_adaptive": True}


def sizes(args: dict[str, object], **variables: str) -> dict[str, tuple[int, int]]:
    return {one.exchange_group: (one.buffer_mb, one.total_mb) for one in group_costs(args, variables)}


@pytest.mark.parametrize(
    ("args", "variables", "ep", "tp_ep"),
    [
        ({}, {}, 200, 200),
        ({}, {"HCCL_BUFFSIZE": "120"}, 120, 120),
        ({}, {"HCCL_BUFFSIZE": "much"}, 200, 200),
        ({"hccl_group_buffer": "ep:50"}, {}, 200, 200),  # alone it changes nothing
        ({"hccl_group_buffer": "ep:50", **ADAPTIVE}, {}, 50, 200),
        ({"hccl_group_buffer": "ep:50;tp_ep_mp:30", **ADAPTIVE}, {}, 50, 30),
        ({"hccl_group_buffer": "tp_ep_mp:30,dp:7", **ADAPTIVE}, {}, 200, 30),
        ({"hccl_group_buffer": "exp:50", **ADAPTIVE}, {}, 200, 200),  # a name that Megatron does not ask for
        (ADAPTIVE, {}, 200, 200),
    ],
)
def test_sizes(args: dict[str, object], variables: dict[str, str], ep: int, tp_ep: int) -> None:
    found = sizes(args, **variables)
    assert found == {"ep": (ep, 2 * ep), "tp_ep": (tp_ep, 2 * tp_ep), "dedicated": (1, 2)}


def test_reasons() -> None:
    told = {one.exchange_group: one.source for one in group_costs({"hccl_group_buffer": "ep:50"}, {})}
    assert "--hccl-group-buffer alone changes nothing" in told["ep"]
    assert told["tp_ep"] == "HCCL's default"
    told = {one.exchange_group: one.source for one in group_costs(ADAPTIVE, {"HCCL_BUFFSIZE": "120"})}
    assert told["ep"] == "HCCL_BUFFSIZE; --hccl-group-buffer-adaptive has no size for a group of the name ep"


@pytest.mark.parametrize("text", ["ep", "ep:", "ep:many", "ep:1;tp"])
def test_a_map_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--hccl-group-buffer: .* allowed: NAME:MB"):
        read_buffer_sizes(text)


def test_a_map() -> None:
    assert read_buffer_sizes("ep:200; tp_ep_mp:10;") == {"ep": 200, "tp_ep_mp": 10}
