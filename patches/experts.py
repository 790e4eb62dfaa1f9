"""Tells a dispatcher's site which experts it serves, where they decide on which side the counts are wanted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from mindspeed_moe.patching import PatchSpec
from mindspeed_moe.preprocess.experts import ExpertsOf


def _layer_init(original: Callable[..., Any], experts: ExpertsOf) -> Callable[..., Any]:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        experts.note(self.token_dispatcher, self.experts)

    return __init__


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
        "built before gets the default of the dispatch table. Only with tokens_per_expert: auto.",
        upstream="megatron-core from 0.10 on, megatron/core/transformer/moe/moe_layer.py and experts.py",
        remove_when="a dispatcher is told where its experts read their counts.",
    ),
)
