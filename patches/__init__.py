"""What is patched, and why: one module a subject, all as data. Installed as `mindspeed_moe.patches`."""

if __name__ != "mindspeed_moe.patches":
    raise ImportError(
        "this folder is the package mindspeed_moe.patches; install the project and import it by that name"
    )

from mindspeed_moe.patches import (
    alltoall,
    alltoall_inline,
    cpu_collectives,
    cpu_moe,
    cpu_random,
    cpu_streams,
    experts,
    layer_spec,
    router,
)
from mindspeed_moe.patching import PatchSpec

# Names that Megatron reads and does not define without Transformer Engine.
_EVERYWHERE = (*router.SPECS, *layer_spec.SPECS)

# What a device needs so that Megatron runs on it at all, with `stock` too.
DEVICE_PATCHES: dict[str, tuple[PatchSpec, ...]] = {
    "npu": _EVERYWHERE,
    "cuda": _EVERYWHERE,
    "cpu": (*_EVERYWHERE, *cpu_streams.SPECS, *cpu_random.SPECS, *cpu_moe.SPECS, *cpu_collectives.SPECS),
}

# What puts an implementation in the place of a dispatcher's own.
DISPATCHER_PATCHES: dict[str, tuple[PatchSpec, ...]] = {
    "alltoall": (*alltoall.SPECS, *alltoall_inline.SPECS),
    "alltoall_seq": alltoall_inline.SEQ_SPECS,
}

# What settles a choice that waits for the layer's experts.
EXPERTS_PATCHES: tuple[PatchSpec, ...] = experts.SPECS


def catalogue() -> tuple[PatchSpec, ...]:
    """Return every specification once, in the order in which they are applied."""
    groups = (*DEVICE_PATCHES.values(), *DISPATCHER_PATCHES.values(), EXPERTS_PATCHES)
    return tuple(dict.fromkeys(spec for specs in groups for spec in specs))
