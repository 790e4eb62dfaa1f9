"""A name that Megatron's router reads on every device, and that exists only where Transformer Engine is installed."""

from __future__ import annotations

from mindspeed_moe.contract.generations import HOOKED
from mindspeed_moe.patching import PatchSpec

SPECS = (
    PatchSpec(
        target="megatron.core.transformer.moe.moe_utils.te_general_gemm",
        kind="supply",
        build=lambda original, context: None,
        unit="router",
        generations=HOOKED,
        why="The router reads the name, which is defined only where Transformer Engine is installed: without it no MoE "
        "layer runs.",
        how="None: the router then uses torch's matrix product.",
        upstream="megatron-core from 0.13 on, megatron/core/transformer/moe/moe_utils.py (RouterGatingLinearFunction)",
        remove_when="the name is defined without Transformer Engine.",
    ),
)
