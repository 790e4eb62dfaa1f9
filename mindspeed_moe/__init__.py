"""Device-specific preprocess for expert-parallel MoE layers of Megatron-Core and MindSpeed.

Importing this package has no effect. `enable()` patches, `disable()` undoes it, `status()` tells; importing
`mindspeed_moe.adaptor` is `enable()` with the configuration that the launch names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mindspeed_moe.api import disable, enable, status
    from mindspeed_moe.plan import Plan

__all__ = ["Plan", "disable", "enable", "status"]

_WHERE = {
    "enable": "mindspeed_moe.api",
    "disable": "mindspeed_moe.api",
    "status": "mindspeed_moe.api",
    "Plan": "mindspeed_moe.plan",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
