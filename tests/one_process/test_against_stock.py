"""Megatron's own preprocess on the same simulated groups: the oracle's witness, and the model for sync points."""

from __future__ import annotations

import contextlib
import itertools
from functools import lru_cache
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindspeed_moe.contract import Generation, generation_of
from mindspeed_moe.contract.generations import INLINE
from mindspeed_moe.preprocess.adapters import attributes_of
from mindspeed_moe.preprocess.counts import COUNTS
from mindspeed_moe.preprocess.groups import Groups
from mindspeed_moe.preprocess.packed import PackedOnHost
from mindspeed_moe.preprocess.packed_async import PackedOnAccelerator
from mindspeed_moe.preprocess.reference import Reference
from mindspeed_moe.preprocess.sites import Choices, Sites
from one_process.accelerator import LateAccelerator
from one_process.cases import Case, cases
from one_process.checks import check
from one_process.group import Collectives, Layout, Sent, preprocess_group
from oracle.plan import DROP, DROPLESS, MODES, PAD

pytestmark = pytest.mark.megatron
EXAMPLES = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@lru_cache
def release() -> Generation:
    import megatron.core

    return generation_of(megatron.core.__version__)


def modes() -> tuple[str, ...]:
    """Router padding is not in every release."""
    return MODES if release().router_padding else (DROPLESS, DROP, PAD)


def stock_preprocess_group(dispatchers: list[Any], maps: list[torch.Tensor]) -> list[Any]:
    """Megatron's preprocess on every rank, and what its hook does on the host: splits become numpy arrays."""
    from megatron.core.transformer.moe import token_dispatcher

    stock = token_dispatcher.MoEAlltoAllTokenDispatcher.preprocess
    collectives = Collectives()

    def gather(values: torch.Tensor, group: Any = None) -> torch.Tensor:
        return collectives.gather_along_first_dim(values, group)

    with mock.patch.object(token_dispatcher, "gather_from_sequence_parallel_region", gather):
        for dispatcher, routing_map in zip(dispatchers, maps, strict=True):
            with contextlib.suppress(Sent):
                stock(dispatcher, routing_map)
        collectives.delivering = True
        results = [stock(dispatcher, routing_map) for dispatcher, routing_map in zip(dispatchers, maps, strict=True)]
    for dispatcher in dispatchers:
        for name in ("input_splits", "output_splits", "output_splits_tp"):
            value = getattr(dispatcher, name)
            setattr(dispatcher, name, value.numpy() if isinstance(value, torch.Tensor) else value)
    return results


@settings(EXAMPLES, max_examples=300)
@given(st.data())
def test_the_oracle_agrees_with_megatron(data: st.DataObject):
    case = data.draw(cases(modes()))
    dispatchers = case.dispatchers()
    results = stock_preprocess_group(dispatchers, case.tensors())
    for dispatcher, result, wanted in zip(dispatchers, results, case.expected(), strict=True):
        name_and_fold_the_table(dispatcher)
        check(dispatcher, result, wanted)


def name_and_fold_the_table(dispatcher: Any) -> None:
    """0.10 has another name for the table, 0.11 a dimension more or less; the numbers stand in the same order."""
    table = getattr(dispatcher, release().chunk_table, None)
    if table is not None:
        shape = table.shape if dispatcher.drop_and_pad else (-1, dispatcher.num_local_experts)
        dispatcher.num_global_tokens_per_local_expert = table.reshape(shape)


# -------------------------------------------------------------------------------------------------- sync points


def programs() -> dict[str, Any]:
    def sites(tokens_per_expert: str) -> Sites:
        return Sites(
            attributes_of("alltoall", release()), Choices("cpu", "all_to_all", Groups("auto"), tokens_per_expert), {}
        )

    count = COUNTS["sum"]
    late: Any = LateAccelerator()
    return {
        "packed on the host": PackedOnHost(sites("host"), count),
        "packed, counts on the host": PackedOnAccelerator(sites("host"), count, late, aside=False, max_slots=100),
        "packed, counts on the device": PackedOnAccelerator(sites("device"), count, late, aside=True, max_slots=100),
        "reference on the host": Reference(sites("host"), None),
        "reference on a device": Reference(sites("device"), late),
    }


LAYOUTS = (
    Layout(1, 1, 1),
    Layout(1, 1, 4),
    Layout(2, 1, 2),
    Layout(2, 1, 4),
    Layout(1, 2, 1),
    Layout(1, 2, 4),
    Layout(2, 2, 4),
)


def case_of(layout: Layout, mode: str) -> Case:
    token = tuple(expert == 0 for expert in range(layout.experts))
    factor = 1.0 if mode in (DROP, PAD) else None
    return Case(layout, 1, mode, factor, tuple((token, token) for _ in range(layout.ranks)), False)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_sync_points_are_megatrons(mode: str, layout: Layout, fused: bool):
    if mode not in modes():
        pytest.skip("this release has no router padding")
    compare_points([case_of(layout, mode)], fused)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_sync_points_after_another_mode(layout: Layout):
    """On the same dispatcher a point only ever moves earlier."""
    for before, mode in itertools.permutations(modes(), 2):
        compare_points([case_of(layout, before), case_of(layout, mode)], False)


def compare_points(calls: list[Case], fused: bool) -> None:
    def points(preprocess_all: Any) -> list[str]:
        dispatchers = calls[0].dispatchers()
        for dispatcher in dispatchers:
            if fused:
                dispatcher.fuse()
        for case in calls:
            for dispatcher in dispatchers:
                case.configure(dispatcher)
            preprocess_all(dispatchers, case.tensors())
        return [one.cuda_sync_point for one in dispatchers]

    expected = points(stock_preprocess_group)
    for name, program in programs().items():
        found = points(lambda who, maps, program=program: preprocess_group(program.preprocess, who, maps))
        # Where Megatron would wait for the whole stream, packed's attributes wait for themselves.
        itself = release().adapter == INLINE and name.startswith("packed")
        assert found == (["no_sync"] * len(expected) if itself else expected), f"{name}, {[one.mode for one in calls]}"


def test_sync_points_differ_between_modes():
    """What the comparison above compares is not one and the same word."""
    seen = set()
    for layout in LAYOUTS:
        for mode in modes():
            case = case_of(layout, mode)
            dispatchers = case.dispatchers()
            stock_preprocess_group(dispatchers, case.tensors())
            seen |= {one.cuda_sync_point for one in dispatchers}
    fused = set() if release().adapter == INLINE else {"before_permutation_2"}
    assert seen == {"before_permutation_1", "before_ep_alltoall", "before_finish", "no_sync", *fused}
