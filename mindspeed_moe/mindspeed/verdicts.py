"""Which rows of the table a launch hits."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from packaging.version import Version

from mindspeed_moe.mindspeed.arguments import is_set
from mindspeed_moe.mindspeed.conflict import BYPASSED, COMPOSES, FAILS, LAST, REFUSED, TAKEN, WRAPS, Verdict
from mindspeed_moe.mindspeed.conflicts import CONFLICTS

# What Megatron takes where a launch says nothing.
_DEFAULTS = {"moe_token_dispatcher_type": "allgather"}


def verdicts(args: Mapping[str, Any], megatron: str | None, *, triton: bool | None = None) -> tuple[Verdict, ...]:
    """Return every row that a launch hits, refusals first.

    args: arguments by name, typed or not. megatron: version of megatron-core; None: the newest whose MindSpeed was
    read. triton: whether it can be imported; None: look.
    """
    release = Version(megatron).release[:2] if megatron else LAST
    known = {name: value for name, value in args.items() if value is not None}
    if is_set(known.get("use_fused_moe_token_permute_and_unpermute")):
        known["moe_permute_fusion"] = True
    seen = {**_DEFAULTS, **known, "triton": _has_triton() if triton is None else triton}
    hit = [Verdict(row) for row in CONFLICTS if row.applies(seen, (release[0], release[1]))]
    order = (REFUSED, FAILS, BYPASSED, TAKEN, WRAPS, COMPOSES)
    return tuple(sorted(hit, key=lambda verdict: order.index(verdict.effect)))


def _has_triton() -> bool:
    try:
        return importlib.util.find_spec("triton") is not None
    except (ImportError, ValueError):
        return False
