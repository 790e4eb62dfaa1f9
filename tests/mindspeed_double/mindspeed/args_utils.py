"""Arguments while Megatron's are not there yet: what no feature knows becomes an attribute with a string."""

import argparse
import sys

from mindspeed.features_manager import MindSpeedFeaturesManager

_ARGS = None


def get_mindspeed_args(get_defaults=False):
    global _ARGS
    if _ARGS is not None and not get_defaults:
        return _ARGS
    parser = argparse.ArgumentParser(allow_abbrev=False)
    MindSpeedFeaturesManager.register_features_args(parser)
    known, unknown = parser.parse_known_args([] if get_defaults else None)
    position = 0
    while position < len(unknown):
        word, equals, value = unknown[position].partition("=")
        position += 1
        values = [value] if equals else []
        while position < len(unknown) and not unknown[position].startswith("-"):
            values.append(unknown[position])
            position += 1
        if word.startswith("--"):
            setattr(known, word[2:].replace("-", "_"), values[0] if len(values) == 1 else values or True)
    if not get_defaults:
        _ARGS = known
    return known


def get_full_args():
    global_vars = sys.modules.get("megatron.training.global_vars")
    given = getattr(global_vars, "_GLOBAL_ARGS", None)
    return given if given is not None else get_mindspeed_args()
