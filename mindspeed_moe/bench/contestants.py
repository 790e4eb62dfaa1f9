"""What is measured: one dispatcher an implementation, each with the methods that the plan would patch in.

The methods are the very objects that `enable` would put into Megatron's class; here each implementation has a
subclass of its own for them, so that calls can alternate without any switching.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from mindspeed_moe.bench.devices import CPU
from mindspeed_moe.bench.megatron import parallel_state, token_dispatcher, transformer_config
from mindspeed_moe.bench.places import replaced
from mindspeed_moe.bench.points import pass_points
from mindspeed_moe.bench.shapes import CAPACITY_FACTOR, Shape
from mindspeed_moe.config import Config, load_config
from mindspeed_moe.contract import Generation, generation_of
from mindspeed_moe.contract.generations import CLASS_COPY_STREAM, GROUP_COLLECTION
from mindspeed_moe.contract.probes import holds
from mindspeed_moe.dispatch_table import STOCK, Decision
from mindspeed_moe.environment import Environment
from mindspeed_moe.patching import PatchSet
from mindspeed_moe.planning import decide, make_plan, plugin_version
from mindspeed_moe.preprocess.layout import ExpertLayout
from mindspeed_moe.programs import build

PACKED = "packed"
ON_HOST = "packed on the cpu"
IMPLEMENTATIONS = (STOCK, "reference", PACKED)
VERIFIED = {f"{PACKED}, verify: {when}": when for when in ("first", "always")}
_SHARED = {("reference", "tokens_per_expert")}
_GROUPS = (GROUP_COLLECTION.name, "model_comm_pgs")  # what the constructor calls its groups; none up to 0.12
_TABLE = "bench_chunk_table"  # of every class here: the release's name for the chunk table, which it reads by itself


@dataclass(frozen=True)
class Team:
    """Every implementation's dispatcher class, while the device's own patches are applied.

    classes: implementation -> a subclass of Megatron's MoEAlltoAllTokenDispatcher; stock's adds no method.
    packed: the decision behind `packed`, which names its building blocks.
    on_host: the class with the cpu's `packed`, which any other device must agree with; None on the cpu.
    """

    device: str
    classes: dict[str, type]
    generation: Generation
    packed: Decision
    on_host: type | None

    def dispatcher(self, implementation: str | type, shape: Shape, layout: ExpertLayout) -> Any:
        """Return a dispatcher for a layout of the shape, on the groups that Megatron's parallel state names.

        implementation: of `classes`, or ON_HOST, or a class of one's own.
        """
        if isinstance(implementation, str):
            kind = self.on_host if implementation == ON_HOST else self.classes[implementation]
            assert kind is not None
        else:
            kind = implementation
        own = list(range(layout.first_expert, layout.first_expert + layout.num_local_experts))
        return kind(len(own), own, config=layer_config(shape), **group_arguments(_stock_class()))


@contextlib.contextmanager
def assemble(
    environment: Environment, device: str = CPU, choices: Mapping[str, str] | None = None, *, verify: bool = False
) -> Iterator[Team]:
    """Plan each implementation, and apply what the device needs; everything is put back at the end.

    choices: of `packed`, as in the configuration's `preprocess`. verify: also `packed` under VERIFIED.
    Raises one of the package's errors when Megatron is missing, unknown, or patched already, or a choice cannot be had.
    """
    decide(load_config({"device": device}), environment)  # an unknown release is told apart before it is imported
    token_dispatcher()
    # Stock comes last: only a plan that patches preprocess can tell that somebody else's stands there.
    names = (*IMPLEMENTATIONS, *(VERIFIED if verify else ()))
    plans = {name: make_plan(_asked(device, name, choices or {}), environment) for name in reversed(names)}
    generation = generation_of(str(environment.megatron_core.version))
    classes = {name: _with_methods(f"{_word(name)}Dispatcher", plans[name][1], generation) for name in names}
    on_host = packed_class(environment, CPU, {}) if device != CPU else None
    decision = next(one for one in plans[PACKED][0].decisions if one.implementation == PACKED)
    _, device_patches = plans[STOCK]
    # Some releases keep the first dispatcher's copy stream in the class.
    stock_class = _stock_class()
    kept = [(stock_class, CLASS_COPY_STREAM.name, None)] if holds(CLASS_COPY_STREAM) else []
    with replaced(kept):
        device_patches.apply(log=False)
        try:
            yield Team(device, classes, generation, decision, on_host)
        finally:
            device_patches.revert(log=False)


def packed_config(device: str, choices: Mapping[str, str], verify: str = "off") -> Config:
    """Return the configuration of `packed` with choices."""
    return _config(device, PACKED, choices, verify)


def _asked(device: str, implementation: str, choices: Mapping[str, str]) -> Config:
    if implementation == PACKED or implementation in VERIFIED:
        return packed_config(device, choices, VERIFIED.get(implementation, "off"))
    # Of the choices, the seed has only where its counts go; stock has none.
    own = {name: value for name, value in choices.items() if (implementation, name) in _SHARED}
    return _config(device, implementation, own)


def _config(device: str, implementation: str, choices: Mapping[str, str], verify: str = "off") -> Config:
    dispatchers = {"alltoall": implementation, "alltoall_seq": STOCK}  # which is not measured
    return load_config({"device": device, "dispatchers": dispatchers, "preprocess": dict(choices), "verify": verify})


def _word(name: str) -> str:
    return "".join(part for part in name.title() if part.isalnum())


def _stock_class() -> type:
    found: type = token_dispatcher().MoEAlltoAllTokenDispatcher
    return found


def packed_class(environment: Environment, device: str, choices: Mapping[str, str]) -> type:
    """Return a subclass with a device's `packed` under these choices; what else the device needs stays away."""
    from mindspeed_moe.patches import DISPATCHER_PATCHES

    _, generation, decisions = decide(packed_config(device, choices), environment)
    facts = {"mindspeed_moe": plugin_version()}
    program = build(next(one for one in decisions if one.implementation == PACKED), generation, facts)
    stock_class = _stock_class()
    methods = {}
    for spec in DISPATCHER_PATCHES["alltoall"]:
        if spec.is_for(generation.name) and spec.needed(program):
            name = spec.target.rpartition(".")[2]
            methods[name] = spec.build(getattr(stock_class, name, None), program)
    return _subclass("PackedDispatcher", methods, generation)


def _with_methods(name: str, patches: PatchSet, generation: Generation) -> type:
    """Return a subclass of Megatron's dispatcher with the methods that a plan would patch into it."""
    stock_class = _stock_class()
    methods = {swap.slot.name: swap.new for swap in patches.swaps if swap.slot.owner is stock_class}
    return _subclass(name, methods, generation)


def _subclass(name: str, methods: Mapping[str, Any], generation: Generation) -> type:
    stock_class = _stock_class()
    return type(stock_class)(name, (stock_class,), {**methods, _TABLE: generation.chunk_table})


def run(dispatcher: Any, routing_map: torch.Tensor) -> Any:
    """Run preprocess and its host half, as a layer does; returns tokens per local expert [L]."""
    return pass_points(dispatcher, dispatcher.preprocess(routing_map), getattr(dispatcher, _TABLE))


def caller(dispatcher: Any, routing_map: torch.Tensor) -> Callable[[], object]:
    """Return `run` as a call without arguments."""
    return lambda: run(dispatcher, routing_map)


def layer_config(shape: Shape, **more: Any) -> Any:
    """Return the TransformerConfig of a layer of this shape; `more` goes over what is set here."""
    dropping = {} if shape.mode == "dropless" else {"moe_expert_capacity_factor": CAPACITY_FACTOR}
    settings = {
        "num_layers": 1,
        "hidden_size": 8 * shape.tp,
        "num_attention_heads": shape.tp,
        "add_bias_linear": False,
        "num_moe_experts": shape.experts,
        "moe_router_topk": shape.topk,
        "moe_router_pre_softmax": True,  # which some releases demand for top-1
        "moe_token_dispatcher_type": "alltoall",
        "moe_pad_expert_input_to_capacity": shape.mode == "pad",
        "tensor_model_parallel_size": shape.tp,
        "sequence_parallel": shape.tp > 1,
        "expert_model_parallel_size": shape.ep,
        "expert_tensor_parallel_size": shape.tp,
        **dropping,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # advice on training, of no concern to preprocess
        return transformer_config().TransformerConfig(**{**settings, **more})


def group_arguments(kind: type) -> dict[str, SimpleNamespace]:
    """Return the groups under the name by which a dispatcher's constructor takes them; empty where it asks for them."""
    takes = inspect.signature(kind).parameters
    return {name: process_groups() for name in _GROUPS if name in takes}


def process_groups() -> SimpleNamespace:
    """Return the groups that Megatron's parallel state names now, as its dispatchers call them."""
    state = parallel_state()
    return SimpleNamespace(
        ep=state.get_expert_model_parallel_group(),
        expt_tp=state.get_expert_tensor_parallel_group(),
        tp_ep=state.get_expert_tensor_and_model_parallel_group(),
    )
