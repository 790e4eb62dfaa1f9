"""Patches Megatron when it is imported."""

from mindspeed import QUIRKS
from mindspeed.args_utils import get_full_args, get_mindspeed_args
from mindspeed.deprecate import AutoExecuteFunction
from mindspeed.features_manager.features_manager import MindSpeedFeaturesManager

_IS_FEATURES_PATCHED = False


@AutoExecuteFunction
def patch_features():
    global _IS_FEATURES_PATCHED
    if _IS_FEATURES_PATCHED:
        return
    _IS_FEATURES_PATCHED = True
    args = get_mindspeed_args()
    MindSpeedFeaturesManager.apply_features_pre_patches(args)
    MindSpeedFeaturesManager.apply_features_patches(args)


if "no_removal" not in QUIRKS:

    def repatch(args):
        MindSpeedFeaturesManager.remove_patches()
        full = get_full_args()
        for key, value in args.items():
            setattr(full, key, value)
        MindSpeedFeaturesManager.apply_features_pre_patches(full)
        MindSpeedFeaturesManager.apply_features_patches(full)


patch_features()
