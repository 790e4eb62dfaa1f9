"""Where experts read their counts decides for each dispatcher; the classes are stand-ins with Megatron's names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mindspeed_moe.contract import GENERATIONS
from mindspeed_moe.patches import experts as experts_patch
from mindspeed_moe.preprocess.adapters import attributes_of
from mindspeed_moe.preprocess.experts import READS, ExpertsOf
from mindspeed_moe.preprocess.groups import Groups
from mindspeed_moe.preprocess.sites import Choices, Sites


class Dispatcher:
    """A dispatcher of a rank alone."""

    num_experts, local_expert_indices = 2, [0, 1]
    ep_size = tp_size = 1
    tp_rank = 0
    tp_ep_group = SimpleNamespace(size=lambda: 1, rank=lambda: 0)


def experts(name: str, *bases: type) -> Any:
    return type(name, bases or (object,), {})()


@pytest.mark.parametrize(
    ("name", "device", "side"),
    [
        ("SequentialMLP", "npu", "host"),
        ("TEGroupedMLP", "npu", "host"),
        ("GroupedMLP", "npu", "device"),
        ("GroupedMLP", "cuda", "host"),
        ("MindSpeedGmmExperts", "npu", None),
    ],
)
def test_reads(name: str, device: str, side: str | None) -> None:
    known, dispatcher = ExpertsOf(), Dispatcher()
    known.note(dispatcher, experts(name))
    assert known.read_counts_on(dispatcher, device) == side
    assert known.read_counts_on(Dispatcher(), device) is None, "a dispatcher that nobody noted"


def test_a_subclass_reads_where_its_base_does() -> None:
    known, dispatcher = ExpertsOf(), Dispatcher()
    known.note(dispatcher, experts("MyMLP", type("SequentialMLP", (), {})))
    assert known.read_counts_on(dispatcher, "npu") == "host"


def test_layers_of_multi_token_prediction_come_after_the_others() -> None:
    """From 0.17 on they are numbered from 1, on the last pipeline stage, as the first stage's are."""

    class MadeLayer(torch.nn.Module):
        def __init__(self, number: int | None, **more: bool) -> None:
            super().__init__()
            self.layer_number, self.config = number, SimpleNamespace(num_layers=61)
            vars(self).update(more)

    layers = [
        MadeLayer(1, is_mtp_layer=False),
        MadeLayer(1, is_mtp_layer=True),
        MadeLayer(62),  # 0.16
        MadeLayer(None, is_mtp_layer=True),
    ]
    known, dispatchers = ExpertsOf(), [Dispatcher() for _ in layers]
    for dispatcher, layer in zip(dispatchers, layers, strict=True):
        known.note(dispatcher, experts("SequentialMLP"), layer)
    assert [known.layer_number(one) for one in dispatchers] == [1, 62, 62, None]


def test_every_class_has_an_answer_for_every_device() -> None:
    assert {frozenset(sides) for sides in READS.values()} == {frozenset({"npu", "cuda", "cpu"})}


@pytest.mark.parametrize(
    ("default", "asks", "name", "on_host"),
    [
        ("device", True, "SequentialMLP", True),
        ("host", True, "GroupedMLP", False),
        ("device", True, "Unknown", False),
        ("host", True, "Unknown", True),
        ("device", False, "SequentialMLP", False),  # the configuration names a side: nobody is asked
    ],
)
def test_a_site_is_bound_with_the_side_of_its_experts(default: str, asks: bool, name: str, on_host: bool) -> None:
    sites = Sites(
        attributes_of("alltoall", GENERATIONS[-2]),
        Choices("npu", "all_to_all", Groups("auto"), default, ask_experts=asks),
        {},
    )
    dispatcher = Dispatcher()
    sites.experts.note(dispatcher, experts(name))
    assert sites.of(dispatcher).counts_on_host is on_host


def test_a_dispatcher_is_not_kept_alive() -> None:
    import gc
    import weakref

    known, dispatcher = ExpertsOf(), Dispatcher()
    known.note(dispatcher, experts("GroupedMLP"))
    alive = weakref.ref(dispatcher)
    del dispatcher
    gc.collect()
    assert alive() is None


# ------------------------------------------------------------------------------------------------ bypassed


def function_of(module: str, wrapped: Any = None) -> Any:
    """A function whose code runs in a module of this name."""
    names: dict[str, Any] = {"__name__": module}
    exec("def preprocess(self, routing_map): ...", names)
    if wrapped is not None:
        names["preprocess"].__wrapped__ = wrapped
    return names["preprocess"]


MEGATRON, MINDSPEED, OURS = (
    "megatron.core.transformer.moe.token_dispatcher",
    "mindspeed.core.overlap",
    "mindspeed_moe.patches",
)


@pytest.mark.parametrize(
    ("preprocess", "bypass"),
    [
        (None, "Dispatcher, which has no preprocess"),  # allgather and flex have none
        (function_of(MEGATRON), None),
        (function_of(OURS), None),
        (function_of(MINDSPEED, function_of(OURS)), None),  # its sync wrapper around ours
        (function_of(MINDSPEED, function_of(MEGATRON)), None),
        (function_of(MINDSPEED), "preprocess of its own: mindspeed.core.overlap.preprocess"),
        (function_of(MINDSPEED, function_of("somebody")), "preprocess of its own: mindspeed.core.overlap.preprocess"),
    ],
)
def test_whose_preprocess_a_layer_has(preprocess: Any, bypass: str | None) -> None:
    kind = type("Dispatcher", (), {"preprocess": preprocess} if preprocess else {})
    found = experts_patch._out_of_reach(kind)
    assert found is None if bypass is None else bypass in str(found)


def test_a_bypass_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("mindspeed_moe.log._said", set())
    bypassing = type("Dispatcher", (), {"preprocess": function_of(MINDSPEED)})

    def constructor(self: Any) -> None:
        self.token_dispatcher, self.experts = bypassing(), experts("GroupedMLP")

    wrapped = experts_patch.SPECS[0].build(constructor, ExpertsOf())
    for _ in range(2):
        wrapped(type("Layer", (), {})())
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "mindspeed_moe has no effect in layers with a Dispatcher" in record.getMessage()


def test_on_stock_a_layer_is_told_and_nothing_of_it_is_read() -> None:
    """Stock is the way out when a release's layers are not what the plugin knows."""
    made: list[str] = []
    known = ExpertsOf(lambda: made.append("a layer"))
    known.served = False
    wrapped = experts_patch.SPECS[0].build(lambda self: made.append("constructed"), known)
    wrapped(object())
    assert made == ["constructed", "a layer"]
