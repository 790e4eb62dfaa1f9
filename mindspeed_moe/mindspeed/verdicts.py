"""Which rows of the table a launch hits."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from packaging.version import Version

from mindspeed_moe.mindspeed.arguments import is_set
from mindspeed_moe.mindspeed.conflict import (
    BYPASSED,
    COMPOSES,
    FAILS,
    NEWEST_READ,
    READ,
    REFUSED,
    TAKEN,
    WRAPS,
    Conflict,
)
from mindspeed_moe.mindspeed.conflicts import CONFLICTS

# What Megatron takes where a launch says nothing.
_DEFAULTS = {"moe_token_dispatcher_type": "allgather"}
# Megatron has these without MindSpeed too.
_MEGATRONS = {"num_experts", "moe_permute_fusion", "moe_grouped_gemm", "fp8_format", "overlap_moe_expert_parallel_comm"}


def verdicts(
    args: Mapping[str, Any], megatron: str | None, *, triton: bool | None = None, whole: bool = True
) -> tuple[Conflict, ...]:
    """Return every row that a launch hits, refusals first.

    args: arguments by name, typed or not. megatron: version of megatron-core; None: the newest whose MindSpeed was
    read. triton: whether it can be imported; None: look. whole: whether the arguments are a whole launch's, so that
    what is not among them has Megatron's default.
    """
    release = Version(megatron).release[:2] if megatron else NEWEST_READ
    known = {name: value for name, value in args.items() if value is not None}
    if is_set(known.get("use_fused_moe_token_permute_and_unpermute")):
        known["moe_permute_fusion"] = True
    if is_set(known.get("num_moe_experts")):  # as a TransformerConfig calls it
        known["num_experts"] = known["num_moe_experts"]
    seen = {**(_DEFAULTS if whole else {}), **known, "triton": _has_triton() if triton is None else triton}
    rows = (row for row in CONFLICTS if whole or not row.whole_launch)
    hit = [row for row in rows if row.applies(seen, (release[0], release[1]))]
    ends = [set(row.when) for row in hit if row.effect == FAILS]
    hit = [row for row in hit if not any(set(row.when) < when for when in ends)]  # a launch that ends does no more
    order = (REFUSED, FAILS, BYPASSED, TAKEN, WRAPS, COMPOSES)
    return tuple(sorted(hit, key=lambda row: order.index(row.effect)))


def asked_about() -> set[str]:
    """Return the arguments that rows look at."""
    return {name for row in CONFLICTS for name, _ in row.when} | {"num_moe_experts"}


def unknown_flags(args: Mapping[str, Any], megatron: str | None) -> tuple[str, ...]:
    """Return those arguments that rows are about, in a release of megatron-core for which no MindSpeed was read."""
    release = Version(megatron).release[:2] if megatron else NEWEST_READ
    if release in READ:
        return ()
    of_mindspeed = {name for row in CONFLICTS for name, value in row.when if value is True} - _MEGATRONS
    return tuple(sorted(name for name in of_mindspeed if is_set(args.get(name))))


def _has_triton() -> bool:
    try:
        return importlib.util.find_spec("triton") is not None
    except (ImportError, ValueError):
        return False
