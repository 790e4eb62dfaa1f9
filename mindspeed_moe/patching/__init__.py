"""A patch engine: specifications as data, checked together, applied together, undone exactly. Knows nothing of MoE."""

from mindspeed_moe.patching.engine import Patches, PatchSet, collect, patched_by_others
from mindspeed_moe.patching.spec import PatchSpec

__all__ = ["PatchSet", "PatchSpec", "Patches", "collect", "patched_by_others"]
