"""The parts of selftest that need neither Megatron nor several processes: plan, traffic, oracle, verdicts, report."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from mindspeed_moe.contract.generations import GENERATIONS
from mindspeed_moe.dispatch_table import CHOICES, DEVICES, DISPATCHERS, rows_of
from mindspeed_moe.selftest.differences import difference
from mindspeed_moe.selftest.oracle import expect, padded
from mindspeed_moe.selftest.place import Place
from mindspeed_moe.selftest.report import FAILED, NOT_TRIED, PASSED, REFUSED, Outcome, Report, Stop
from mindspeed_moe.selftest.steps import (
    ALLTOALL,
    BARE,
    DROP,
    DROPLESS,
    LAYER,
    MODES,
    PAD,
    ROUTER_PADDING,
    SEQ,
    Facts,
    Layout,
    LeftOut,
    Step,
    contestants,
    covering,
    layouts,
    plan_steps,
)
from mindspeed_moe.selftest.traffic import FACTOR, draw_group
from mindspeed_moe.selftest.verdicts import Problem, Verdicts
from mindspeed_moe.tables import render
from oracle import plan as oracle

NEWEST, OLDEST = GENERATIONS[-1], GENERATIONS[0]


def facts(device: str = "cpu", generation: Any = NEWEST, world_size: int = 4) -> Facts:
    padding = generation.router_padding is not None
    return Facts(device, generation.name, world_size, padding, generation.unfolded_table)


# ------------------------------------------------------------------------------------------------ plan


def test_every_layout_that_fits_the_world() -> None:
    found = {(one.ep, one.tp) for one in layouts(4)}
    assert found == {(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1)}
    assert {(one.ep, one.tp) for one in layouts(6)} == {
        (ep, tp) for ep, tp in itertools.product(range(1, 7), repeat=2) if 6 % (ep * tp) == 0
    }
    assert {one.local_experts for one in layouts(1)} == {1, 2}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("generation", GENERATIONS, ids=lambda one: one.name)
def test_every_combination_of_every_row_is_run_with_every_layout_and_mode(device: str, generation: Any) -> None:
    """Counted off the dispatch table itself: a new row, or a new value of a choice, is covered by itself."""
    steps, left_out = plan_steps(facts(device, generation))
    run = {(one.layout, one.dispatcher, one.mode, str(one.contestant)) for one in steps if not one.load}
    missing = {one.what for one in left_out}
    for dispatcher, layout in itertools.product(DISPATCHERS, layouts(4)):
        for row in rows_of(device, dispatcher, generation.name):
            for values in itertools.product(*(getattr(row, choice) for choice in CHOICES)):
                choices = dict(zip(CHOICES, values, strict=True))
                if (layout.ep if dispatcher == SEQ else layout.ranks) == 1:
                    choices |= {"exchange": row.exchange[0], "exchange_group": row.exchange_group[0]}
                told = ", ".join(f"{name} {value}" for name, value in choices.items())
                for mode in (DROPLESS, DROP, ROUTER_PADDING):
                    if f"{layout}; {dispatcher}; {mode}" not in missing:
                        assert (layout, dispatcher, mode, f"{row.implementation} ({told})") in run
        if rows_of(device, dispatcher, generation.name):
            for mode in MODES:
                if f"{layout}; {dispatcher}; {mode}" not in missing:
                    assert (layout, dispatcher, mode, "stock") in run


def test_steps_of_one_group_of_ranks_and_of_one_contestant_stand_together() -> None:
    steps, _ = plan_steps(facts("npu", OLDEST))
    keys = [(one.layout.ep, one.layout.tp, one.dispatcher, one.contestant) for one in steps]
    assert len([key for key, _ in itertools.groupby(keys)]) == len(set(keys))
    assert len(set(map(str, steps))) == len(steps), "every step has a name of its own"


def test_refusals_are_steps_and_say_what_the_package_says() -> None:
    steps, _ = plan_steps(facts())
    refused = [one for one in steps if one.refusal]
    assert {one.layout.tp > 1 for one in refused} == {True}
    assert {dict(one.contestant.choices)["exchange_group"] for one in refused} == {"ep"}
    assert {one.way for one in refused} == {BARE}
    assert not [one for one in plan_steps(facts(generation=OLDEST))[0] if one.refusal and one.dispatcher == SEQ]


def test_what_megatron_cannot_run_is_left_out_with_a_reason() -> None:
    _, left_out = plan_steps(facts(generation=OLDEST))
    assert LeftOut("EP 2, TP 2, L 2; alltoall; router padding", "this release has no router padding") in left_out
    (unfolded,) = (one for one in GENERATIONS if one.unfolded_table)
    steps, left_out = plan_steps(facts(generation=unfolded))
    assert any("wrong positions" in one.reason for one in left_out)
    here = [one for one in steps if one.layout == Layout(2, 2, 2) and one.dispatcher == ALLTOALL]
    assert {one.way for one in here} == {BARE}
    assert plan_steps(facts())[1] == ()


def test_only_and_no_load() -> None:
    steps, _ = plan_steps(facts(), lambda name: "EP 2, TP 1" in name and "idle" in name)
    assert {(one.layout.ep, one.layout.tp, one.load) for one in steps} == {(2, 1, False)}
    assert {one.load for one in plan_steps(facts())[0]} == {True, False}
    assert {one.load for one in plan_steps(facts(), load=False)[0]} == {False}


@pytest.mark.parametrize("device", DEVICES)
def test_few_contestants_cover_every_pair_of_choices(device: str) -> None:
    every = contestants(rows_of(device, ALLTOALL, NEWEST.name), peers=True)
    few = covering(every)
    assert {one.implementation for one in few} == {"stock", "reference", "packed"}

    def pairs(of: Sequence[Any]) -> set[Any]:
        return {(one.implementation, pair) for one in of for pair in itertools.combinations(one.choices, 2)}

    assert pairs(few) == pairs(every)
    assert len(few) < len(every)


# ------------------------------------------------------------------------------------------------ oracle

_MODES = {DROPLESS: oracle.DROPLESS, DROP: oracle.DROP, PAD: oracle.PAD, ROUTER_PADDING: oracle.ROUTER_PADDING}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "layout", [Layout(1, 1, 1), Layout(1, 1, 2), Layout(2, 2, 1), Layout(2, 3, 2), Layout(4, 1, 2)]
)
def test_splits_are_those_of_the_other_oracle(layout: Layout, mode: str) -> None:
    group = draw_group(layout, ALLTOALL, mode, (1, 2))
    maps = [one.routing_map if mode != ROUTER_PADDING else padded(one.routing_map) for one in group]
    wanted = oracle.plan_group(
        [one.tolist() for one in maps],
        ep=layout.ep,
        tp=layout.tp,
        experts=layout.experts,
        topk=layout.topk,
        mode=_MODES[mode],
        factor=FACTOR,
    )
    for index, plan in enumerate(wanted):
        found = expect(layout, ALLTOALL, mode, group, index).splits
        for name in vars(found):
            assert getattr(found, name) == getattr(plan, name), f"rank {index}: {name}"


def moved_by_hand(layout: Layout, group: Any, index: int) -> tuple[Any, Any, Any]:
    """Output and gradients of one rank, token by token and expert by expert in Python integers and fractions."""
    mine = group[index]
    output, gradient = np.zeros_like(mine.hidden), np.zeros_like(mine.hidden)
    of_probs = np.zeros_like(mine.probs)
    for token, expert in np.argwhere(mine.routing_map):
        for k in range(layout.tp):
            factor = (1 + int(expert) % 7) * (1 + k % 3)
            output[token] += mine.probs[token, expert] * factor * mine.hidden[token]
            gradient[token] += mine.probs[token, expert] * factor * mine.weights[token]
            of_probs[token, expert] += factor * sum(mine.hidden[token] * mine.weights[token])
    return output, gradient, of_probs


@pytest.mark.parametrize("mode", [DROPLESS, DROP, PAD])
def test_results_are_those_of_moving_every_token_by_hand(mode: str) -> None:
    layout = Layout(2, 2, 2)
    group = draw_group(layout, ALLTOALL, mode, (5,))
    for index in range(layout.ranks):
        found = expect(layout, ALLTOALL, mode, group, index)
        output, gradient, of_probs = moved_by_hand(layout, group, index)
        assert np.array_equal(found.output, output)
        assert np.array_equal(found.hidden_gradient, gradient)
        assert np.array_equal(found.probs_gradient, of_probs)


def test_every_row_arrives_once_at_one_ep_rank_and_at_all_its_tp_ranks() -> None:
    layout = Layout(2, 2, 2)
    group = draw_group(layout, ALLTOALL, DROPLESS, (3,))
    tags = [expect(layout, ALLTOALL, DROPLESS, group, index).tags for index in range(layout.ranks)]
    assert tags[0] == tags[1]
    assert tags[2] == tags[3]
    sent = sorted(
        (index, token) for index, one in enumerate(group) for token, _ in np.argwhere(one.routing_map).tolist()
    )
    assert sorted(tags[0] + tags[2]) == sent


def test_seq_knows_no_tp_in_its_splits_and_shares_a_sequence() -> None:
    layout = Layout(2, 2, 2)
    group = draw_group(layout, SEQ, DROPLESS, (3,))
    for i in range(layout.ep):
        one, other = group[2 * i : 2 * i + 2]
        assert np.array_equal(one.routing_map, other.routing_map)
        assert len(one.routing_map) == len(one.hidden) + len(other.hidden)
    found = [expect(layout, SEQ, DROPLESS, group, index) for index in range(layout.ranks)]
    assert found[0].splits == found[1].splits
    assert found[0].splits.output_splits_tp is None
    assert found[0].tags == found[1].tags
    assert {member for member, _ in found[0].tags} <= set(range(layout.ranks))


# ------------------------------------------------------------------------------------------------ traffic


def test_all_ranks_draw_the_same_and_seeds_differ() -> None:
    layout = Layout(2, 1, 2)
    one, again, other = (draw_group(layout, ALLTOALL, DROPLESS, seed) for seed in ((0, 1), (0, 1), (0, 2)))
    assert all(np.array_equal(a.hidden, b.hidden) for a, b in zip(one, again, strict=True))
    assert not all(np.array_equal(a.routing_map, b.routing_map) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("mode", [DROPLESS, DROP, ROUTER_PADDING])
def test_ranks_have_unequal_numbers_of_tokens_and_some_have_none(mode: str) -> None:
    seen = {tuple(len(one.hidden) for one in draw_group(Layout(4, 1, 1), ALLTOALL, mode, (s,))) for s in range(20)}
    assert any(0 in counts and len(set(counts)) > 2 for counts in seen)


@pytest.mark.parametrize("mode", MODES)
def test_maps_are_what_a_router_of_the_mode_leaves(mode: str) -> None:
    layout = Layout(2, 1, 2)
    for one in draw_group(layout, ALLTOALL, mode, (0,)):
        rows = one.routing_map.sum(axis=1)
        if mode in (DROPLESS, ROUTER_PADDING):
            assert set(rows.tolist()) <= {layout.topk}
        if mode == PAD:
            assert len(set(one.routing_map.sum(axis=0).tolist())) == 1
        assert not one.probs[~one.routing_map].any()


def test_padding_fills_with_the_first_free_tokens() -> None:
    routing_map = np.zeros((20, 2), dtype=np.bool_)
    routing_map[2, 0] = routing_map[:17, 1] = True
    found = padded(routing_map)
    assert found.sum(axis=0).tolist() == [16, 20], "with too few tokens, as many as there are"
    assert found[:16, 0].all()
    assert not found[16:, 0].any()


# ------------------------------------------------------------------------------------------------ verdicts, report


@pytest.mark.parametrize(
    ("found", "expected", "told"),
    [
        ([1, 2, 3], [1, 5, 4], "x[1]: found 2, expected 5 (and 1 more)"),
        ([[1, 2], [3, 4]], [[1, 2], [3, 5]], "x[1, 1]: found 4, expected 5"),
        (None, [1], "x: found None, expected [1]"),
        ([1], None, "x: found [1], expected None"),
        ([1, 2], [1], "x: found the shape [2], expected [1]"),
        (3, 4, "x: found 3, expected 4"),
        ([1, 2], [1, 2], ""),
        (None, None, ""),
    ],
)
def test_a_difference_names_the_first_place_and_both_values(found: Any, expected: Any, told: str) -> None:
    assert difference("x", found, expected) == told


def test_all_ranks_come_to_the_same_verdict() -> None:
    store: Any = dist.HashStore()
    told: dict[int, list[Any]] = {rank: [] for rank in range(3)}

    def rank(own: int) -> None:
        verdicts = Verdicts(store, own, 3, timedelta(seconds=20))
        told[own].append(verdicts.agree("one", []))
        told[own].append(verdicts.agree("two", ["a", "b"] if own == 1 else []))
        told[own].append(verdicts.agree("three", []))

    threads = [threading.Thread(target=rank, args=(own,)) for own in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bad = (Problem("two", 1, "a"), Problem("two", 1, "b"))
    assert list(told.values()) == [[(), bad, ()]] * 3


def test_a_rank_that_does_not_come_is_an_error() -> None:
    with pytest.raises(RuntimeError):
        Verdicts(dist.HashStore(), 0, 2, timedelta(seconds=0.1)).agree("one", [])


def report(*states: str, planned: int | None = None) -> Report:
    steps, left_out = plan_steps(facts(generation=OLDEST), lambda name: "EP 2, TP 1, L 1; alltoall; dropless" in name)
    told = Report("here", 7, len(states) if planned is None else planned, left_out)
    for step, state in zip(steps, states, strict=False):
        problems = (Problem(str(step), 1, "input_splits[0]: found 3, expected 4"),) if state == FAILED else ()
        told.outcomes.append(Outcome(step, state, 0.5, problems))
    return told


@pytest.mark.parametrize(
    ("states", "planned", "passed"),
    [
        ((PASSED, REFUSED), None, True),
        ((PASSED, FAILED), None, False),
        ((PASSED, NOT_TRIED), None, False),
        ((PASSED,), 2, False),
    ],
)
def test_what_counts_as_passed(states: tuple[str, ...], planned: int | None, passed: bool) -> None:
    assert report(*states, planned=planned).passed == passed


def test_a_report_counts_by_row_and_tells_failures() -> None:
    found = report(PASSED, FAILED, NOT_TRIED, REFUSED)
    data = json.loads(json.dumps(found.to_dict()))
    assert data["counts"] == {PASSED: 1, REFUSED: 1, FAILED: 1, NOT_TRIED: 1}
    (row,) = data["rows"]
    assert row["layout"] == {"ep": 2, "tp": 1, "local_experts": 1}
    assert (row["dispatcher"], row["mode"], row["seconds"]) == (ALLTOALL, DROPLESS, 2.0)
    (failure,) = data["failures"]
    assert failure["rank"] == 1
    assert "EP 2, TP 1, L 1; alltoall; dropless; stock; megatron's dispatcher; idle" in failure["step"]
    text = " ".join(render(*found.parts()).split())
    assert "rank 1: input_splits[0]: found 3, expected 4" in text
    assert "left out, " in text
    assert text.endswith("selftest FAILED: 1 passed, 1 refused, 1 failed, 1 not tried (seed 7)")


def test_a_report_of_a_stopped_run_says_where_everybody_stood() -> None:
    found = report(PASSED, planned=9)
    found.stop = Stop("rank 1, in step 'x': not done after 60 s", {0: "step: x", 1: "no answer"})
    assert not found.passed
    assert found.to_dict()["stopped"]["ranks"] == {"0": "step: x", "1": "no answer"}
    text = render(*found.parts())
    assert "STOPPED: rank 1, in step 'x': not done after 60 s" in text
    assert "--- rank 1 stands here:\nno answer" in text
    assert "8 not reached" in text


def test_a_place_names_step_layer_collective_and_stack() -> None:
    place = Place()
    place.begin("EP 2")
    place.at, place.collective, place.inside = "layer 1, backward", "all_to_all_single of [4] int32", True
    told: list[str] = []
    thread = threading.Thread(target=lambda: told.append(place.describe()))
    thread.start()
    thread.join()
    for words in ("step: EP 2", "at: layer 1, backward", "all_to_all_single of [4] int32 (has not returned)"):
        assert words in told[0]
    assert "test_a_place_names_step_layer_collective_and_stack" in told[0], "the main thread's stack, not the asker's"


def test_way_names_are_told_apart_in_a_step() -> None:
    steps, _ = plan_steps(facts())
    one = next(step for step in steps if step.way == LAYER and step.load)
    assert isinstance(one, Step)
    assert str(one).endswith("megatron's dispatcher; load")
