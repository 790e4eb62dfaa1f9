"""`packed` for accelerators, on one whose copies are late and whose memory is reused at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindspeed_moe.contract import GENERATIONS
from mindspeed_moe.preprocess.adapters import attributes_of
from mindspeed_moe.preprocess.counts import COUNTS
from mindspeed_moe.preprocess.exchange import EXCHANGES
from mindspeed_moe.preprocess.groups import Groups
from mindspeed_moe.preprocess.packed_async import PackedOnAccelerator
from mindspeed_moe.preprocess.sites import Choices, Sites
from one_process.accelerator import LateAccelerator
from one_process.cases import COUNTED, Case, cases, layouts
from one_process.checks import check, check_table
from one_process.group import Layout, preprocess_group
from oracle.plan import DROP, DROPLESS, PAD

GENERATION = next(one for one in GENERATIONS if one.name == "hook_event_wait_graphs")
POINTS = ("before_permutation_1", "before_ep_alltoall", "before_permutation_2", "before_finish")
EXAMPLES = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

# Two ranks with 2 and 1 tokens, L = 2: enough for every attribute to be there and to differ between the ranks.
SMALL = Case(
    layout=Layout(2, 1, 4),
    topk=2,
    mode=DROPLESS,
    factor=None,
    maps=(((True, True, False, False), (True, False, True, False)), ((False, False, True, True),)),
    transposed=False,
)


def make(
    kind: type[PackedOnAccelerator], exchange: str, on_host: bool, aside: bool = True
) -> tuple[PackedOnAccelerator, LateAccelerator]:
    accelerator: Any = LateAccelerator()
    choices = Choices("cpu", exchange, Groups("auto"), "host" if on_host else "device")
    # The first pass of a group fails in its collective: what it held is never used again.
    return kind(
        Sites(attributes_of("alltoall", GENERATION), choices, {}),
        COUNTS["sum"],
        accelerator,
        aside=aside,
        max_slots=10_000,
    ), accelerator


def copies_of(case: Case, on_host: bool, fused: bool) -> int:
    """How many copies a call on every rank starts: one a rank, none where the host reads nothing."""
    table_on_host = case.layout.local_experts > 1 and not fused
    reads = case.layout.ranks > 1 or on_host or table_on_host or case.mode != DROPLESS
    return case.layout.ranks * reads


def start(program: PackedOnAccelerator, accelerator: LateAccelerator, dispatchers: list[Any], case: Case) -> list[Any]:
    """preprocess on every rank; forgets the copies of the first pass, which never reaches them."""
    before = len(accelerator.copies)
    results = preprocess_group(program.preprocess, dispatchers, case.tensors())
    made = accelerator.copies[before:]
    if case.layout.ranks == 1:  # without an exchange the first pass runs to its end: that call is given up
        accelerator.copies[before:] = made[len(made) // 2 :]
    return results


def finish(program: PackedOnAccelerator, dispatchers: list[Any], results: list[Any]) -> list[Any]:
    """The hook at all four points, on every rank."""
    for point in POINTS:
        results = [program.host_copies(one, point, counts) for one, counts in zip(dispatchers, results, strict=True)]
    return results


def check_all(dispatchers: list[Any], results: list[Any], case: Case) -> None:
    for dispatcher, result, wanted in zip(dispatchers, results, case.expected(), strict=True):
        check(dispatcher, result, wanted)


@settings(EXAMPLES, max_examples=500)
@given(cases(COUNTED), st.sampled_from(sorted(EXCHANGES)), st.booleans(), st.booleans(), st.booleans())
def test_against_the_oracle(case: Case, exchange: str, on_host: bool, fused: bool, aside: bool):
    program, accelerator = make(PackedOnAccelerator, exchange, on_host, aside)
    dispatchers = case.dispatchers()
    for dispatcher in dispatchers:
        if fused:
            dispatcher.fuse()
    results = start(program, accelerator, dispatchers, case)
    assert len(accelerator.copies) == copies_of(case, on_host, fused), "one copy a call"
    assert not any(copy.waits for copy in accelerator.copies), "preprocess waits for nothing"
    tables: list[Any] = [None] * case.layout.ranks
    if fused:  # the fused kernels read the table on the device, so it is there before the copy is
        for dispatcher, wanted in zip(dispatchers, case.expected(), strict=True):
            check_table(dispatcher, wanted)
        tables = [getattr(one, "num_global_tokens_per_local_expert", None) for one in dispatchers]
    if not on_host and not aside:  # in order with the current stream: whoever reads on the device may read at once
        assert [one.tolist() for one in results] == [one.tokens_per_local_expert for one in case.expected()]
    elif case.layout.ranks > 1:
        assert results == [None] * case.layout.ranks, "counts that no stream is ordered with yet were handed out"
    results = finish(program, dispatchers, results)
    assert [copy.waits for copy in accelerator.copies] == [1] * len(accelerator.copies), "one wait a call"
    accelerator.reuse_memory()
    check_all(dispatchers, results, case)
    if fused and case.layout.local_experts > 1:
        kept = [one.num_global_tokens_per_local_expert for one in dispatchers]
        assert all(now is before for now, before in zip(kept, tables, strict=True)), "the table left the device"


@pytest.mark.megatron
@settings(EXAMPLES, max_examples=150)
@given(st.data(), st.sampled_from(sorted(EXCHANGES)), st.booleans(), st.booleans())
def test_one_dispatcher_in_one_mode_after_another(data: st.DataObject, exchange: str, on_host: bool, aside: bool):
    """Switching padding on and off on a live dispatcher; some calls are given up before their wait."""
    pytest.importorskip("megatron.core.transformer.moe.moe_utils")
    layout = data.draw(layouts())
    program, accelerator = make(PackedOnAccelerator, exchange, on_host, aside)
    dispatchers = None
    for case in data.draw(st.lists(cases(layout=layout), min_size=2, max_size=4)):
        dispatchers = dispatchers or case.dispatchers()
        for dispatcher in dispatchers:
            case.configure(dispatcher)
        results = start(program, accelerator, dispatchers, case)
        if data.draw(st.booleans(), label="given up"):
            continue
        results = finish(program, dispatchers, results)
        accelerator.reuse_memory()
        check_all(dispatchers, results, case)


@pytest.mark.parametrize("on_host", [True, False])
def test_the_wait_comes_where_a_host_value_is_first_read(on_host: bool):
    for mode, factor, fused, point in (
        (DROPLESS, None, False, "before_ep_alltoall"),
        (DROPLESS, None, True, "before_ep_alltoall"),
        (DROP, 1.0, True, "before_permutation_1"),
    ):
        case = Case(SMALL.layout, 2, mode, factor, SMALL.maps, False)
        program, accelerator = make(PackedOnAccelerator, "all_to_all", on_host)
        dispatchers = case.dispatchers()
        for dispatcher in dispatchers:
            if fused:
                dispatcher.fuse()
        results = start(program, accelerator, dispatchers, case)
        for at in POINTS:
            for dispatcher, result in zip(dispatchers, results, strict=True):
                program.host_copies(dispatcher, at, result)
            waited = [copy.waits for copy in accelerator.copies]
            assert waited == [int(POINTS.index(at) >= POINTS.index(point))] * 2, (mode, at)


def test_nothing_of_the_last_call_is_there_before_the_wait():
    program, accelerator = make(PackedOnAccelerator, "all_to_all", True)
    dispatchers = SMALL.dispatchers()
    finish(program, dispatchers, start(program, accelerator, dispatchers, SMALL))
    assert dispatchers[0].input_splits is not None
    results = start(program, accelerator, dispatchers, SMALL)
    for dispatcher in dispatchers:
        assert dispatcher.input_splits is dispatcher.output_splits is dispatcher.output_splits_tp is None
    check_all(dispatchers, finish(program, dispatchers, results), SMALL)


def test_calls_of_two_layers_in_flight_at_once():
    """Another layer's forward runs between a layer's preprocess and its wait."""
    program, accelerator = make(PackedOnAccelerator, "all_gather", True)
    other = Case(SMALL.layout, 1, DROPLESS, None, (((False, True, False, False),), ()), False)
    first, second = SMALL.dispatchers(), other.dispatchers()
    of_first = start(program, accelerator, first, SMALL)
    of_second = start(program, accelerator, second, other)
    of_second = finish(program, second, of_second)
    accelerator.reuse_memory()
    of_first = finish(program, first, of_first)
    accelerator.reuse_memory()
    check_all(first, of_first, SMALL)
    check_all(second, of_second, other)


def test_what_autograd_keeps_survives_the_next_micro_batch():
    program, accelerator = make(PackedOnAccelerator, "all_to_all", True)
    dispatchers = SMALL.dispatchers()
    finish(program, dispatchers, start(program, accelerator, dispatchers, SMALL))
    kept = [(one.input_splits, one.output_splits) for one in dispatchers]
    other = Case(SMALL.layout, 1, DROPLESS, None, (((False, True, False, False),), ()), False)
    for dispatcher in dispatchers:
        other.configure(dispatcher)
    finish(program, dispatchers, start(program, accelerator, dispatchers, other))
    accelerator.reuse_memory()
    for (sent, received), wanted in zip(kept, SMALL.expected(), strict=True):
        assert sent.tolist() == wanted.input_splits
        assert received.tolist() == wanted.output_splits


# --------------------------------------------------------------------------------- proofs that these tests can fail


class _Impatient(PackedOnAccelerator):
    """Reads the pinned memory without waiting for the copy."""

    def host_copies(self, dispatcher: Any, point: str, tokens_per_expert: torch.Tensor | None) -> torch.Tensor | None:
        self._plain = self._plain._replace(wait=lambda copied: None)
        return super().host_copies(dispatcher, point, tokens_per_expert)


class _Borrower(PackedOnAccelerator):
    """Hands out views of the pinned memory."""

    def host_copies(self, dispatcher: Any, point: str, tokens_per_expert: torch.Tensor | None) -> torch.Tensor | None:
        call = self.sites.of(dispatcher).buffers.call
        result = super().host_copies(dispatcher, point, tokens_per_expert)
        if call is not None and self.sites.of(dispatcher).buffers.call is None:
            dispatcher.num_global_tokens_per_local_expert = call.slot.pinned[-4:].view(2, 2)
        return result


@pytest.mark.parametrize("mutant", [_Impatient, _Borrower])
@pytest.mark.parametrize("on_host", [True, False])
def test_a_hasty_reader_is_caught(mutant: type[PackedOnAccelerator], on_host: bool):
    program, accelerator = make(mutant, "all_to_all", on_host)
    dispatchers = SMALL.dispatchers()
    results = finish(program, dispatchers, start(program, accelerator, dispatchers, SMALL))
    accelerator.reuse_memory()
    with pytest.raises(AssertionError):
        check_all(dispatchers, results, SMALL)


@pytest.mark.megatron
def test_padding_starts_no_copy():
    pytest.importorskip("megatron.core.transformer.moe.moe_utils")
    program, accelerator = make(PackedOnAccelerator, "all_to_all", True)
    case = Case(SMALL.layout, 2, PAD, 1.0, (SMALL.maps[0], SMALL.maps[0]), False)
    dispatchers = case.dispatchers()
    check_all(dispatchers, finish(program, dispatchers, start(program, accelerator, dispatchers, case)), case)
    assert accelerator.copies == []
