"""Ranks that own whole experts: plans against the oracle, on the host and on an accelerator whose copies are late."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindspeed_moe.errors import (
    ConfigError,
    CountOverflowError,
    DeviceError,
    GroupError,
    PreprocessError,
    RoutingMapError,
)
from mindspeed_moe.preprocess import extended_async
from mindspeed_moe.preprocess.counts import COUNTS
from mindspeed_moe.preprocess.exchange import EXCHANGES
from mindspeed_moe.preprocess.extended import ExtendedLayout, ExtendedPlan
from mindspeed_moe.preprocess.extended_async import ExtendedCall, ExtendedPreprocess
from mindspeed_moe.preprocess.splits import MAX_ROWS
from one_process.accelerator import LateAccelerator
from one_process.cases import COUNTED, ROUTINGS, make_map
from one_process.group import Group, preprocess_group
from oracle.extended import Extended, padded, plans, rows_of_experts
from oracle.plan import DROPLESS, RoutingMap

EXAMPLES = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
WAYS = [(exchange, on_device) for exchange in sorted(EXCHANGES) for on_device in (False, True)]

# Three ranks with two experts each; no rank holds neighbours in order. Rank 1 has no tokens.
OWNED = ((5, 0), (1, 3), (4, 2))


def routing_map(experts: int, *tokens: str) -> RoutingMap:
    """One word a token: "02" is a token that goes to experts 0 and 2."""
    return [[str(expert) in token for expert in range(experts)] for token in tokens]


MAPS = (routing_map(6, "05", "15", "23"), (), routing_map(6, "24"))
OTHER = (routing_map(6, "01"), routing_map(6, "34", "45"), routing_map(6, "02", "03", "04", "12"))
# tokens per expert:  e0 e1 e2 e3 e4 e5
#            rank 0    1  1  1  1  .  2
#            rank 1    .  .  .  .  .  .
#            rank 2    .  .  1  .  1  .
BY_HAND = [
    Extended([3, 2, 1], [3, 0, 0], [2, 1], [[2, 1], [0, 0], [0, 0]], 6),
    Extended([0, 0, 0], [2, 0, 0], [1, 1], [[1, 1], [0, 0], [0, 0]], 0),
    Extended([0, 0, 2], [1, 0, 2], [1, 2], [[0, 1], [0, 0], [1, 1]], 2),
]


@dataclass(frozen=True)
class Case:
    """What one group does: its owners, and a routing map a rank for each of two micro-batches."""

    owned: tuple[tuple[int, ...], ...]
    mode: str
    topk: int
    batches: tuple[tuple[RoutingMap, ...], ...]

    @property
    def known_topk(self) -> int | None:
        return self.topk if self.mode == DROPLESS else None

    def expected(self, batch: int) -> list[Extended]:
        return plans(self.owned, self.batches[batch], self.known_topk)

    def tensors(self, batch: int) -> list[torch.Tensor]:
        experts = sum(map(len, self.owned))
        return [torch.tensor(one, dtype=torch.bool).view(len(one), experts) for one in self.batches[batch]]


SMALL = Case(OWNED, DROPLESS, 2, (MAPS, OTHER))


@st.composite
def ownerships(draw: st.DrawFn) -> tuple[tuple[int, ...], ...]:
    """R = TP x EP in 1..8 and L in 1..8; contiguous or any permutation."""
    tp = draw(st.integers(1, 4))
    ranks, local = tp * draw(st.integers(1, 8 // tp)), draw(st.integers(1, 8))
    experts = list(range(ranks * local))
    if draw(st.booleans()):
        random.Random(draw(st.integers(0, 2**32 - 1))).shuffle(experts)
    return tuple(tuple(experts[first : first + local]) for first in range(0, len(experts), local))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    owned = draw(ownerships())
    experts = sum(map(len, owned))
    topk, mode, most = draw(st.integers(1, min(experts, 8))), draw(st.sampled_from(COUNTED)), draw(st.integers(0, 12))
    rng, routing = random.Random(draw(st.integers(0, 2**32 - 1))), draw(st.sampled_from(ROUTINGS))
    batches = tuple(
        tuple(make_map(rng, rng.choice((0, rng.randint(0, most))), experts, topk, mode, routing) for _ in owned)
        for _ in range(2)
    )
    return Case(owned, mode, topk, batches)


@contextmanager
def agreeing() -> Iterator[list[dict[str, Any]]]:
    """In place of the comparison of ranks; yields the facts that they would compare."""
    facts: list[dict[str, Any]] = []
    with mock.patch.object(extended_async, "require_agreement", lambda group, own: facts.append(dict(own))):
        yield facts


def make(owned: Sequence[Sequence[int]], late: bool = False, **options: Any) -> tuple[list[ExtendedPreprocess], Any]:
    """Every rank's, and the one accelerator of all."""
    accelerator = LateAccelerator() if late else None
    # The first pass of a group fails in its collective: the slot that it held is never used again.
    options = {"max_slots": 10_000, **options}
    ranks = range(len(owned))
    return [
        ExtendedPreprocess(ExtendedLayout(owned, rank), Group(len(owned), rank), accelerator=accelerator, **options)
        for rank in ranks
    ], accelerator


def start(group: list[ExtendedPreprocess], case: Case, batch: int = 0) -> list[ExtendedCall]:
    with agreeing() as facts:
        calls = preprocess_group(
            lambda one, routing_map: one.start(routing_map, case.known_topk), group, case.tensors(batch)
        )
    assert all(one == facts[0] for one in facts), "ranks of one layout would be found to disagree"
    return calls


def check(plan: ExtendedPlan, wanted: Extended) -> None:
    for name in ("input_splits", "output_splits", "tokens_per_local_expert", "chunk_table"):
        found, expected = getattr(plan, name), getattr(wanted, name)
        if expected is None:
            assert found is None, name
            continue
        assert isinstance(found, np.ndarray)
        assert found.dtype == np.int64
        assert found.tolist() == expected, f"{name}: {found.tolist()}, expected {expected}"
    assert type(plan.num_out_tokens) is int
    assert plan.num_out_tokens == wanted.num_out_tokens
    if plan.counts is not None:
        assert plan.counts.dtype is torch.int64
        assert plan.counts.tolist() == wanted.tokens_per_local_expert


def check_all(found: list[ExtendedPlan], wanted: list[Extended]) -> None:
    for plan, expected in zip(found, wanted, strict=True):
        check(plan, expected)


# ----------------------------------------------------------------------------------------------------- on the host


def test_the_oracle_by_hand():
    assert plans(OWNED, MAPS, 2) == BY_HAND
    assert plans(OWNED, MAPS, None) == BY_HAND, "nothing was dropped"
    assert rows_of_experts(OWNED, MAPS)[2] == [[(2, 0)], [(0, 2), (2, 0)]]
    assert padded(((1,), (0,)), 3) == [Extended(None, None, [6], [[3], [3]], 6)] * 2


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("exchange", "on_device"), WAYS)
def test_by_hand(exchange: str, on_device: bool, late: bool):
    group, _ = make(OWNED, late, exchange=exchange, counts_on_device=on_device)
    check_all([one.wait() for one in start(group, SMALL)], BY_HAND)


@settings(EXAMPLES, max_examples=300)
@given(cases(), st.sampled_from(sorted(EXCHANGES)), st.sampled_from(sorted(COUNTS)))
def test_on_the_host(case: Case, exchange: str, counts: str):
    group, _ = make(case.owned, exchange=exchange, counts=counts)
    found = [[one.wait() for one in start(group, case, batch)] for batch in range(2)]
    for batch, of_batch in enumerate(found):
        check_all(of_batch, case.expected(batch))
        assert all(plan.counts is not None for plan in of_batch)


@settings(EXAMPLES, max_examples=50)
@given(ownerships(), st.integers(0, 50), st.booleans())
def test_padding_needs_no_exchange(owned: tuple[tuple[int, ...], ...], capacity: int, late: bool):
    group, accelerator = make(owned, late)
    check_all([one.padded(capacity) for one in group], padded(owned, capacity))
    assert accelerator is None or not accelerator.copies


def test_on_the_host_everything_is_there_at_once():
    group, _ = make(OWNED)
    for call, wanted in zip(start(group, replace(SMALL, mode="drop")), BY_HAND, strict=True):
        assert call.num_out_tokens == wanted.num_out_tokens
        assert call.counts is not None
        assert call.wait() is call.wait()
        call.give_up()
        check(call.wait(), wanted)


# --------------------------------------------------------------------------------------------- on an accelerator


@settings(EXAMPLES, max_examples=300)
@given(cases(), st.sampled_from(sorted(EXCHANGES)), st.sampled_from(["sum", "matmul"]), st.booleans(), st.booleans())
def test_two_micro_batches_in_flight(case: Case, exchange: str, counts: str, on_device: bool, last_first: bool):
    group, accelerator = make(case.owned, True, exchange=exchange, counts=counts, counts_on_device=on_device)
    calls = [start(group, case, batch) for batch in range(2)]
    if len(case.owned) > 1:  # a rank alone runs to its end in the first pass too: calls that are given up
        assert len(accelerator.copies) == 2 * len(group), "one copy a call"
    assert not any(copy.waits for copy in accelerator.copies), "start waits for nothing"
    for batch in range(2):
        for call, wanted in zip(calls[batch], case.expected(batch), strict=True):
            assert call.num_out_tokens == (None if case.known_topk is None else wanted.num_out_tokens)
            assert (call.counts is not None) == on_device
            if on_device:  # readable before the wait, in order with the current stream
                assert call.counts.tolist() == wanted.tokens_per_local_expert
    found: dict[int, list[ExtendedPlan]] = {}
    for batch in (1, 0) if last_first else (0, 1):
        found[batch] = [one.wait() for one in calls[batch]]
        accelerator.reuse_memory()
    assert max((copy.waits for copy in accelerator.copies), default=1) == 1, "one wait a call"
    for batch, of_batch in found.items():
        check_all(of_batch, case.expected(batch))
        for call, plan in zip(calls[batch], of_batch, strict=True):
            assert call.wait() is plan
            assert call.counts is plan.counts


def test_plans_survive_the_next_calls():
    group, accelerator = make(OWNED, True)
    kept = [one.wait() for one in start(group, SMALL, 0)]
    for _ in range(3):
        check_all([one.wait() for one in start(group, SMALL, 1)], SMALL.expected(1))
    accelerator.reuse_memory()
    check_all(kept, BY_HAND)


@pytest.mark.parametrize("order", [OWNED, ((0, 1), (2, 3), (4, 5))])
@pytest.mark.parametrize(("exchange", "on_device"), WAYS)
def test_what_is_put_in_another_order_and_where(
    exchange: str, on_device: bool, order: tuple[tuple[int, ...], ...], monkeypatch: pytest.MonkeyPatch
):
    """One kernel more where owners hold anything but neighbours; none where the host picks from all ranks' counts."""
    group, _ = make(order, True, exchange=exchange, counts_on_device=on_device)
    done = []
    select = torch.index_select
    monkeypatch.setattr(torch, "index_select", lambda *a, **k: (done.append(k["out"]), select(*a, **k)))
    start(group, SMALL)
    by_host = exchange == "all_gather" and not on_device
    needed = order is OWNED and not by_host
    assert len(done) == 6 * needed  # each rank, in two passes


def test_a_call_that_was_given_up_keeps_its_slot_until_its_copy_is_done():
    group, accelerator = make(OWNED, True)
    for call in start(group, SMALL, 0):
        call.give_up()
        with pytest.raises(PreprocessError, match="given up"):
            call.wait()
    second = start(group, SMALL, 1)
    for copy in accelerator.copies[:3]:  # of the calls that were given up: they arrive late
        copy.happen()
    check_all([one.wait() for one in second], SMALL.expected(1))


def test_a_call_that_is_dropped_is_given_up():
    layout = ExtendedLayout([[1, 0]], 0)
    accelerator: Any = LateAccelerator()
    alone = ExtendedPreprocess(layout, None, accelerator=accelerator, max_slots=2)
    one, two = (torch.tensor(routing_map(2, *tokens)) for tokens in (("0", "01"), ("1",)))
    for _ in range(5):
        alone.start(one, 1)
        gc.collect()
        accelerator.copies[-1].happen()
    kept = alone.start(one)
    assert alone.start(two).wait().tokens_per_local_expert.tolist() == [1, 0]
    assert kept.wait().tokens_per_local_expert.tolist() == [1, 2]


def test_no_more_slots_than_allowed():
    alone = ExtendedPreprocess(ExtendedLayout([[0, 1]], 0), None, accelerator=LateAccelerator(), max_slots=2)  # type: ignore[arg-type]
    tokens = torch.tensor(routing_map(2, "0"))
    calls = [alone.start(tokens), alone.start(tokens)]
    with pytest.raises(PreprocessError, match="all 2 slots"):
        alone.start(tokens)
    calls.pop().wait()
    alone.start(tokens).wait()


def test_in_inference_mode_first():
    group, _ = make(OWNED)
    with torch.inference_mode():
        start(group, SMALL)
    check_all([one.wait() for one in start(group, SMALL)], BY_HAND)


# ------------------------------------------------------------------------------------------------------ the layout


def test_a_layout_says_who_owns_what():
    layout = ExtendedLayout([list(own) for own in OWNED], 2)
    assert (layout.group_size, layout.num_local_experts, layout.num_experts) == (3, 2, 6)
    assert layout.order == (5, 0, 1, 3, 4, 2)
    assert not layout.in_order
    assert layout == ExtendedLayout(OWNED, 2)
    assert hash(layout) == hash(ExtendedLayout(np.array(OWNED), 2))  # type: ignore[arg-type]
    with pytest.raises(FrozenInstanceError):
        layout.rank = 1  # type: ignore[misc]


def test_contiguous_owners():
    layout = ExtendedLayout.contiguous(6, 3, 1)
    assert layout.owned == ((0, 1), (2, 3), (4, 5))
    assert layout.in_order


def test_digests_differ_with_owners_and_their_order_alone():
    digests = {ExtendedLayout(owned, 0).digest for owned in (((0, 1), (2, 3)), ((1, 0), (2, 3)), ((2, 3), (0, 1)))}
    assert len(digests) == 3
    assert ExtendedLayout(OWNED, 0).digest == ExtendedLayout(OWNED, 2).digest


@pytest.mark.parametrize(
    ("owned", "rank", "told"),
    [
        ((), 0, "`owned` is empty"),
        (((), ()), 0, "rank 0 of the TPxEP group owns no experts"),
        (((0, 1), (2,)), 0, "rank 1 of the TPxEP group owns 1 experts and rank 0 owns 2"),
        (((0, 1), (2, 4)), 0, r"rank 1 of the TPxEP group owns expert 4: .* own the experts 0\.\.3"),
        (((0, -1), (2, 3)), 0, "rank 0 of the TPxEP group owns expert -1"),
        (((0, 1), (2, 1)), 0, r"expert 1 is owned 2 times, by ranks \[0, 1\] .* nobody owns \[3\]"),
        (((0, 0), (2, 3)), 0, r"expert 0 is owned 2 times, by ranks \[0, 0\] .* nobody owns \[1\]"),
        (((0, 1), (2, 3)), 2, "rank 2 is not in a TPxEP group of 2 ranks"),
        (((0, 1), (2, 3)), -1, "rank -1 is not in"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(owned: Any, rank: int, told: str):
    with pytest.raises(GroupError, match=told):
        ExtendedLayout(owned, rank)


@pytest.mark.parametrize(("experts", "ranks"), [(6, 4), (2, 4), (0, 1), (4, 0)])
def test_experts_that_do_not_divide(experts: int, ranks: int):
    with pytest.raises(GroupError, match=f"{experts} experts cannot be spread evenly over .* {ranks} ranks"):
        ExtendedLayout.contiguous(experts, ranks, 0)


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("group", "told"),
    [
        (None, "their process group is needed"),
        (Group(2, 1), "the TPxEP group has 2 ranks; experts are owned by 3"),
        (Group(3, 0), "this rank is number 0 in the TPxEP group; the layout is that of number 1"),
    ],
)
def test_a_group_that_does_not_fit(group: Any, told: str):
    with pytest.raises(GroupError, match=told):
        ExtendedPreprocess(ExtendedLayout(OWNED, 1), group)


def test_options_that_cannot_be():
    layout, group = ExtendedLayout(OWNED, 1), Group(3, 1)
    for options, error, told in (
        ({"counts": "abacus"}, ConfigError, "counts: 'abacus'; allowed: sum, byte_lanes, matmul"),
        ({"exchange": "pigeon"}, ConfigError, "exchange: 'pigeon'; allowed: all_to_all, all_gather"),
        ({"device": "npu"}, DeviceError, "device 'npu' without an accelerator"),
    ):
        with pytest.raises(error, match=told):
            ExtendedPreprocess(layout, group, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (torch.zeros(3, 6, dtype=torch.uint8), "dtype torch.uint8"),
        (torch.zeros(3, 5, dtype=torch.bool), r"shape \(3, 5\); expected \[tokens, 6\]"),
        (torch.zeros(6, dtype=torch.bool), r"shape \(6,\)"),
        (torch.zeros(3, 6, dtype=torch.bool, device="meta"), "on device meta; expected cpu"),
    ],
)
def test_a_bad_map_is_refused_before_anything_is_compared(bad: torch.Tensor, told: str):
    group, _ = make(OWNED)
    with agreeing() as facts, pytest.raises(RoutingMapError, match=told):
        group[0].start(bad)
    assert not facts
    check_all([one.wait() for one in start(group, SMALL)], BY_HAND)


@pytest.mark.parametrize("late", [False, True])
def test_more_rows_than_can_be_indexed(late: bool):
    alone, _ = make([[1, 0]], late, max_slots=1)
    few = torch.tensor(routing_map(2, "01"))
    for _ in range(2):  # the slot comes back
        with pytest.raises(CountOverflowError, match=f"at most {MAX_ROWS}"):
            alone[0].start(few, MAX_ROWS + 1).wait()
    assert alone[0].start(few).wait().num_out_tokens == 2
    with pytest.raises(CountOverflowError):
        alone[0].padded(MAX_ROWS)
    with pytest.raises(PreprocessError, match="capacity -1"):
        alone[0].padded(-1)


def test_what_ranks_compare_once():
    """Owners, and everything that decides what travels."""
    found = {}
    for exchange, on_device in WAYS:
        group, _ = make(OWNED, True, exchange=exchange, counts_on_device=on_device, facts={"mindspeed_moe": "1"})
        with agreeing() as facts:
            for _ in range(2):
                preprocess_group(lambda one, routing_map: one.start(routing_map), group, SMALL.tensors(0))
        assert len(facts) == len(group), "compared once a rank"
        found[exchange, on_device] = facts[0]
    assert {one["counts_travel"] for one in found.values()} == {"by expert", "by owner"}
    facts = [found["all_gather", False]]
    assert facts[0] == {
        "mindspeed_moe": "1",
        "implementation": "extended",
        "exchange": "all_gather",
        "num_experts": 6,
        "group_size": 3,
        "owned_experts": ExtendedLayout(OWNED, 0).digest,
        "counts_travel": "by expert",
    }


# --------------------------------------------------------------------------------- proofs that these tests can fail


class _Hasty(ExtendedPreprocess):
    """Gives a slot back before its copy has arrived."""

    def start(self, routing_map: torch.Tensor, topk: int | None = None) -> ExtendedCall:
        call = super().start(routing_map, topk)
        assert self._ring is not None
        assert call._slot is not None
        self._ring.free(call._slot)
        return call


def test_a_slot_that_is_used_again_too_early_is_caught():
    accelerator: Any = LateAccelerator()
    alone = _Hasty(ExtendedLayout([[1, 0]], 0), None, accelerator=accelerator)
    alone.start(torch.tensor(routing_map(2, "0")))
    with pytest.raises(AssertionError, match="still under way"):
        alone.start(torch.tensor(routing_map(2, "1")))


@pytest.mark.parametrize("exchange", sorted(EXCHANGES))
def test_another_order_of_owners_is_caught(exchange: str):
    with mock.patch.object(ExtendedLayout, "order", (1, 0, 5, 3, 4, 2)):
        group, _ = make(OWNED, exchange=exchange)
        found = [one.wait() for one in start(group, SMALL)]
    with pytest.raises(AssertionError):
        check_all(found, BY_HAND)
