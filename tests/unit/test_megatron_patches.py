"""Every patch on real Megatron: applied, undone to the very same objects, in conflict, and after failures."""

from __future__ import annotations

import functools
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

import mindspeed_moe
from distributed.layers import Layer, build_layer, routing_map_of
from mindspeed_moe.config import load_config
from mindspeed_moe.contract import generation_of
from mindspeed_moe.environment import probe_environment
from mindspeed_moe.errors import ConfigError, GroupError, PatchConflictError
from mindspeed_moe.patches import DEVICE_PATCHES, DISPATCHER_PATCHES, EXPERTS_PATCHES
from mindspeed_moe.patching.target import Slot, find
from mindspeed_moe.planning import make_plan
from mindspeed_moe.preprocess.agreement import LaunchAgreement
from mindspeed_moe.telemetry import public, set_step
from mindspeed_moe.verify import Compared, compared

pytestmark = pytest.mark.megatron

CPU = {"device": "cpu"}
ALONE = Layer(ep=1, tp=1, experts=4, topk=2)
MODULE = "megatron.core.transformer.moe.token_dispatcher"
METHODS = ("preprocess", "_maybe_dtoh_and_synchronize")


@pytest.fixture(autouse=True)
def _off(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("RANK", raising=False)
    yield
    mindspeed_moe.disable()


def generation() -> str:
    return generation_of(importlib.import_module("megatron.core.package_info").__version__).name


def catalogue_here() -> list[Any]:
    """Every patch that a plan for the cpu applies here; its programs wait for nothing."""
    host: Any = SimpleNamespace(waits_later=False)
    specs = [
        spec for patches in (DEVICE_PATCHES["cpu"], *DISPATCHER_PATCHES.values(), EXPERTS_PATCHES) for spec in patches
    ]
    return [spec for spec in specs if spec.is_for(generation()) and spec.needed(host)]


def standing() -> dict[str, tuple[Any, bool]]:
    """What stands at every target of the catalogue for this release, aliases included."""
    paths = [path for spec in catalogue_here() for path in (spec.target, *spec.aliases)]
    return {path: (slot.raw, slot.own) for path in paths for slot in [find(path)]}


def changed(before: dict[str, tuple[Any, bool]]) -> set[str]:
    after = standing()
    return {path for path, (raw, own) in before.items() if after[path][0] is not raw or after[path][1] is not own}


def dispatcher() -> Any:
    return importlib.import_module(MODULE).MoEAlltoAllTokenDispatcher


# ------------------------------------------------------------------------------------------------ on and off


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("implementation", ["packed", "reference", "stock"])
def test_enable_then_disable_leaves_every_target_identical(
    monkeypatch: pytest.MonkeyPatch, implementation: str, first: bool
) -> None:
    """first: what a process enables first takes part in the comparison of the launch, stock as well."""
    monkeypatch.setattr(LaunchAgreement, "_made", not first)
    before = standing()
    plan = mindspeed_moe.enable({**CPU, "dispatchers": {"alltoall": implementation}})
    during = changed(before)
    unnecessary = {patch.target for patch in plan.patches if patch.state == "unnecessary"}
    ours = {f"{MODULE}.MoEAlltoAllTokenDispatcher.{name}" for name in METHODS}
    if all(one.row is None for one in plan.decisions) and not first:
        ours |= {spec.target for spec in EXPERTS_PATCHES}
    expected = set(before) - unnecessary - (ours if implementation == "stock" else set())
    assert during == expected
    assert {patch.target for patch in plan.patches if patch.state == "apply"} == expected
    assert mindspeed_moe.disable() == ()
    assert changed(before) == set()


def test_a_failure_at_any_step_leaves_every_target_identical(monkeypatch: pytest.MonkeyPatch) -> None:
    before = standing()
    put, steps = Slot.put, 0
    mindspeed_moe.enable(CPU)
    steps = len(changed(before))
    mindspeed_moe.disable()
    assert steps > 15
    for step in range(steps):
        for after_the_change in (False, True):
            calls: list[str] = []

            def failing(
                self: Slot, value: Any, step: int = step, after: bool = after_the_change, calls: list[str] = calls
            ) -> None:
                calls.append(self.path)
                if len(calls) <= step or after:
                    put(self, value)
                if len(calls) == step + 1:
                    raise RuntimeError("injected")

            monkeypatch.setattr(Slot, "put", failing)
            with pytest.raises(RuntimeError, match="injected"):
                mindspeed_moe.enable(CPU)
            assert len(calls) == step + 1
            assert changed(before) == set(), f"after a failure at {calls[-1]}"
            assert mindspeed_moe.status() is None
    monkeypatch.setattr(Slot, "put", put)
    mindspeed_moe.enable(CPU)
    assert len(changed(before)) == steps
    mindspeed_moe.disable()
    assert changed(before) == set()


def test_the_plan_names_the_contract_of_this_release() -> None:
    plan = mindspeed_moe.enable(CPU)
    assert plan.generation.startswith(generation())
    assert plan.implementation("alltoall") == "packed"
    assert json.loads(json.dumps(plan.to_dict())) == plan.to_dict()
    assert generation() in str(plan)


# ------------------------------------------------------------------------------------- what a plan leaves untouched


@pytest.fixture
def group_of_one(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A launch of one rank; another one, rank 7, tells its store that it runs something else."""
    monkeypatch.setattr(LaunchAgreement, "_made", None)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    LaunchAgreement({"other": "facts"}).tell_to(dist.distributed_c10d._get_default_store(), 7)
    yield
    dist.destroy_process_group()


def first_call() -> None:
    """A layer's, without peers."""
    parallel_state = importlib.import_module("megatron.core.parallel_state")
    parallel_state.initialize_model_parallel()
    try:
        build_layer(ALONE).token_dispatcher.preprocess(routing_map_of(ALONE))
    finally:
        parallel_state.destroy_model_parallel()


def test_an_enable_that_failed_leaves_the_comparison_of_the_launch_to_the_next(
    group_of_one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError):
        mindspeed_moe.enable({**CPU, "tuned": "nowhere.yaml"})
    with monkeypatch.context() as changes:
        changes.setattr(dispatcher(), "preprocess", lambda self, routing_map: None)
        with pytest.raises(PatchConflictError):
            mindspeed_moe.enable(CPU)
    with monkeypatch.context() as changes:
        changes.setattr(Slot, "put", lambda self, value: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            mindspeed_moe.enable(CPU)
    make_plan(load_config(CPU), probe_environment())
    mindspeed_moe.enable(CPU)
    with pytest.raises(GroupError, match=r"the ranks of this launch disagree .*'facts' on ranks \[7\]"):
        first_call()
    mindspeed_moe.disable()
    mindspeed_moe.enable(CPU)
    first_call()


def test_planning_leaves_what_is_in_force_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mindspeed_moe.enable({**CPU, "verify": "first", "dumps": str(tmp_path)})
    counting = public._steps
    assert counting is not None
    steps, before = counting(), compared()
    assert before == Compared(0, 0)
    for verify in ("off", "always"):
        make_plan(load_config({**CPU, "verify": verify, "on_conflict": "replace"}), probe_environment())
    with pytest.raises(ConfigError):
        make_plan(load_config({**CPU, "tuned": "nowhere.yaml"}), probe_environment())
    set_step(17)
    assert steps is not None
    assert steps.current == 17
    assert compared() == before
    mindspeed_moe.disable()
    set_step(18)
    assert steps.current == 17
    assert compared() == before, "of what was enabled last"
    with pytest.raises(ConfigError):
        mindspeed_moe.enable({**CPU, "tuned": "nowhere.yaml"})
    assert compared() == before
    mindspeed_moe.enable(CPU)
    assert compared() is None


# ------------------------------------------------------------------------------------------------ conflicts


# Of a function Python 3.10 does not know where it was defined.
PLAIN = "plain.<locals>.theirs" if sys.version_info >= (3, 11) else "theirs"


def plain(original: Callable[..., Any]) -> Callable[..., Any]:
    def theirs(self: Any, *args: Any) -> Any:
        return original(self, *args)

    return theirs


def wrapping(original: Callable[..., Any]) -> Callable[..., Any]:
    return functools.wraps(original)(plain(original))


THEIRS = {
    "a function": plain,
    "functools.wraps": wrapping,
    "functools.partial": lambda original: functools.partial(original, None),
}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    if not hasattr(dispatcher(), request.param):
        pytest.skip(f"this release has no {request.param}")
    return str(request.param)


@pytest.fixture(params=THEIRS)
def theirs(request: pytest.FixtureRequest, method: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Somebody else's function, standing at the method."""
    function = THEIRS[request.param](vars(dispatcher())[method])
    monkeypatch.setattr(dispatcher(), method, function)
    return function


def test_a_target_that_somebody_patched_is_an_error(theirs: Any, method: str) -> None:
    before = standing()
    with pytest.raises(PatchConflictError) as caught:
        mindspeed_moe.enable(CPU)
    assert str(caught.value).startswith(f"{MODULE}.MoEAlltoAllTokenDispatcher.{method} is patched already: ")
    assert changed(before) == set()
    assert mindspeed_moe.status() is None


def test_a_target_that_somebody_patched_is_skipped_with_its_unit(theirs: Any, method: str) -> None:
    before = standing()
    plan = mindspeed_moe.enable({**CPU, "on_conflict": "skip"})
    assert plan.implementation("alltoall") == "stock"
    during = changed(before)
    assert during, "what the cpu device needs is supplied all the same"
    assert not any("MoEAlltoAllTokenDispatcher" in path for path in during)
    assert vars(dispatcher())[method] is theirs
    mindspeed_moe.disable()
    assert changed(before) == set()


def test_a_target_that_somebody_patched_is_patched_over(theirs: Any, method: str) -> None:
    before = standing()
    plan = mindspeed_moe.enable({**CPU, "on_conflict": "replace"})
    assert plan.implementation("alltoall") == "packed"
    assert vars(dispatcher())[method] is not theirs
    mindspeed_moe.disable()
    assert changed(before) == set()
    assert vars(dispatcher())[method] is theirs


def test_a_stand_in_of_somebody_else_on_the_cpu_is_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: None)
    with pytest.raises(PatchConflictError, match=r"^torch\.cuda\.current_stream is patched already: "):
        mindspeed_moe.enable(CPU)


def test_an_alias_that_somebody_patched_is_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(MODULE)
    if not hasattr(module, "maybe_move_tensor_to_cpu"):
        pytest.skip("no patch of this release has an alias")
    monkeypatch.setattr(module, "maybe_move_tensor_to_cpu", lambda *args, **kwargs: None)
    with pytest.raises(PatchConflictError, match=rf"^{MODULE}\.maybe_move_tensor_to_cpu should be "):
        mindspeed_moe.enable(CPU)


def test_a_class_that_somebody_put_there_is_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    class TheirDispatcher(dispatcher()):  # type: ignore[misc]
        def preprocess(self, routing_map: Any) -> Any:
            return super().preprocess(routing_map)

    monkeypatch.setattr(importlib.import_module(MODULE), "MoEAlltoAllTokenDispatcher", TheirDispatcher)
    with pytest.raises(PatchConflictError, match="TheirDispatcher stands there"):
        mindspeed_moe.enable(CPU)


def test_a_later_patch_is_left_alone_and_told(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = standing()
    original = vars(dispatcher())[method]
    mindspeed_moe.enable(CPU)
    later = wrapping(vars(dispatcher())[method])
    setattr(dispatcher(), method, later)
    (message,) = mindspeed_moe.disable()
    assert message.startswith(f"{MODULE}.MoEAlltoAllTokenDispatcher.{method} was patched over by {__name__}.{PLAIN} (")
    assert changed(before) == {f"{MODULE}.MoEAlltoAllTokenDispatcher.{method}"}
    setattr(dispatcher(), method, original)
    assert changed(before) == set()


# ------------------------------------------------------------------------------------------------ on the cpu


def test_the_random_state_tracker_runs_on_the_cpu() -> None:
    """Two streams of numbers that do not disturb each other, as tensor-parallel regions need them."""
    mindspeed_moe.enable(CPU)
    tracker_class = importlib.import_module("megatron.core.tensor_parallel.random").CudaRNGStatesTracker

    def numbers(interleaved: bool) -> torch.Tensor:
        tracker = tracker_class()
        tracker.add("first", 11)
        tracker.add("second", 22)
        drawn = []
        for _ in range(3):
            with tracker.fork("first"):
                drawn.append(torch.rand(2))
            if interleaved:
                with tracker.fork("second"):
                    torch.rand(5)
                torch.rand(7)
        return torch.stack(drawn)

    assert torch.equal(numbers(interleaved=False), numbers(interleaved=True))
    state = torch.get_rng_state()
    numbers(interleaved=False)
    assert torch.equal(torch.get_rng_state(), state), "the default stream is left as it was"


def test_what_megatron_asks_of_a_gpu_is_there_and_goes_again() -> None:
    mindspeed_moe.enable(CPU)
    event = torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().record_event(event)
    torch.cuda.current_stream().wait_event(event)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    assert stream.record_event().elapsed_time(event) <= 0, "recorded later"
    event.synchronize()
    assert torch.ones(2).cuda().device.type == "cpu"
    assert torch.empty(1, device=torch.cuda.current_device()).device.type == "cpu"
    if hasattr(dispatcher(), "_maybe_dtoh_and_synchronize"):  # older routers do not read the name
        assert importlib.import_module("megatron.core.transformer.moe.moe_utils").te_general_gemm is None
    mindspeed_moe.disable()
    if not torch.cuda.is_available():
        with pytest.raises((RuntimeError, AssertionError)):
            torch.ones(2).cuda()
