"""`device: cpu`: gloo refuses to gather and to reduce-scatter parts of unequal size; Megatron needs both.

With expert tensor parallelism every rank has another number of tokens. Both are made, exactly, out of an
all-to-all; parts of equal size go to torch's own function as before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from mindspeed_moe.errors import UnsupportedError
from mindspeed_moe.patching import PatchSpec

UNIT = "cpu collectives"
_HOME = ("torch.distributed.distributed_c10d", "torch.distributed.c10d_logger")
_UPSTREAM = "megatron-core 0.12.1 and 0.16.1, megatron/core/tensor_parallel/mappings.py; torch ProcessGroupGloo"


def _all_gather(original: Callable[..., Any], context: object) -> Callable[..., Any]:
    @functools.wraps(original)
    def all_gather(
        tensor_list: list[torch.Tensor], tensor: torch.Tensor, group: Any = None, async_op: bool = False
    ) -> Any:
        if not _unequal(tensor_list):
            return original(tensor_list, tensor, group=group, async_op=async_op)
        _refuse_async("all_gather", async_op)
        received = [len(part) for part in tensor_list]
        sent = tensor.contiguous().repeat(len(received), *[1] * (tensor.dim() - 1))
        gathered = tensor.new_empty((sum(received), *tensor.shape[1:]))
        dist.all_to_all_single(gathered, sent, received, [len(tensor)] * len(received), group=group)
        for part, values in zip(tensor_list, torch.split(gathered, received), strict=True):
            part.copy_(values)
        return None

    return all_gather


def _reduce_scatter(original: Callable[..., Any], context: object) -> Callable[..., Any]:
    @functools.wraps(original)
    def reduce_scatter(
        output: torch.Tensor,
        input_list: list[torch.Tensor],
        op: Any = dist.ReduceOp.SUM,
        group: Any = None,
        async_op: bool = False,
    ) -> Any:
        if not _unequal(input_list):
            try:
                return original(output, input_list, op=op, group=group, async_op=async_op)
            except RuntimeError as error:
                # Older gloo (torch 2.7) has none, whatever the sizes; it says so before anything has been sent.
                if "does not support reduce_scatter" not in str(error):
                    raise
        _refuse_async("reduce_scatter", async_op)
        if op != dist.ReduceOp.SUM:
            raise UnsupportedError(f"reduce_scatter of unequal parts on the cpu: op {op}; allowed: SUM")
        ranks, rows = len(input_list), len(output)
        parts = output.new_empty((ranks * rows, *output.shape[1:]))
        dist.all_to_all_single(
            parts, torch.cat(list(input_list)), [rows] * ranks, [len(part) for part in input_list], group=group
        )
        # Summed in rank order, so that the result does not depend on timing.
        output.copy_(parts.view(ranks, *output.shape).sum(0))
        return None

    return reduce_scatter


def _unequal(parts: list[torch.Tensor]) -> bool:
    return any(part.shape != parts[0].shape for part in parts)


def _refuse_async(name: str, async_op: bool) -> None:
    if async_op:
        raise UnsupportedError(f"{name} of unequal parts on the cpu: async_op=True; allowed: False")


def _spec(name: str, build: Callable[..., Any], parameters: tuple[str, ...], why: str) -> PatchSpec:
    return PatchSpec(
        target=f"torch.distributed.{name}",
        kind="wrap",
        build=build,
        unit=UNIT,
        home=_HOME,
        parameters=parameters,
        why=why,
        how="Parts of unequal size travel in one all_to_all_single; equal ones go to the original.",
        upstream=_UPSTREAM,
        remove_when=f"gloo takes unequal parts in {name}.",
    )


SPECS = (
    _spec(
        "all_gather",
        _all_gather,
        ("tensor_list", "tensor", "group", "async_op"),
        "Dispatch gathers every TP rank's tokens, and their number differs from rank to rank.",
    ),
    _spec(
        "reduce_scatter",
        _reduce_scatter,
        ("output", "input_list", "op", "group", "async_op"),
        "Combine reduces and scatters every TP rank's tokens, and their number differs from rank to rank; the gloo of "
        "torch 2.7 has no reduce_scatter at all.",
    ),
)
