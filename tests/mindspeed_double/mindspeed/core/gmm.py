"""Grouped matmul's preprocess of the legacy dispatcher, whose counts stay on the device."""

import importlib.util

_LEGACY = "megatron.core.transformer.moe.legacy_a2a_token_dispatcher"


def legacy():
    return f"{_LEGACY}.MoEAlltoAllSEQTokenDispatcher" if importlib.util.find_spec(_LEGACY) else None


def ascend_gmm_preprocess(self, routing_map):
    raise NotImplementedError("a double of its place, not of what it does")
