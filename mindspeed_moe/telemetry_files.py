"""What telemetry's files are called, and in which format they are: for who writes them and for who reads them.

Apart from both: reading must not import torch.
"""

from __future__ import annotations

import re

FORMAT = 1
SEGMENT = re.compile(r"rank(\d{5,7})\.(\d{6,9})\.jsonl", re.ASCII)  # rank, and number among the rank's files
LAST_SEGMENT = 999_999_999
CLAIM = ".mindspeed_moe.lock"  # held by the launch that writes to the folder


def segment_name(rank: int, number: int) -> str:
    """Return the name of a rank's file."""
    return f"rank{rank:05d}.{number:06d}.jsonl"
