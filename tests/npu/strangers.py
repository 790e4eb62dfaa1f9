"""The job in which somebody else's code stands between our parts, as launches have it; each result beside stock's.

A situation changes something around a layer that runs under the plugin, and calls it before and after. It returns the
tensors of its calls by name; what they must be equal to is what stock gives for the same calls.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

import mindspeed_moe
from distributed.layers import HIDDEN, Layer, build_layer
from mindspeed_moe.errors import PreprocessError

DELAY_US, HOLD_US = 200.0, 100_000.0
HOOK = "_maybe_dtoh_and_synchronize"
Situation = Callable[["Scene"], dict[str, Any]]


class Scene:
    """One layer on one rank. calls: how many have run; the same number gives the same input."""

    def __init__(self, device: str, implementation: str) -> None:
        from megatron.core.transformer.moe.token_dispatcher import MoEAlltoAllTokenDispatcher

        self.device, self.dispatcher = device, MoEAlltoAllTokenDispatcher
        self.config = {"device": device, "dispatchers": {"alltoall": implementation}}
        self.calls = 0
        mindspeed_moe.enable(self.config)
        self.layer = self.build()

    def build(self) -> Any:
        ranks = dist.get_world_size()
        return build_layer(Layer(ep=ranks, tp=1, experts=ranks, topk=1)).to(self.device)

    def call(self, layer: Any = None) -> dict[str, torch.Tensor]:
        """One forward and backward: the output, and the gradient of the input."""
        generator = torch.Generator().manual_seed(100 * self.calls + dist.get_rank())
        self.calls += 1
        hidden = torch.randn(8, 1, HIDDEN, generator=generator).to(self.device).requires_grad_()
        output = (self.layer if layer is None else layer)(hidden)[0]
        (output * torch.randn(output.shape, generator=generator).to(self.device)).sum().backward()
        return {"output": output.detach().cpu(), "gradient": hidden.grad.cpu()}  # type: ignore[union-attr]

    def on_and_off(self) -> dict[str, Any]:
        """Calls while the plugin is on, off, and on again: of a layer that lives on, and of a new one."""
        found = {"on": self.call()}
        told = mindspeed_moe.disable()
        found |= {"off": self.call(), "off, new layer": self.call(self.build())}
        mindspeed_moe.enable(self.config)
        found |= {"on again": self.call(), "on again, new layer": self.call(self.build())}
        implementation = mindspeed_moe.status().implementation("alltoall")  # type: ignore[union-attr]
        return {**found, "told": told, "again": implementation}


@contextmanager
def put(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Somebody's patch, which its owner takes back in the end."""
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


# ---------------------------------------------------------------------------------------- wrappers around preprocess


def wrapped_in_a_closure(scene: Scene) -> dict[str, Any]:
    before = vars(scene.dispatcher)["preprocess"]

    def replayed(self: Any, routing_map: torch.Tensor) -> Any:
        result = before(self, routing_map)
        self.num_out_tokens = int(routing_map.sum())
        return result

    with put(scene.dispatcher, "preprocess", replayed):
        return scene.on_and_off()


def wrapped_by_functools(scene: Scene) -> dict[str, Any]:
    before = vars(scene.dispatcher)["preprocess"]

    @functools.wraps(before)
    def around(*args: Any, **kwargs: Any) -> Any:
        return before(*args, **kwargs)

    with put(scene.dispatcher, "preprocess", around):
        return scene.on_and_off()


def wrapped_through_an_attribute(scene: Scene) -> dict[str, Any]:
    def around(self: Any, routing_map: torch.Tensor) -> Any:
        return self._their_original(routing_map)

    before = vars(scene.dispatcher)["preprocess"]
    with put(scene.dispatcher, "_their_original", before), put(scene.dispatcher, "preprocess", around):
        return scene.on_and_off()


def the_hook_wrapped(scene: Scene) -> dict[str, Any]:
    before = vars(scene.dispatcher)[HOOK]

    def around(self: Any, point: str, counts: Any = None) -> Any:
        return before(self, point, counts)

    with put(scene.dispatcher, HOOK, around):
        return scene.on_and_off()


def called_twice(scene: Scene) -> dict[str, Any]:
    before = vars(scene.dispatcher)["preprocess"]

    def twice(self: Any, routing_map: torch.Tensor) -> Any:
        before(self, routing_map)
        return before(self, routing_map)

    with put(scene.dispatcher, "preprocess", twice):
        return {str(at): scene.call() for at in range(3)}


# ------------------------------------------------------------------------------------- something else in our place


def another_preprocess(scene: Scene) -> dict[str, Any]:
    """Put there after us, it does not call ours: Megatron's hook has to make its copies."""
    with put(scene.dispatcher, "preprocess", ORIGINALS["preprocess"]):
        return {"on": scene.call(), "on, again": scene.call()}


def another_hook(scene: Scene) -> dict[str, Any]:
    """Nobody would wait for ours."""
    with put(scene.dispatcher, HOOK, ORIGINALS[HOOK]):
        found = {"on": scene.call(), "on, again": scene.call()}
    return {**found, "given back": scene.call()}


def a_subclass_that_calls_super(scene: Scene) -> dict[str, Any]:
    class Theirs(scene.dispatcher):  # type: ignore[name-defined,misc]
        def preprocess(self, routing_map: torch.Tensor) -> Any:
            return super().preprocess(routing_map)

        def _maybe_dtoh_and_synchronize(self, point: str, counts: Any = None) -> Any:
            return super()._maybe_dtoh_and_synchronize(point, counts)

    return _as_class(scene, Theirs)


def a_subclass_of_its_own(scene: Scene) -> dict[str, Any]:
    class Theirs(scene.dispatcher):  # type: ignore[name-defined,misc]
        preprocess = ORIGINALS["preprocess"]

    return _as_class(scene, Theirs)


def _as_class(scene: Scene, kind: type) -> dict[str, Any]:
    scene.layer.token_dispatcher.__class__ = kind
    found = {"on": scene.call(), "on, again": scene.call()}
    mindspeed_moe.disable()
    return {**found, "off": scene.call()}


def other_experts_after_the_first_call(scene: Scene) -> dict[str, Any]:
    found = {"first": scene.call()}
    scene.layer.experts = scene.build().experts
    return {**found, "second": scene.call()}


# ------------------------------------------------------------------------------------------------ copies, and the end


def copied_between_calls(scene: Scene) -> dict[str, Any]:
    found = {"first": scene.call()}
    on_it = {name: name + type(value).__module__ for name, value in vars(scene.layer.token_dispatcher).items()}
    on_it = {name: told for name, told in on_it.items() if "mindspeed_moe.devices" not in told}  # the cpu's streams
    held = [name for name, told in on_it.items() if "mindspeed_moe" in told]
    scene.layer.token_dispatcher = copy.copy(scene.layer.token_dispatcher)
    return {**found, "second": scene.call(), "kept on a dispatcher": sorted(held)}


def copied_in_the_middle_of_a_call(scene: Scene) -> dict[str, Any]:
    def move() -> None:
        scene.layer.token_dispatcher = copy.copy(scene.layer.token_dispatcher)

    return _in_the_middle(scene, move)


def switched_off_in_the_middle_of_a_call(scene: Scene) -> dict[str, Any]:
    return _in_the_middle(scene, mindspeed_moe.disable)


def splits_set_by_somebody(scene: Scene) -> dict[str, Any]:
    def move() -> None:
        dispatcher = scene.layer.token_dispatcher
        dispatcher.input_splits = dispatcher.output_splits = [4, 4]

    return _in_the_middle(scene, move)


def _in_the_middle(scene: Scene, move: Callable[[], object]) -> dict[str, Any]:
    """Between preprocess and the first point of the hook; then what a layer reads next."""
    routing_map = torch.zeros(8, dist.get_world_size(), dtype=torch.bool)
    routing_map[:, 0] = True
    counts = scene.layer.token_dispatcher.preprocess(routing_map.to(scene.device))
    move()
    dispatcher = scene.layer.token_dispatcher
    try:
        for point in ("before_permutation_1", "before_ep_alltoall"):
            counts = getattr(dispatcher, HOOK)(point, counts)
        return {"splits": [sum(map(int, dispatcher.input_splits)), sum(map(int, dispatcher.output_splits))]}
    except PreprocessError as error:
        return {"refused": str(error)}


SITUATIONS: dict[str, Situation] = {
    one.__name__: one
    for one in (
        wrapped_in_a_closure,
        wrapped_by_functools,
        wrapped_through_an_attribute,
        the_hook_wrapped,
        called_twice,
        another_preprocess,
        another_hook,
        a_subclass_that_calls_super,
        a_subclass_of_its_own,
        other_experts_after_the_first_call,
        copied_between_calls,
        copied_in_the_middle_of_a_call,
        switched_off_in_the_middle_of_a_call,
        splits_set_by_somebody,
    )
}
ORIGINALS: dict[str, Any] = {}


def strangers(rank: int, device: str) -> dict[str, Any]:
    """For each situation: what is not equal to stock to the last bit, and what else came out."""
    from megatron.core import parallel_state
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    if device == "npu":
        from tests.ascend_sim.schedule import set_schedule

        set_schedule(0, delay_us=DELAY_US, hold_us=HOLD_US)
        if not hasattr(moe_utils, "te_general_gemm"):  # the plugin supplies it, and takes it away again
            moe_utils.te_general_gemm = None
    ORIGINALS.update({name: vars(token_dispatcher.MoEAlltoAllTokenDispatcher)[name] for name in ("preprocess", HOOK)})
    mindspeed_moe.enable({"device": device, "dispatchers": {"alltoall": "stock"}})
    parallel_state.initialize_model_parallel(expert_model_parallel_size=dist.get_world_size())
    mindspeed_moe.disable()
    found: dict[str, Any] = {}
    with _cpu_stays(device):
        for name, situation in SITUATIONS.items():
            results = []
            for implementation in ("stock", "packed"):
                results.append(situation(Scene(device, implementation)))
                mindspeed_moe.disable()
            stock, packed = results
            different = [
                key for key, one in stock.items() if isinstance(one, dict) and not _equal(one, packed.get(key))
            ]
            rest = {key: one for key, one in packed.items() if not isinstance(one, dict)}
            found[name] = {
                "different": different,
                "compared": sum(isinstance(one, dict) for one in stock.values()),
                **rest,
            }
    return found


@contextmanager
def _cpu_stays(device: str) -> Iterator[None]:
    """On the cpu Megatron does not run without the plugin's stand-ins: they stay while the plugin is off."""
    if device != "cpu":
        yield
        return
    import megatron.core

    from mindspeed_moe.contract import generation_of
    from mindspeed_moe.patches import DEVICE_PATCHES
    from mindspeed_moe.patching import collect

    generation = generation_of(megatron.core.__version__).name
    specs = [(spec, None) for spec in DEVICE_PATCHES["cpu"] if spec.is_for(generation)]
    patches = collect(specs, "error")
    patches.apply(log=False)
    DEVICE_PATCHES["cpu"], kept = (), DEVICE_PATCHES["cpu"]
    try:
        yield
    finally:
        DEVICE_PATCHES["cpu"] = kept
        patches.revert(log=False)


def _equal(stock: dict[str, torch.Tensor], found: Any) -> bool:
    return isinstance(found, dict) and all(torch.equal(one, found[name]) for name, one in stock.items())


JOBS = {"strangers": strangers}
