"""Tells a dispatcher's site which experts it serves, where they decide on which side the counts are wanted."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

from mindspeed_moe import log
from mindspeed_moe.patching import PatchSpec
from mindspeed_moe.patching.target import describe
from mindspeed_moe.preprocess.experts import ExpertsOf


def _layer_init(original: Callable[..., Any], experts: ExpertsOf) -> Callable[..., Any]:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        experts.note(self.token_dispatcher, self.experts)
        bypass = _own_preprocess(type(self.token_dispatcher))
        if bypass:
            log.once(logging.WARNING, f"{bypass} runs, not mindspeed_moe: its class has a preprocess of its own")

    return __init__


def _own_preprocess(dispatcher: type) -> str | None:
    """Return whose preprocess a class of dispatchers has when it is neither Megatron's nor ours; MindSpeed has some."""
    function = found = getattr(dispatcher, "preprocess", None)
    while function is not None:
        module = str(getattr(function, "__globals__", {}).get("__name__"))
        if module.startswith(("megatron.core.", "mindspeed_moe.")):
            return None
        function = getattr(function, "__wrapped__", None)
    return describe(found) if found is not None else None


SPECS = (
    PatchSpec(
        target="megatron.core.transformer.moe.moe_layer.MoELayer.__init__",
        kind="wrap",
        build=_layer_init,
        unit="experts",
        over_others=True,
        why="A dispatcher does not know its experts, and where they read their counts decides whether a copy or a "
        "hidden wait for the whole device can be saved.",
        how="After the constructor, the class of the experts is remembered beside the dispatcher; a layer that was "
        "built before gets the default of the dispatch table. A dispatcher with a preprocess of its own class is named "
        "in a warning: it bypasses the plugin. Only with tokens_per_expert: auto.",
        upstream="megatron-core from 0.10 on, megatron/core/transformer/moe/moe_layer.py and experts.py",
        remove_when="a dispatcher is told where its experts read their counts.",
    ),
)
