"""What stands behind the patches of one dispatcher, whichever way it computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar

import torch
from torch._C._dynamo import eval_frame

from mindspeed_moe.preprocess.sites import Sites

P = ParamSpec("P")
R = TypeVar("R")

# As torch.compiler.disable does it, but without torch._dynamo, which takes seconds to import, and with less in a call.
_set_eval_frame = eval_frame.set_eval_frame


def uncompiled(run: Callable[P, R]) -> Callable[P, R]:
    """Return `run` for calls out of code that torch.compile works on: neither it nor what it calls is compiled."""

    def outside(*args: P.args, **kwargs: P.kwargs) -> R:
        compiler = _set_eval_frame(None)
        if compiler is None:
            return run(*args, **kwargs)
        try:
            return run(*args, **kwargs)
        finally:
            _set_eval_frame(compiler)

    return not_compiled(outside)


def not_compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function as one that compiled code calls and does not take in."""
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    if hasattr(eval_frame, "skip_code"):
        eval_frame.skip_code(function.__code__)
    elif hasattr(eval_frame, "set_code_exec_strategy"):  # from torch 2.7 or so on
        skip, default = eval_frame._FrameAction.SKIP, eval_frame._FrameAction.DEFAULT
        eval_frame.set_code_exec_strategy(function.__code__, eval_frame._FrameExecStrategy(skip, default))
    return function


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
