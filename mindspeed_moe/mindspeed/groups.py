"""What each process group that the plugin's counts may travel on costs a rank, under MindSpeed's own buffer flags.

Sizes in MB of device memory. Every communicator of HCCL owns its buffer twice, for sending and receiving. Read from
MindSpeed master and its branches core_r0.10.0 to core_r0.18.0, `core/hccl_buffer/`, and from megatron-core from 0.12
on, `parallel_state.py`; the sizes themselves are CANN's documentation, not measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindspeed_moe.conditions import DEDICATED_BUFFER_MB, hccl_buffer
from mindspeed_moe.errors import ConfigError
from mindspeed_moe.mindspeed.arguments import is_set

# exchange_group -> the name under which Megatron asks for that group's options
_MEGATRON_NAMES = {"ep": "ep", "tp_ep": "tp_ep_mp"}


@dataclass(frozen=True)
class GroupCost:
    """exchange_group's value, the buffer of that group in MB, what it costs a rank, and where the size comes from."""

    exchange_group: str
    buffer_mb: int
    total_mb: int
    source: str


def read_buffer_sizes(text: str) -> dict[str, int]:
    """Return the sizes of --hccl-group-buffer, `ep:200;tp_ep_mp:200` (also with commas), in MB.

    Raises ConfigError for a part that is not `name:number`.
    """
    sizes = {}
    for part in re.split("[;,]", text):
        if not part.strip():
            continue
        name, colon, size = part.partition(":")
        if not colon or not re.fullmatch(r"\s*[0-9]{1,9}\s*", size):
            raise ConfigError(f"--hccl-group-buffer: {part!r} is not valid; allowed: NAME:MB, several with ; between")
        sizes[name.strip()] = int(size)
    return sizes


def group_costs(args: Mapping[str, Any], variables: Mapping[str, str]) -> tuple[GroupCost, ...]:
    """Return a row for each value of exchange_group, in a launch with these arguments and environment variables."""
    default, source = hccl_buffer(variables)
    adaptive = is_set(args.get("hccl_group_buffer_adaptive"))
    manual = args.get("hccl_group_buffer")
    sizes = read_buffer_sizes(str(manual)) if manual else {}
    rows = []
    for group, name in _MEGATRON_NAMES.items():
        size, why = default, source
        if name in sizes and adaptive:
            size, why = sizes[name], f"--hccl-group-buffer {name}:{sizes[name]}"
        elif name in sizes:
            why = f"{source}; --hccl-group-buffer alone changes nothing: add --hccl-group-buffer-adaptive"
        elif adaptive:
            why = f"{source}; --hccl-group-buffer-adaptive has no size for a group of the name {name}"
        rows.append(GroupCost(group, size, 2 * size, why))
    own = DEDICATED_BUFFER_MB
    return (*rows, GroupCost("dedicated", own, 2 * own, "mindspeed_moe makes it with this size"))
