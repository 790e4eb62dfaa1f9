"""The configuration: a typed, frozen model and its readers."""

from mindspeed_moe.config.load import load_config
from mindspeed_moe.config.model import Config, Dispatchers, Preprocess

__all__ = ["Config", "Dispatchers", "Preprocess", "load_config"]
