"""`device: cpu`: Megatron's random-state tracker lives on torch.cuda; the host's generator takes its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mindspeed_moe.contract.generations import GENERATIONS
from mindspeed_moe.devices import cpu
from mindspeed_moe.patching import PatchSpec

UNIT = "cpu random state"
_TRACKER = "megatron.core.tensor_parallel.random"


def _stand_in(
    target: str, value: Callable[..., Any], why: str, home: str, generations: tuple[str, ...] = ()
) -> PatchSpec:
    return PatchSpec(
        target=target,
        kind="replace",
        build=lambda original, context: value,
        unit=UNIT,
        generations=generations,
        home=(home,),
        why=why,
        how=f"mindspeed_moe.devices.cpu.{value.__name__}",
        upstream="megatron-core from 0.10 on, megatron/core/tensor_parallel/random.py",
        remove_when="Megatron's tracker keeps the state of the device that tensors are on.",
    )


SPECS = (
    _stand_in(
        "torch.cuda.get_rng_state",
        cpu.get_rng_state,
        "The tracker and checkpointing save the device's random state.",
        "torch.cuda.random",
    ),
    _stand_in(
        "torch.cuda.set_rng_state",
        cpu.set_rng_state,
        "Checkpointing restores the device's random state.",
        "torch.cuda.random",
    ),
    _stand_in(
        "torch.cuda.manual_seed",
        cpu.manual_seed,
        "model_parallel_cuda_manual_seed seeds the device.",
        "torch.cuda.random",
    ),
    _stand_in(
        f"{_TRACKER}._get_cuda_rng_state",
        cpu.get_rng_state,
        "The state is read through a function that reaches past torch.cuda.get_rng_state.",
        _TRACKER,
        tuple(one.name for one in GENERATIONS[1:]),  # the oldest calls torch.cuda.get_rng_state itself
    ),
    _stand_in(
        f"{_TRACKER}._set_cuda_rng_state",
        cpu.set_rng_state,
        "The tracker switches states through a function that calls torch's C interface.",
        _TRACKER,
    ),
)
