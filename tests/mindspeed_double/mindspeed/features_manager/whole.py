"""The level of optimisation, and a patch that is always there."""

from mindspeed.features_manager.feature import MindSpeedFeature


class LevelFeature(MindSpeedFeature):
    def __init__(self):
        super().__init__("level", optimization_level=0)

    def register_args(self, parser):
        parser.add_argument("--optimization-level", type=int, default=2)
        parser.add_argument("--ai-framework", default="pytorch")

    def register_patches(self, patch_manager, args):
        from mindspeed.core.fusions import seen_wrapper

        patch_manager.register_patch("megatron.core.transformer.moe.moe_layer.MoELayer.forward", seen_wrapper)
