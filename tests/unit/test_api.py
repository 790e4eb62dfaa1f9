"""enable, disable, status: on a stub of megatron-core 0.12 on disk, so that the whole path from YAML to patch runs."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mindspeed_moe
from helpers_megatron import DISPATCHER_MODULE, package_info, write_stub_megatron
from mindspeed_moe import api
from mindspeed_moe.config import Config
from mindspeed_moe.errors import (
    AlreadyEnabledError,
    ConfigError,
    ContractError,
    DeviceError,
    MindSpeedMoEError,
    PatchConflictError,
    UnsupportedError,
)
from mindspeed_moe.patches import DEVICE_PATCHES, DISPATCHER_PATCHES, EXPERTS_PATCHES
from mindspeed_moe.patching.target import Slot, find

CPU = {"device": "cpu"}
STUB = "hook_stream_wait"  # the contract of the stub, 0.12
WAITS_FOR_NOTHING: Any = SimpleNamespace(waits_later=False)  # as every program of the cpu
SPECS = [
    spec
    for patches in (DEVICE_PATCHES["cpu"], *DISPATCHER_PATCHES.values(), EXPERTS_PATCHES)
    for spec in patches
    if spec.is_for(STUB) and spec.needed(WAITS_FOR_NOTHING)
]


@pytest.fixture(autouse=True)
def _off(stub_megatron: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RANK", raising=False)
    yield
    api.disable()


def standing() -> dict[str, Any]:
    """What stands at every target that a plan for the cpu may patch."""
    paths = [path for spec in SPECS for path in (spec.target, *spec.aliases)]
    return {path: (slot.raw, slot.own) for path in paths for slot in [find(path)]}


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return all(after[path][0] is raw and after[path][1] == own for path, (raw, own) in before.items())


def refused(config: Any, error: type[MindSpeedMoEError]) -> str:
    before = standing()
    with pytest.raises(error) as caught:
        mindspeed_moe.enable(config)
    assert same(before, standing()), "Megatron is untouched after an error"
    assert mindspeed_moe.status() is None
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ on and off


def test_enable_patches_and_disable_restores_every_target() -> None:
    before = standing()
    plan = mindspeed_moe.enable(CPU)
    during = standing()
    assert mindspeed_moe.status() is plan
    assert all(during[path][0] is not raw for path, (raw, _) in before.items()), "every target was patched"
    assert mindspeed_moe.disable() == ()
    assert mindspeed_moe.status() is None
    assert same(before, standing())


def test_enable_can_be_repeated_after_disable() -> None:
    before = standing()
    for implementation in ("packed", "reference", "stock", "packed"):
        plan = mindspeed_moe.enable({**CPU, "dispatchers": {"alltoall": implementation}})
        assert plan.implementation("alltoall") == implementation
        mindspeed_moe.disable()
        assert same(before, standing())


def test_disable_without_enable_does_nothing() -> None:
    assert mindspeed_moe.disable() == ()
    assert mindspeed_moe.status() is None


def test_stock_leaves_the_dispatcher_untouched_and_the_plan_says_so() -> None:
    before = standing()
    plan = mindspeed_moe.enable({**CPU, "dispatchers": {"alltoall": "stock"}})
    during = standing()
    assert plan.implementation("alltoall") == "stock"
    assert "stock" in str(plan)
    for path, (raw, _) in before.items():
        if "MoEAlltoAllTokenDispatcher" in path:
            assert during[path][0] is raw, path
        else:
            assert during[path][0] is not raw, f"{path}: what the cpu device needs is still supplied"


def test_a_disabled_configuration_patches_nothing() -> None:
    before = standing()
    plan = mindspeed_moe.enable({"enabled": False})
    assert same(before, standing())
    assert (plan.patches, plan.decisions, plan.generation) == ((), (), "")
    assert mindspeed_moe.status() is plan
    assert "nothing is patched" in str(plan)
    assert mindspeed_moe.disable() == ()


def test_a_disabled_configuration_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turning the plugin off must work where it could not be turned on: no such device, an unknown Megatron."""
    plan = mindspeed_moe.enable({"enabled": False, "device": "npu"})
    assert plan.patches == ()


def test_the_config_can_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "moe.yaml"
    file.write_text("device: cpu\ndispatchers:\n  alltoall: reference\n")
    assert mindspeed_moe.enable(file).implementation("alltoall") == "reference"
    assert mindspeed_moe.enable(str(file)) is mindspeed_moe.status()


# ------------------------------------------------------------------------------------------------ twice


def test_the_same_configuration_twice_is_the_same_plan() -> None:
    plan = mindspeed_moe.enable(CPU)
    during = standing()
    assert mindspeed_moe.enable(CPU) is plan
    assert mindspeed_moe.enable(Config(device="cpu")) is plan
    assert mindspeed_moe.enable({"device": "cpu", "verify": "off", "dispatchers": {"alltoall": "auto"}}) is plan
    assert same(during, standing())


def test_another_configuration_is_an_error_that_says_so() -> None:
    plan = mindspeed_moe.enable(CPU)
    during = standing()
    with pytest.raises(AlreadyEnabledError) as caught:
        mindspeed_moe.enable({**CPU, "dispatchers": {"alltoall": "reference"}})
    message = str(caught.value)
    assert message.startswith("mindspeed_moe is enabled with another configuration; call disable() first. In force: ")
    assert "alltoall='auto'" in message
    assert "alltoall='reference'" in message
    assert mindspeed_moe.status() is plan
    assert same(during, standing())


def test_a_bad_second_configuration_is_a_config_error_and_changes_nothing() -> None:
    plan = mindspeed_moe.enable(CPU)
    with pytest.raises(ConfigError):
        mindspeed_moe.enable({"devcie": "cpu"})
    assert mindspeed_moe.status() is plan


# ------------------------------------------------------------------------------------------------ threads


def in_threads(*functions: Callable[[], Any]) -> list[Any]:
    """Run the functions at once; returns what each returned or raised."""
    results: list[Any] = [None] * len(functions)
    barrier = threading.Barrier(len(functions))

    def run(index: int) -> None:
        barrier.wait()
        try:
            results[index] = functions[index]()
        except MindSpeedMoEError as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(900)
        assert not thread.is_alive()
    return results


@pytest.fixture
def _slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the other thread every chance to come in between."""
    pause, put, restore = threading.Event().wait, Slot.put, Slot.restore
    monkeypatch.setattr(Slot, "put", lambda self, value: (pause(0.002), put(self, value))[1])
    monkeypatch.setattr(Slot, "restore", lambda self: (pause(0.002), restore(self))[1])


@pytest.mark.usefixtures("_slow_steps")
def test_two_threads_with_the_same_configuration_get_one_plan(caplog: pytest.LogCaptureFixture) -> None:
    before = standing()
    with caplog.at_level(logging.INFO):
        plans = in_threads(*[lambda: mindspeed_moe.enable(CPU)] * 4)
    assert len({id(plan) for plan in plans}) == 1
    swaps = [record for record in caplog.records if record.getMessage().startswith("patched ")]
    assert len(swaps) == len({record.getMessage() for record in swaps}), "each swap was made once"
    mindspeed_moe.disable()
    assert same(before, standing())


@pytest.mark.usefixtures("_slow_steps")
def test_two_threads_with_two_configurations_have_one_winner() -> None:
    before = standing()
    configs = [{**CPU, "dispatchers": {"alltoall": name}} for name in ("packed", "reference")]
    results = in_threads(*[lambda config=config: mindspeed_moe.enable(config) for config in configs])
    winners = [result for result in results if not isinstance(result, AlreadyEnabledError)]
    assert winners == [mindspeed_moe.status()]
    mindspeed_moe.disable()
    assert same(before, standing())


@pytest.mark.usefixtures("_slow_steps")
def test_enable_and_disable_at_once_leave_one_or_the_other() -> None:
    before = standing()
    for _ in range(3):
        in_threads(lambda: mindspeed_moe.enable(CPU), mindspeed_moe.disable, mindspeed_moe.disable)
        if mindspeed_moe.status() is None:
            assert same(before, standing())
        mindspeed_moe.disable()
        assert same(before, standing())


# ------------------------------------------------------------------------------------------------ failures


def test_after_a_failure_at_any_step_enable_works(monkeypatch: pytest.MonkeyPatch) -> None:
    before = standing()
    steps = sum(1 + len(spec.aliases) for spec in SPECS)
    put = Slot.put
    for step in range(steps):
        calls: list[Slot] = []

        def failing(self: Slot, value: Any, step: int = step, calls: list[Slot] = calls) -> None:
            calls.append(self)
            put(self, value)
            if len(calls) == step + 1:
                raise RuntimeError("injected")

        monkeypatch.setattr(Slot, "put", failing)
        with pytest.raises(RuntimeError, match="injected"):
            mindspeed_moe.enable(CPU)
        assert len(calls) == step + 1
        assert mindspeed_moe.status() is None
        assert same(before, standing()), f"after a failure at step {step}"
    monkeypatch.setattr(Slot, "put", put)
    assert mindspeed_moe.enable(CPU) is mindspeed_moe.status()


def test_somebody_elses_patch_of_what_stays_stock_is_not_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract cannot be read from their code, and nothing of ours is to stand there."""
    mindspeed_moe.enable(CPU)  # imports the stub
    mindspeed_moe.disable()
    kind = sys.modules[DISPATCHER_MODULE].MoEAlltoAllTokenDispatcher  # type: ignore[attr-defined]

    def theirs(self: Any, routing_map: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(kind, "preprocess", theirs)
    plan = mindspeed_moe.enable({**CPU, "dispatchers": {"alltoall": "stock"}})
    assert plan.implementation("alltoall") == "stock"
    assert kind.preprocess is theirs


def test_a_device_that_is_not_there() -> None:
    assert "device: 'npu' is not on this machine" in refused({"device": "npu"}, DeviceError)


def test_an_implementation_that_no_row_offers() -> None:
    config = {**CPU, "dispatchers": {"alltoall": "packed"}, "preprocess": {"tokens_per_expert": "device"}}
    assert "preprocess.tokens_per_expert: 'device' is not offered" in refused(config, UnsupportedError)


@pytest.mark.parametrize("implementation", ["packed", "reference"])
def test_an_implementation_where_the_table_has_no_row(stub_megatron: Path, implementation: str) -> None:
    write_stub_megatron(stub_megatron, info=package_info("0.14.0"))
    message = refused({**CPU, "dispatchers": {"alltoall_seq": implementation}}, UnsupportedError)
    assert message.startswith(f"dispatchers.alltoall_seq: {implementation!r} cannot be had for device cpu, ")
    assert message.endswith("allowed: auto, stock")


def test_a_missing_configuration_file(tmp_path: Path) -> None:
    assert "no such configuration file" in refused(tmp_path / "missing.yaml", ConfigError)


def test_a_torch_that_cannot_be_imported_is_one_of_our_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from mindspeed_moe.environment import Found, probe_environment

    broken = replace(probe_environment(), torch=Found(None, "cannot be imported: libtorch.so"), available=("cpu",))
    monkeypatch.setattr(api, "probe_environment", lambda: broken)
    assert "libtorch.so" in refused(None, MindSpeedMoEError)


@pytest.mark.parametrize(
    ("info", "told"),
    [
        (package_info("0.9.0"), "megatron-core 0.9.0 is older than the releases"),
        (package_info("0.99.0"), "megatron-core 0.99.0 is newer than the releases"),
        (package_info("0.16.1"), "megatron-core 0.16.1 should keep the contract hook_event_wait_graphs"),
        (package_info("0.12.1", "-dirty?"), "which is no version"),
        ("MAJOR = 0\n", "names no 'MINOR'"),
        ("MAJOR = = 0\n", "unreadable"),
    ],
)
def test_a_megatron_that_does_not_fit(stub_megatron: Path, info: str, told: str) -> None:
    write_stub_megatron(stub_megatron, info=info)
    assert told in refused(CPU, ContractError)


def test_no_megatron(stub_megatron: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not (Path(entry) / "megatron").is_dir()])
    with pytest.raises(ContractError, match="not installed; install it or put its checkout on PYTHONPATH"):
        mindspeed_moe.enable(CPU)
    assert mindspeed_moe.status() is None


def test_a_megatron_whose_method_has_another_signature(stub_megatron: Path) -> None:
    file = stub_megatron / "megatron" / "core" / "transformer" / "moe" / "token_dispatcher.py"
    file.write_text(
        file.read_text().replace("def preprocess(self, routing_map):", "def preprocess(self, routing_map, x=0):")
    )
    message = refused(CPU, ContractError)
    assert "MoEAlltoAllTokenDispatcher.preprocess takes: (self, routing_map); found: (self, routing_map, x)" in message


def test_enable_in_the_middle_of_megatrons_import(stub_megatron: Path) -> None:
    write_stub_megatron(stub_megatron, core="import mindspeed_moe\nmindspeed_moe.enable({'device': 'cpu'})\n")
    with pytest.raises(ContractError, match=r"megatron\.core is still being imported"):
        __import__("megatron.core")
    assert mindspeed_moe.status() is None


# ------------------------------------------------------------------------------------------------ conflicts


def their_preprocess(self: Any, routing_map: Any) -> Any:
    return "theirs"


@pytest.fixture
def dispatcher() -> Any:
    import importlib

    return importlib.import_module(DISPATCHER_MODULE).MoEAlltoAllTokenDispatcher


def test_a_conflict_is_an_error(dispatcher: Any) -> None:
    dispatcher.preprocess = their_preprocess
    message = refused(CPU, PatchConflictError)
    assert f"{__name__}.their_preprocess ({__file__}:" in message
    assert dispatcher.preprocess is their_preprocess


def test_a_conflict_can_be_skipped(dispatcher: Any) -> None:
    dispatcher.preprocess = their_preprocess
    hook = dispatcher._maybe_dtoh_and_synchronize
    plan = mindspeed_moe.enable({**CPU, "on_conflict": "skip"})
    assert dispatcher.preprocess is their_preprocess
    assert dispatcher._maybe_dtoh_and_synchronize is hook, "the two belong together"
    assert plan.implementation("alltoall") == "stock"
    assert any("stays as it is" in note and "their_preprocess" in note for note in plan.notes)
    assert {patch.state for patch in plan.patches if patch.unit == "alltoall"} == {"skipped"}
    assert "their_preprocess" in str(plan)
    mindspeed_moe.disable()
    assert dispatcher.preprocess is their_preprocess


def test_a_conflict_can_be_patched_over(dispatcher: Any) -> None:
    dispatcher.preprocess = their_preprocess
    plan = mindspeed_moe.enable({**CPU, "on_conflict": "replace"})
    assert dispatcher.preprocess is not their_preprocess
    assert plan.implementation("alltoall") == "packed"
    mindspeed_moe.disable()
    assert dispatcher.preprocess is their_preprocess


def test_a_later_patch_is_left_alone_and_told(dispatcher: Any) -> None:
    mindspeed_moe.enable(CPU)
    dispatcher.preprocess = their_preprocess
    (message,) = mindspeed_moe.disable()
    assert message.startswith(
        f"{DISPATCHER_MODULE}.MoEAlltoAllTokenDispatcher.preprocess was patched over by {__name__}."
    )
    assert dispatcher.preprocess is their_preprocess


# ------------------------------------------------------------------------------------------------ the plan and the log


def test_the_plan_is_plain_data_for_json() -> None:
    plan = mindspeed_moe.enable(CPU)
    data = json.loads(json.dumps(plan.to_dict()))
    assert data == plan.to_dict()
    assert data["device"] == "cpu"
    assert data["generation"] == "hook_stream_wait (0.12)"
    assert data["config"]["dispatchers"]["alltoall"] == "auto"
    assert data["environment"]["megatron_core"]["version"] == "0.12.1"
    decision = next(one for one in data["decisions"] if one["dispatcher"] == "alltoall")
    assert (decision["implementation"], decision["rejected"]["stock"]) == ("packed", "packed stands before it")
    assert {patch["target"] for patch in data["patches"]} == set(standing())
    assert {patch["state"] for patch in data["patches"]} == {"apply"}


def test_the_plan_prints_as_a_table() -> None:
    text = str(mindspeed_moe.enable(CPU))
    assert text.startswith("mindspeed_moe on cpu, contract hook_stream_wait (0.12)")
    for word in ("alltoall", "packed", "not reference", "torch.cuda.Stream", "replaced by", "supplied"):
        assert word in text


def test_a_dispatcher_that_the_plan_does_not_know_is_stock() -> None:
    assert mindspeed_moe.enable({"enabled": False}).implementation("alltoall") == "stock"


@pytest.mark.parametrize(("rank", "logged"), [(None, True), ("0", True), ("1", False), ("3", False)])
def test_every_swap_is_logged_once_and_on_the_first_rank_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rank: str | None, logged: bool
) -> None:
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with caplog.at_level(logging.DEBUG, logger="mindspeed_moe"):
        mindspeed_moe.enable(CPU)
        mindspeed_moe.enable(CPU)
    messages = [record.getMessage() for record in caplog.records]
    if not logged:
        assert messages == []
        return
    swaps = [message for message in messages if message.startswith("patched ")]
    assert sorted(message.removeprefix("patched ").partition(": ")[0] for message in swaps) == sorted(standing())
    assert all(" -> " in message for message in swaps)


def test_no_handler_is_added_to_the_root_logger() -> None:
    before = list(logging.getLogger().handlers)
    mindspeed_moe.enable(CPU)
    assert logging.getLogger().handlers == before
    assert logging.getLogger("mindspeed_moe").handlers == []


# ------------------------------------------------------------------------------------------------ the package


def test_the_package_offers_its_four_names() -> None:
    assert set(mindspeed_moe.__all__) == {"Plan", "disable", "enable", "status"} <= set(dir(mindspeed_moe))
    assert all(hasattr(mindspeed_moe, name) for name in mindspeed_moe.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'enabel'"):
        _ = mindspeed_moe.enabel
