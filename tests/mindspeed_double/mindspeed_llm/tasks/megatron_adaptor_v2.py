"""Sets its own list of features, then removes and registers everything anew; arguments are parsed each time."""

from mindspeed import args_utils
from mindspeed.args_utils import get_mindspeed_args
from mindspeed.features_manager import create_features_list
from mindspeed.features_manager.features_manager import MindSpeedFeaturesManager


def _pass(config):
    MindSpeedFeaturesManager.remove_patches()
    args_utils._ARGS = None
    args = get_mindspeed_args()
    for key, value in config.items():
        setattr(args, key, value)
    MindSpeedFeaturesManager.apply_features_pre_patches(args)
    MindSpeedFeaturesManager.apply_features_patches(args)


def repatch(config):
    _pass(config)


MindSpeedFeaturesManager.set_features_list(create_features_list())
_pass({})
