"""`device: cpu`: a function of Megatron's MoE utilities that assumes a GPU."""

from __future__ import annotations

from mindspeed_moe.contract.generations import HOOKED, TOKEN_DISPATCHER
from mindspeed_moe.devices import cpu
from mindspeed_moe.patching import PatchSpec

UNIT = "cpu moe"
_UTILS = "megatron.core.transformer.moe.moe_utils"

SPECS = (
    PatchSpec(
        target=f"{_UTILS}.maybe_move_tensor_to_cpu",
        kind="replace",
        build=lambda original, context: cpu.host_copy,
        unit=UNIT,
        generations=HOOKED,
        parameters=("tensor", "as_numpy", "record_stream"),
        aliases=(f"{TOKEN_DISPATCHER}.maybe_move_tensor_to_cpu",),
        why="It converts only GPU tensors, so that splits on the host stay tensors; all-to-all wants integers.",
        how="mindspeed_moe.devices.cpu.host_copy: the same conversion for tensors that are on the host already.",
        upstream="megatron-core from 0.12 on, megatron/core/transformer/moe/moe_utils.py",
        remove_when="it converts by device type instead of `is_cuda`.",
    ),
)
