"""The features that touch dispatchers."""

from mindspeed import QUIRKS
from mindspeed.features_manager.feature import MindSpeedFeature

MOE = "megatron.core.transformer.moe"
A2A = f"{MOE}.token_dispatcher.MoEAlltoAllTokenDispatcher"


class FusedPermuteFeature(MindSpeedFeature):
    def __init__(self):
        super().__init__("moe-permute-fusion")

    def register_args(self, parser):
        parser.add_argument("--use-fused-moe-token-permute-and-unpermute", action="store_true")

    def register_patches(self, patch_manager, args):
        from mindspeed.core import fusions

        patch_manager.register_patch(f"{MOE}.moe_utils.permute", fusions.permute)
        patch_manager.register_patch(f"{MOE}.moe_utils.unpermute", fusions.unpermute)
        if "no_triton" in QUIRKS or "narrow_init" in QUIRKS:
            patch_manager.register_patch(f"{MOE}.moe_utils.sort_chunks_by_idxs", fusions.sort_chunks_wrapper)
            patch_manager.register_patch(f"{A2A}._maybe_dtoh_and_synchronize", fusions.maybe_dtoh_and_synchronize)
            constructor = fusions.narrow_init_wrapper if "narrow_init" in QUIRKS else fusions.init_wrapper
            patch_manager.register_patch(f"{A2A}.__init__", constructor)
        if getattr(args, "moe_token_dispatcher_type", None) == "alltoall":
            patch_manager.register_patch(f"{A2A}.preprocess", fusions.preprocess_sync_wrapper)


class GmmFeature(MindSpeedFeature):
    def __init__(self):
        super().__init__("moe-grouped-gemm")

    def register_patches(self, patch_manager, args):
        from mindspeed.core.gmm import ascend_gmm_preprocess, legacy

        if legacy() is not None:
            patch_manager.register_patch(f"{legacy()}.preprocess", ascend_gmm_preprocess)


class OverlapFeature(MindSpeedFeature):
    def __init__(self):
        super().__init__("moe-alltoall-overlap-comm")

    def register_args(self, parser):
        parser.add_argument("--moe-alltoall-overlap-comm", action="store_true")

    def register_patches(self, patch_manager, args):
        from mindspeed.core.overlap import OverlapLayer

        patch_manager.register_patch(f"{MOE}.moe_layer.MoELayer", OverlapLayer)
