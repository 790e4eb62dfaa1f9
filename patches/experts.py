"""Tells the programs which experts a dispatcher serves, and in which layer, when the layer is built."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from mindspeed_moe import log
from mindspeed_moe.patching import PatchSpec, Switch
from mindspeed_moe.patching.target import beneath, describe
from mindspeed_moe.preprocess.experts import ExpertsOf


def _layer_init(original: Callable[..., Any], experts: ExpertsOf) -> Callable[..., Any]:
    switch = Switch()

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if switch.to is not None:
            switch.to(self, *args, **kwargs)
            return
        original(self, *args, **kwargs)
        experts.layer_made()
        if not experts.served:
            return
        experts.note(self.token_dispatcher, self.experts, self)
        reason = _out_of_reach(type(self.token_dispatcher))
        if reason and not (dist.is_initialized() and dist.get_rank()):
            log.once(logging.WARNING, f"mindspeed_moe has no effect in layers with {reason}")

    return switch.of(__init__)


def _out_of_reach(dispatcher: type) -> str | None:
    """Return what keeps a class of dispatchers from us: no preprocess, or one of its own, as MindSpeed has some."""
    function = found = getattr(dispatcher, "preprocess", None)
    if found is None:
        return f"{dispatcher.__name__}, which has no preprocess: ask for --moe-token-dispatcher-type alltoall"
    while function is not None:
        module = str(getattr(function, "__globals__", {}).get("__name__"))
        if module.startswith(("megatron.core.", "mindspeed_moe.")):
            return None
        function = getattr(function, "__wrapped__", None)
    if beneath(found, dispatcher) is not None:  # somebody's wrapper that calls ours
        return None
    return f"a {dispatcher.__name__}, whose class has a preprocess of its own: {describe(found)}"


SPECS = (
    PatchSpec(
        target="megatron.core.transformer.moe.moe_layer.MoELayer.__init__",
        kind="wrap",
        build=_layer_init,
        unit="experts",
        over_others=True,
        why="A dispatcher does not know its experts, and where they read their counts decides whether a copy or a "
        "hidden wait for the whole device can be saved. Nor does it know its layer's number, which `verify` and "
        "telemetry name. And when layers are built, all ranks can still tell each other how they are configured.",
        how="After the constructor, the class of the experts is remembered beside the dispatcher; a layer that was "
        "built before gets the default of the dispatch table. A dispatcher that the plugin does not reach is named in "
        "a warning. The first layer of a rank that has joined a process group tells its store what the rank runs, even "
        "where that is nothing but `stock`.",
        upstream="megatron-core from 0.10 on, megatron/core/transformer/moe/moe_layer.py and experts.py",
        remove_when="a dispatcher is told where its experts read their counts, and its layer's number.",
    ),
)
