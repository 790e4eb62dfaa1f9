"""Fills the list when it is imported."""

from mindspeed.deprecate import AutoExecuteFunction
from mindspeed.features_manager.feature import MindSpeedFeature
from mindspeed.features_manager.features_manager import MindSpeedFeaturesManager
from mindspeed.features_manager.moe import FusedPermuteFeature, GmmFeature, OverlapFeature
from mindspeed.features_manager.whole import LevelFeature

__all__ = ["MindSpeedFeature", "MindSpeedFeaturesManager", "create_features_list"]


def create_features_list():
    return [LevelFeature(), FusedPermuteFeature(), GmmFeature(), OverlapFeature()]


@AutoExecuteFunction
def set_default_features_list():
    MindSpeedFeaturesManager.set_features_list(create_features_list())


set_default_features_list()
