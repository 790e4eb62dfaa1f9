"""Names that the oldest layer specification reads, and that exist only where Transformer Engine is installed."""

from __future__ import annotations

import importlib
from typing import Any

from mindspeed_moe.contract.generations import INLINED
from mindspeed_moe.patching import PatchSpec

_SPECS = "megatron.core.models.gpt.gpt_layer_specs"
_LAYERS = "megatron.core.tensor_parallel.layers"


def _supplied(name: str, stand_in: str | None, how: str) -> PatchSpec:
    def build(original: object, context: object) -> Any:
        return getattr(importlib.import_module(_LAYERS), stand_in) if stand_in else None

    return PatchSpec(
        target=f"{_SPECS}.{name}",
        kind="supply",
        build=build,
        unit="layer spec",
        generations=INLINED[:1],
        why="The local specification of a MoE layer reads the name, which is defined only where Transformer Engine "
        "(or a stand-in of MindSpeed's) is installed: without it no MoE layer can be specified.",
        how=how,
        upstream="megatron-core 0.10.0, megatron/core/models/gpt/gpt_layer_specs.py",
        remove_when="the release is no longer supported.",
    )


SPECS = (
    _supplied("TEColumnParallelGroupedLinear", None, "None: there is no grouped matmul of Transformer Engine's."),
    _supplied("TEColumnParallelLinear", "ColumnParallelLinear", "Megatron's own linear layer, for shared experts."),
    _supplied("TERowParallelLinear", "RowParallelLinear", "Megatron's own linear layer, for shared experts."),
)
