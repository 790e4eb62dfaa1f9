"""Dispatchers without a hook: attributes that wait for themselves, on an accelerator whose copies are late.

MoEAlltoAllTokenDispatcher of 0.10 and 0.11 and MoEAlltoAllSEQTokenDispatcher; the reader does what their
token_permutation does with host values, in its order.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindspeed_moe.contract.generations import INLINED, WITH_LEGACY, generation_named
from mindspeed_moe.preprocess.adapters import attributes_of
from mindspeed_moe.preprocess.attributes_inline import InlineAttributes
from mindspeed_moe.preprocess.counts import COUNTS
from mindspeed_moe.preprocess.exchange import EXCHANGES
from mindspeed_moe.preprocess.groups import Groups
from mindspeed_moe.preprocess.packed_async import PackedOnAccelerator
from mindspeed_moe.preprocess.reference import Reference
from mindspeed_moe.preprocess.sites import Choices, Sites
from one_process.accelerator import LateAccelerator
from one_process.cases import Case, cases
from one_process.group import Dispatcher, Layout, preprocess_group
from oracle.plan import DROP, DROPLESS, RankPlan

EXAMPLES = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
MODES = (DROPLESS, DROP)  # these releases have no router padding; padding needs Megatron and is in tests/distributed
CONTRACTS = [("alltoall", name) for name in INLINED] + [("alltoall_seq", WITH_LEGACY[0])]
every_contract = pytest.mark.parametrize(("name", "generation"), CONTRACTS, ids=lambda one: str(one))


def attributes(name: str, generation: str) -> InlineAttributes:
    found = attributes_of(name, generation_named(generation))
    assert isinstance(found, InlineAttributes)
    return found


def make(
    name: str, generation: str, exchange: str = "all_to_all", *, on_host: bool = True, aside: bool = False
) -> tuple[Any, LateAccelerator]:
    accelerator: Any = LateAccelerator()
    sites = Sites(
        attributes(name, generation),
        Choices("cpu", exchange, Groups("auto"), "host" if on_host else "device"),
        {},
    )
    return PackedOnAccelerator(sites, COUNTS["sum"], accelerator, aside=aside, max_slots=10_000), accelerator


def dispatchers_of(case: Case, program: Any) -> list[Any]:
    """Dispatchers of a class with the plugin's properties, and without what these releases do not have."""
    from mindspeed_moe.patches.waiting import _waiting

    waiting = program.sites.attributes.waiting
    kind = type("Inline", (Dispatcher,), {name: _waiting(name)(None, program) for name in waiting})
    made = [kind(case.layout, index, case.topk) for index in range(case.layout.ranks)]
    for dispatcher in made:
        case.configure(dispatcher)
        dispatcher._maybe_update_cuda_sync_point = None  # there is none to call
        dispatcher.num_out_tokens = None
    return made


def start(program: Any, accelerator: LateAccelerator, dispatchers: list[Any], case: Case) -> list[Any]:
    before = len(accelerator.copies)
    results = preprocess_group(program.preprocess, dispatchers, case.tensors())
    made = accelerator.copies[before:]
    if case.layout.ranks == 1:  # the first pass runs to its end: that call is given up
        accelerator.copies[before:] = made[len(made) // 2 :]
    return results


def read(dispatcher: Any, result: Any, table: str) -> dict[str, Any]:
    """What token_permutation reads, in its order, as plain integers."""
    found: dict[str, Any] = {"num_out_tokens": int(dispatcher.num_out_tokens)}
    for name in ("output_splits", "input_splits"):
        value = getattr(dispatcher, name)
        found[name] = None if value is None else value.tolist()
    if dispatcher.num_local_experts > 1:
        sizes = getattr(dispatcher, table)
        found["chunk_table"] = sizes.ravel().tolist()
    found["tokens_per_local_expert"] = result.tolist()
    return found


def wanted(plan: RankPlan) -> dict[str, Any]:
    found: dict[str, Any] = {
        "num_out_tokens": plan.num_out_tokens,
        "output_splits": plan.output_splits,
        "input_splits": plan.input_splits,
    }
    if plan.chunk_table is not None:
        found["chunk_table"] = list(itertools.chain.from_iterable(plan.chunk_table))  # type: ignore[arg-type]
    return found | {"tokens_per_local_expert": plan.tokens_per_local_expert}


def sequence_layout(case: Case) -> bool:
    """Whether alltoall_seq has such a layout: TP takes no part in its exchange."""
    return case.layout.tp == 1


@every_contract
@settings(EXAMPLES, max_examples=200)
@given(cases(MODES), st.sampled_from(sorted(EXCHANGES)), st.booleans(), st.booleans())
def test_against_the_oracle(name: str, generation: str, case: Case, exchange: str, on_host: bool, aside: bool) -> None:
    if name == "alltoall_seq" and not sequence_layout(case):
        return
    program, accelerator = make(name, generation, exchange, on_host=on_host, aside=aside)
    dispatchers = dispatchers_of(case, program)
    results = start(program, accelerator, dispatchers, case)
    assert not any(copy.waits for copy in accelerator.copies), "preprocess waits for nothing"
    assert all(one is not None for one in results), "Megatron asks nobody again"
    assert {one.cuda_sync_point for one in dispatchers} == {"no_sync"}, "Megatron would wait for the whole stream"
    table = program.sites.attributes.table
    found = [read(one, result, table) for one, result in zip(dispatchers, results, strict=True)]
    assert [copy.waits for copy in accelerator.copies] == [1] * len(accelerator.copies), "one wait a call"
    assert found == [wanted(plan) for plan in case.expected()]
    accelerator.reuse_memory()
    again = [read(one, result, table) for one, result in zip(dispatchers, results, strict=True)]
    assert again == found, "what was handed out does not own its memory"


PEERS, ALONE, ONE = Layout(2, 1, 4), Layout(1, 1, 4), Layout(1, 1, 1)
SPLITS = ("input_splits", "output_splits")


@every_contract
@pytest.mark.parametrize(
    ("layout", "mode", "on_host", "first"),
    [
        (PEERS, DROPLESS, True, "output_splits"),
        (PEERS, DROPLESS, False, "output_splits"),
        (PEERS, DROP, True, "num_out_tokens"),
        (ALONE, DROPLESS, True, "table"),
        (ALONE, DROP, False, "num_out_tokens"),
        (ONE, DROPLESS, True, "output_splits"),  # nothing but the counts that were promised
        (ONE, DROPLESS, False, None),
    ],
)
def test_which_reader_waits(
    name: str, generation: str, layout: Layout, mode: str, on_host: bool, first: str | None
) -> None:
    row = tuple(expert < 2 for expert in range(layout.experts))
    topk = min(2, layout.experts)
    case = Case(layout, topk, mode, 1.0 if mode == DROP else None, ((row,),) * layout.ranks, False)
    program, accelerator = make(name, generation, on_host=on_host)
    dispatchers = dispatchers_of(case, program)
    start(program, accelerator, dispatchers, case)
    table = program.sites.attributes.table
    order = ["num_out_tokens", "output_splits", "input_splits", *([table] if layout.local_experts > 1 else [])]
    seen = []
    for attribute in order:
        for dispatcher in dispatchers:
            getattr(dispatcher, attribute)
        if any(copy.waits for copy in accelerator.copies):
            seen.append(attribute)
    assert seen[:1] == ([] if first is None else [table if first == "table" else first])
    assert len(accelerator.copies) == (0 if first is None else layout.ranks)


@every_contract
def test_calls_of_two_layers_and_one_that_is_given_up(name: str, generation: str) -> None:
    maps = (((True, True, False, False), (True, False, True, False)), ((False, False, True, True),))
    case = Case(PEERS, 2, DROPLESS, None, maps, False)
    other = Case(PEERS, 1, DROPLESS, None, (((False, True, False, False),), ()), False)
    program, accelerator = make(name, generation)
    first, second = dispatchers_of(case, program), dispatchers_of(other, program)
    start(program, accelerator, first, case)  # given up: an exception before anybody reads
    of_second = start(program, accelerator, second, other)
    of_first = start(program, accelerator, first, case)
    table = program.sites.attributes.table
    for who, results, one in ((second, of_second, other), (first, of_first, case)):
        found = [read(dispatcher, result, table) for dispatcher, result in zip(who, results, strict=True)]
        accelerator.reuse_memory()
        assert found == [wanted(plan) for plan in one.expected()]


@every_contract
def test_an_attribute_that_was_never_set_is_missing(name: str, generation: str) -> None:
    program, _ = make(name, generation)
    dispatcher = dispatchers_of(Case(ONE, 1, DROPLESS, None, ((),), False), program)[0]
    table = program.sites.attributes.table
    assert not hasattr(dispatcher, table)
    with pytest.raises(AttributeError, match=f"has no attribute '{table}'"):
        getattr(dispatcher, table)
    setattr(dispatcher, table, 5)
    assert vars(dispatcher)[table] == 5, "the value must stay when the plugin is disabled"


@every_contract
def test_reference_lets_megatron_wait(name: str, generation: str) -> None:
    """Sync points of 0.10, assigned outright; no property is needed."""
    choices = Choices("cpu", "all_gather", Groups("auto"), "device")
    late: Any = LateAccelerator()
    program = Reference(Sites(attributes(name, generation), choices, {}), late)
    assert not program.waits_later
    for layout, mode, point in (
        (PEERS, DROPLESS, "before_ep_alltoall"),
        (PEERS, DROP, "before_permutation_1"),
        (ALONE, DROPLESS, "before_ep_alltoall"),
        (ONE, DROPLESS, "before_finish"),
    ):
        row = tuple(expert == 0 for expert in range(layout.experts))
        case = Case(layout, 1, mode, None, ((row,),) * layout.ranks, False)
        dispatchers = [Dispatcher(layout, index, 1) for index in range(layout.ranks)]
        for dispatcher in dispatchers:
            case.configure(dispatcher)
            dispatcher.config.moe_expert_capacity_factor = 1.0 if mode == DROP else None
        preprocess_group(program.preprocess, dispatchers, case.tensors())
        assert {one.cuda_sync_point for one in dispatchers} == {point}


def test_the_unfolded_table_of_0_11() -> None:
    """[TP, EP, L] with peers and [E] without; the same numbers in the same order as [TP*EP, L]."""
    program, accelerator = make("alltoall", "inline_copy")
    row = (True, False, True, False)
    case = Case(Layout(2, 2, 4), 2, DROPLESS, None, ((row,),) * 4, False)
    dispatchers = dispatchers_of(case, program)
    start(program, accelerator, dispatchers, case)
    assert dispatchers[0].num_global_tokens_per_local_expert.shape == (2, 2, 2)
    alone = dispatchers_of(Case(ALONE, 2, DROPLESS, None, ((row,),), False), program)
    start(program, accelerator, alone, Case(ALONE, 2, DROPLESS, None, ((row,),), False))
    assert alone[0].num_global_tokens_per_local_expert.tolist() == [1, 0, 1, 0]


# --------------------------------------------------------------------------------- proofs that these tests can fail


class _Hasty(InlineAttributes):
    """Waits for nothing but the number of rows."""

    def due(self, dispatcher: Any, site: Any, num_out_tokens: int | None) -> frozenset[str]:
        return frozenset(("num_out_tokens",) if num_out_tokens is None else ())


class _Forgetful(PackedOnAccelerator):
    """Does not fill in the counts that it promised."""

    def host_copies(self, dispatcher: Any, point: str, tokens_per_expert: torch.Tensor | None) -> torch.Tensor | None:
        buffers = self.sites.of(dispatcher).buffers
        if buffers is not None and buffers.call is not None:
            buffers.call.promised = None
        return super().host_copies(dispatcher, point, tokens_per_expert)


@pytest.mark.parametrize("mutant", ["hasty", "forgetful"])
def test_mistakes_are_caught(mutant: str) -> None:
    program, accelerator = make("alltoall", INLINED[0])
    if mutant == "hasty":
        program.sites.attributes = _Hasty(generation_named(INLINED[0]))
    else:
        program.__class__ = _Forgetful
    maps = (((True, True, False, False), (True, False, True, False)), ((False, False, True, True),))
    case = Case(PEERS, 2, DROPLESS, None, maps, False)
    dispatchers = dispatchers_of(case, program)
    results = start(program, accelerator, dispatchers, case)
    for result in results:
        result.fill_(-1)
    table = program.sites.attributes.table

    def check() -> None:
        found = [read(one, result, table) for one, result in zip(dispatchers, results, strict=True)]
        assert found == [wanted(plan) for plan in case.expected()]

    with pytest.raises((AssertionError, AttributeError)):
        check()
