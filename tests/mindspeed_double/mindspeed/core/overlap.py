"""A layer whose dispatcher has a preprocess of its own class."""

from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher


class OverlapDispatcher(MoEAlltoAllTokenDispatcher):
    def preprocess(self, routing_map):
        return super().preprocess(routing_map)


class OverlapLayer(MoELayer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.token_dispatcher.__class__ = OverlapDispatcher
