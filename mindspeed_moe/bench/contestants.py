"""What is measured: one dispatcher an implementation, each with the methods that the plan would patch in.

The methods are the very objects that `enable` would put into Megatron's class; here each implementation has a
subclass of its own for them, so that calls can alternate without any switching.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from mindspeed_moe.bench.megatron import parallel_state, token_dispatcher, transformer_config
from mindspeed_moe.bench.places import replaced
from mindspeed_moe.bench.shapes import CAPACITY_FACTOR, Shape
from mindspeed_moe.config import load_config
from mindspeed_moe.contract import Generation, generation_of
from mindspeed_moe.contract.generations import GROUP_COLLECTION
from mindspeed_moe.contract.probes import holds
from mindspeed_moe.dispatch_table import STOCK, Decision
from mindspeed_moe.environment import Environment
from mindspeed_moe.planning import decide, make_plan
from mindspeed_moe.preprocess.layout import ExpertLayout

DEVICE = "cpu"
PACKED = "packed"
IMPLEMENTATIONS = (STOCK, "reference", PACKED)
POINTS = ("before_permutation_1", "before_ep_alltoall", "before_permutation_2", "before_finish")  # in layer order


@dataclass(frozen=True)
class Team:
    """Every implementation's dispatcher class, while the device's own patches are applied.

    classes: implementation -> a subclass of Megatron's MoEAlltoAllTokenDispatcher; stock's adds nothing.
    packed: the decision behind `packed`, which names its building blocks.
    """

    classes: dict[str, type]
    generation: Generation
    packed: Decision

    def dispatcher(self, implementation: str, shape: Shape, layout: ExpertLayout) -> Any:
        """Return a dispatcher for a layout of the shape, on the groups that Megatron's parallel state names."""
        own = list(range(layout.first_expert, layout.first_expert + layout.num_local_experts))
        groups = {"pg_collection": _groups()} if holds(GROUP_COLLECTION) else {}
        return self.classes[implementation](len(own), own, config=_config(shape), **groups)


@contextlib.contextmanager
def assemble(environment: Environment) -> Iterator[Team]:
    """Plan each implementation, and apply what the device needs; everything is put back at the end.

    Raises one of the package's errors when Megatron is missing, unknown, or patched already.
    """
    decide(load_config({"device": DEVICE}), environment)  # an unknown release is told apart before it is imported
    token_dispatcher()
    plans = {
        name: make_plan(load_config({"device": DEVICE, "dispatchers": {"alltoall": name}}), environment)
        for name in IMPLEMENTATIONS
    }
    stock_class = token_dispatcher().MoEAlltoAllTokenDispatcher
    classes: dict[str, type] = {}
    for name, (_, patches) in plans.items():
        methods = {swap.slot.name: swap.new for swap in patches.swaps if swap.slot.owner is stock_class}
        classes[name] = type(stock_class)(f"{name.title()}Dispatcher", (stock_class,), methods)
    decision = next(one for one in plans[PACKED][0].decisions if one.implementation == PACKED)
    _, device_patches = plans[STOCK]
    # Some releases keep the first dispatcher's copy stream in the class.
    kept = [(stock_class, "cuda_dtoh_stream", None)] if "cuda_dtoh_stream" in vars(stock_class) else []
    with replaced(kept):
        device_patches.apply(log=False)
        try:
            yield Team(classes, generation_of(str(environment.megatron_core.version)), decision)
        finally:
            device_patches.revert(log=False)


def run(dispatcher: Any, routing_map: torch.Tensor) -> Any:
    """Run preprocess and its host half, as a layer does; returns tokens per local expert [L]."""
    counts = dispatcher.preprocess(routing_map)
    for point in POINTS:
        counts = dispatcher._maybe_dtoh_and_synchronize(point, counts)
    return counts


def caller(dispatcher: Any, routing_map: torch.Tensor) -> Callable[[], object]:
    """Return `run` as a call without arguments."""
    return lambda: run(dispatcher, routing_map)


def _config(shape: Shape) -> Any:
    dropping = {} if shape.mode == "dropless" else {"moe_expert_capacity_factor": CAPACITY_FACTOR}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # advice on training, of no concern to preprocess
        return transformer_config().TransformerConfig(
            num_layers=1,
            hidden_size=8 * shape.tp,
            num_attention_heads=shape.tp,
            add_bias_linear=False,
            num_moe_experts=shape.experts,
            moe_router_topk=shape.topk,
            moe_router_pre_softmax=True,  # which some releases demand for top-1
            moe_token_dispatcher_type="alltoall",
            moe_pad_expert_input_to_capacity=shape.mode == "pad",
            tensor_model_parallel_size=shape.tp,
            sequence_parallel=shape.tp > 1,
            expert_model_parallel_size=shape.ep,
            expert_tensor_parallel_size=shape.tp,
            **dropping,
        )


def _groups() -> SimpleNamespace:
    state = parallel_state()
    return SimpleNamespace(
        ep=state.get_expert_model_parallel_group(),
        expt_tp=state.get_expert_tensor_parallel_group(),
        tp_ep=state.get_expert_tensor_and_model_parallel_group(),
    )
