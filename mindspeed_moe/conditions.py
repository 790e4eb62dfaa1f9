"""What happens under unusual conditions, and what the choices cost, as data for `doctor` and for the reader.

A condition that shows itself only at run time cannot be a cell of the dispatch table; each has a test of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Condition:
    """outcome: what runs then. reason: why."""

    name: str
    outcome: str
    reason: str


CONDITIONS = (
    Condition(
        "a CUDA graph captures preprocess",
        "stock, with one warning",
        "a replay repeats what the tensors do, not pinned memory, events and arithmetic on the host",
    ),
    Condition(
        "inference switches padding on and off on a live dispatcher",
        "packed or reference",
        "the mode is read in every call, and a call that was given up keeps its slot until its copy is done",
    ),
    Condition(
        "torch.use_deterministic_algorithms",
        "packed or reference",
        "integer sums do not depend on their order; torch then fills each new tensor, at one kernel each",
    ),
    Condition(
        "autograd's anomaly mode, recomputation, inference mode",
        "packed or reference",
        "counts carry no gradient, and nothing is kept from one call for the next",
    ),
    Condition(
        "torch.compile around a layer",
        "packed or reference, outside of the compiled parts",
        "what the host reads cannot be traced: a compiled layer is cut there, as it is in stock's copies to the host",
    ),
    Condition(
        "ASCEND_LAUNCH_BLOCKING or CUDA_LAUNCH_BLOCKING",
        "packed or reference",
        "results are the same; every launch waits, so that times say nothing",
    ),
    Condition(
        "overlap_moe_expert_parallel_comm",
        "packed or reference; exchange_group: auto takes the TPxEP group",
        "another micro-batch's tokens may be under way on the EP group, and counts would queue behind them",
    ),
    Condition(
        "MindSpeed's --moe-tp-extend-ep",
        "bypassed: MindSpeed's own preprocess runs",
        "its dispatcher's class overrides preprocess; ExtendedPreprocess is offered to such a class (README)",
    ),
    Condition(
        "a routing map of another type than bool, one that requires grad included",
        "RoutingMapError",
        "a map of probabilities is not a routing map: summing it would give numbers that fit nothing",
    ),
)

BLOCKING = {"npu": "ASCEND_LAUNCH_BLOCKING", "cuda": "CUDA_LAUNCH_BLOCKING"}
_HCCL_BUFFER_MB = 200  # HCCL_BUFFSIZE's default, for each direction
DEDICATED_BUFFER_MB = 1


def launches_block(device: str, variables: Mapping[str, str]) -> str | None:
    """Return the variable that makes every launch on a device wait, None when there is none."""
    name = BLOCKING.get(device, "")
    return name if variables.get(name, "0") not in ("", "0") else None


def group_memory(device: str, variables: Mapping[str, str]) -> dict[str, str]:
    """Return what each value of exchange_group costs a rank in device memory, beside the groups that tokens use."""
    if device != "npu":
        return {}
    size, _ = hccl_buffer(variables)
    return {
        "ep": "none: tokens travel on it (TP = 1 only)",
        "tp_ep": f"{2 * size} MB (HCCL_BUFFSIZE {size} MB, twice), unless something else uses the group",
        "dedicated": f"{2 * DEDICATED_BUFFER_MB} MB ({DEDICATED_BUFFER_MB} MB, twice)",
    }


def hccl_buffer(variables: Mapping[str, str]) -> tuple[int, str]:
    """Return the buffer of a communicator that has no size of its own, in MB for each direction, and who says so."""
    given = variables.get("HCCL_BUFFSIZE", "")
    return (
        (int(given), "HCCL_BUFFSIZE") if given.isdecimal() and len(given) < 10 else (_HCCL_BUFFER_MB, "HCCL's default")
    )
