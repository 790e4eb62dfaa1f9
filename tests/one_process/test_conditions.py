"""Each of mindspeed_moe.conditions, as far as one process shows it: the numbers stay those of the oracle."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from mindspeed_moe.conditions import CONDITIONS, group_memory, launches_block
from mindspeed_moe.contract import GENERATIONS
from mindspeed_moe.devices.accelerator import Accelerator
from mindspeed_moe.errors import RoutingMapError
from mindspeed_moe.preprocess import attributes
from mindspeed_moe.preprocess.attributes import Attributes
from mindspeed_moe.preprocess.counts import COUNTS
from one_process.cases import Case, make_map
from one_process.checks import check
from one_process.group import Layout, preprocess_group
from one_process.test_packed_async import GENERATION, SMALL, finish, make, start
from one_process.test_programs import EACH_ONCE, programs_of
from oracle.plan import DROP, DROPLESS, ROUTER_PADDING


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "deterministic": deterministic,
    "anomaly": lambda: torch.autograd.detect_anomaly(check_nan=True),
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "another default device": default_device,
    "a device's context": lambda: torch.device("meta"),
    "another default dtype": default_dtype,
    "profiler": lambda: torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("aside", [False, True])
@pytest.mark.parametrize("condition", CONTEXTS)
def test_the_numbers_are_the_same(condition: str, aside: bool) -> None:
    from mindspeed_moe.preprocess.packed_async import PackedOnAccelerator

    program, accelerator = make(PackedOnAccelerator, "all_to_all", False, aside)
    dispatchers = SMALL.dispatchers()
    for context in (CONTEXTS[condition], contextlib.nullcontext, CONTEXTS[condition]):
        with context():
            results = finish(program, dispatchers, start(program, accelerator, dispatchers, SMALL))
        for dispatcher, result, wanted in zip(dispatchers, results, SMALL.expected(), strict=True):
            check(dispatcher, result, wanted)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("name", EACH_ONCE)
@pytest.mark.parametrize("layout", [Layout(2, 1, 8), Layout(1, 1, 8)], ids=str)
@pytest.mark.parametrize("at", range(len(CONTEXTS)), ids=list(CONTEXTS))
def test_the_numbers_are_the_same_on_the_host(at: int, layout: Layout, name: str) -> None:
    """The first call makes what is kept, for maps of a size that no other test counts."""
    rng, context = random.Random(at), list(CONTEXTS.values())[at]
    program, tokens = programs_of(GENERATION)[name], 6400 + 128 * (2 * at + layout.ranks)
    maps = tuple(make_map(rng, tokens, 8, 1, DROPLESS, "random") for _ in range(layout.ranks))
    case = Case(layout, 1, DROPLESS, None, maps, False)
    dispatchers = case.dispatchers()
    for entered in (context, contextlib.nullcontext, context):
        with entered():
            results = preprocess_group(program.preprocess, dispatchers, case.tensors())
        for dispatcher, result, wanted in zip(dispatchers, results, case.expected(), strict=True):
            check(dispatcher, result, wanted)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("at", range(len(CONTEXTS)), ids=list(CONTEXTS))
def test_counting_is_the_same(at: int, count: str) -> None:
    tokens = 128 * (72 + at)  # what is kept for this size is made here
    routing_map = torch.ones(tokens, 8, dtype=torch.bool)
    routing_map[:, 3] = False
    out = torch.empty(8, dtype=torch.int32)
    for entered in (list(CONTEXTS.values())[at], contextlib.nullcontext):
        with entered():
            found = COUNTS[count](routing_map), COUNTS[count](routing_map, out)
        assert [one.tolist() for one in found] == [[tokens] * 3 + [0] + [tokens] * 4] * 2


def test_pinned_memory_is_the_hosts() -> None:
    """torch.cuda is not here; what is asked of torch is."""
    asked = []

    class Asking(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is not torch.empty:
                return function(*args, **(kwargs or {}))
            asked.append(kwargs)
            return torch.zeros(*args, dtype=kwargs["dtype"])

    with Asking():
        Accelerator(None).pinned(4, torch.int32)
    assert asked == [{"dtype": torch.int32, "pin_memory": True, "device": "cpu"}]


def test_a_map_of_probabilities_is_refused() -> None:
    from mindspeed_moe.preprocess.packed_async import PackedOnAccelerator

    program, _ = make(PackedOnAccelerator, "all_to_all", False)
    probabilities = torch.rand(2, 4, requires_grad=True)
    with pytest.raises(RoutingMapError, match=r"dtype torch\.float32; expected torch\.bool"):
        program.preprocess(SMALL.dispatchers()[0], probabilities)
    assert any("RoutingMapError" in condition.outcome for condition in CONDITIONS)


# ------------------------------------------------------------------------------------------------ the first read

PEERS, ALONE, ONE_EXPERT = Layout(2, 1, 4), Layout(1, 1, 4), Layout(1, 1, 1)


@pytest.mark.parametrize(
    ("layout", "mode", "fused", "own_permute", "point"),
    [
        (PEERS, DROPLESS, False, True, "before_ep_alltoall"),
        (PEERS, DROPLESS, True, True, "before_ep_alltoall"),
        (PEERS, DROP, False, True, "before_ep_alltoall"),  # Megatron's point is permutation 1, where nobody reads
        (PEERS, ROUTER_PADDING, False, True, "before_ep_alltoall"),
        (PEERS, DROP, True, True, "before_permutation_1"),  # the fused kernel allocates by the number of rows
        (PEERS, DROP, False, False, "before_permutation_1"),  # somebody else's permute may read it
        (ALONE, DROPLESS, False, True, "before_permutation_2"),
        (ALONE, DROPLESS, True, True, "before_finish"),
        (ALONE, DROP, False, True, "before_permutation_2"),
        (ONE_EXPERT, DROPLESS, False, True, "before_finish"),
        (ONE_EXPERT, DROP, False, True, "before_finish"),
    ],
)
def test_first_read(
    layout: Layout, mode: str, fused: bool, own_permute: bool, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from one_process.group import Dispatcher

    monkeypatch.setattr(attributes, "_permute_is_megatrons", lambda: own_permute)
    dispatcher = Dispatcher(layout, 0, 1)
    if fused:
        dispatcher.fuse()
    site: Any = SimpleNamespace(
        exchange=object() if layout.ranks > 1 else None,
        layout=SimpleNamespace(num_local_experts=layout.local_experts),
    )
    rows = 3 if mode == DROPLESS else None
    adapter = Attributes(GENERATION)
    adapter.take_over_waiting(dispatcher, site, rows)
    assert adapter.due(dispatcher, site, rows) == {point}


@pytest.mark.parametrize("generation", GENERATIONS, ids=lambda one: one.name)
def test_from_0_18_on_the_permutation_that_is_not_fused_reads_the_number_of_rows_too(
    generation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """megatron-core 0.18.2 and 0.19.0, `moe_utils.permute` asserts that it is there."""
    from one_process.group import Dispatcher

    if generation.adapter != "hook":
        pytest.skip("attributes wait for themselves there, whoever reads them")
    monkeypatch.setattr(attributes, "_permute_is_megatrons", lambda: True)
    dispatcher = Dispatcher(PEERS, 0, 1)
    site: Any = SimpleNamespace(exchange=object(), layout=SimpleNamespace(num_local_experts=PEERS.local_experts))
    adapter = Attributes(generation)
    adapter.take_over_waiting(dispatcher, site, None)
    reads = max(generation.releases) >= (0, 18)
    assert adapter.due(dispatcher, site, None) == {"before_permutation_1" if reads else "before_ep_alltoall"}


@pytest.mark.megatron
def test_whose_permute_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    token_dispatcher = pytest.importorskip("megatron.core.transformer.moe.token_dispatcher")
    assert attributes._permute_is_megatrons()
    original = token_dispatcher.permute
    monkeypatch.setattr(token_dispatcher, "permute", lambda *args, **kwargs: original(*args, **kwargs))
    assert not attributes._permute_is_megatrons()


# ------------------------------------------------------------------------------------------------ what doctor tells


@pytest.mark.parametrize(
    ("device", "variables", "name"),
    [
        ("npu", {"ASCEND_LAUNCH_BLOCKING": "1"}, "ASCEND_LAUNCH_BLOCKING"),
        ("npu", {"ASCEND_LAUNCH_BLOCKING": "0"}, None),
        ("npu", {"CUDA_LAUNCH_BLOCKING": "1"}, None),
        ("cuda", {"CUDA_LAUNCH_BLOCKING": "1"}, "CUDA_LAUNCH_BLOCKING"),
        ("cuda", {"CUDA_LAUNCH_BLOCKING": ""}, None),
        ("cpu", {"CUDA_LAUNCH_BLOCKING": "1"}, None),
    ],
)
def test_blocking_launches(device: str, variables: dict[str, str], name: str | None) -> None:
    assert launches_block(device, variables) == name


def test_memory_of_groups() -> None:
    assert group_memory("npu", {})["tp_ep"].startswith("400 MB (HCCL_BUFFSIZE 200 MB, twice)")
    assert group_memory("npu", {"HCCL_BUFFSIZE": "64"})["tp_ep"].startswith("128 MB")
    assert group_memory("npu", {"HCCL_BUFFSIZE": "much"})["tp_ep"].startswith("400 MB")
    assert group_memory("cuda", {}) == {}


# ------------------------------------------------------------------------------------------------ the chunk table


@pytest.mark.parametrize(
    ("fused", "index_device", "sorts_on_host", "on_device"),
    [
        (False, "cpu", False, False),
        (True, torch.device("cpu"), False, True),  # a device as an object: where fused kernels have their indices
        (True, None, False, False),  # MindSpeed without triton: fused permute, chunks sorted on the host
        (True, torch.device("cpu"), True, False),  # the same, told by its hook
    ],
)
def test_where_the_chunk_table_is_left(fused: bool, index_device: Any, sorts_on_host: bool, on_device: bool) -> None:
    from mindspeed_moe.preprocess.packed_async import PackedOnAccelerator

    program, accelerator = make(PackedOnAccelerator, "all_to_all", False)
    program.sites.attributes.sorts_on_host = sorts_on_host
    dispatchers = SMALL.dispatchers()
    for dispatcher in dispatchers:
        if fused:
            dispatcher.fuse()
        dispatcher.permute_idx_device = index_device
    assert [program.sites.attributes.table_on_device(one) for one in dispatchers] == [on_device] * 2
    results = start(program, accelerator, dispatchers, SMALL)
    # On the device it is there at once; on the host with the copy, which has not arrived yet.
    early = [getattr(one, GENERATION.chunk_table, None) is not None for one in dispatchers]
    assert early == [on_device] * 2
    results = finish(program, dispatchers, results)
    for dispatcher, result, wanted in zip(dispatchers, results, SMALL.expected(), strict=True):
        check(dispatcher, result, wanted)
