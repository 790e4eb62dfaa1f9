"""What a release of megatron-core promises to preprocess: generations by release, proved by probes."""

from mindspeed_moe.contract.generations import GENERATIONS, Generation, generation_of
from mindspeed_moe.contract.probes import prove

__all__ = ["GENERATIONS", "Generation", "generation_of", "prove"]
