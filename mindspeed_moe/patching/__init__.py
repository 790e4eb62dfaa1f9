"""A patch engine: specifications as data, checked together, applied together, undone exactly. Knows nothing of MoE."""

from mindspeed_moe.patching.engine import Patches, PatchSet, collect, patched_by_others
from mindspeed_moe.patching.spec import PatchSpec
from mindspeed_moe.patching.target import Switch

__all__ = ["PatchSet", "PatchSpec", "Patches", "Switch", "collect", "patched_by_others"]
