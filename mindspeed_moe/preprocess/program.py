"""What stands behind the patches of one dispatcher, whichever way it computes."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from mindspeed_moe.preprocess.sites import Sites


class Program(Protocol):
    """One implementation of preprocess.

    waits_later: whether `host_copies` has anything to do; four calls a layer are saved where it has not.
    sites: what it knows of each dispatcher.
    """

    waits_later: bool
    sites: Sites

    def preprocess(self, dispatcher: Any, routing_map: torch.Tensor) -> torch.Tensor | None:
        """Turn a routing map [T, E] bool into the dispatcher's splits, or start to."""

    def host_copies(self, dispatcher: Any, point: str, tokens_per_expert: Any) -> Any:
        """Run at each of Megatron's points; returns tokens per local expert as the next reader wants them."""

    def under_way(self, dispatcher: Any) -> bool:
        """Return whether a call stands between its copy and its wait: host values are not there yet."""
