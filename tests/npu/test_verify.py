"""`verify: always` on the simulated npu: which mistakes it catches and when, and what a verified call costs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mindspeed_moe.verify.dump import read_dump
from mindspeed_moe.verify.replay import Finding, replay
from npu.floor import EVENT, STREAM
from npu.launch import run_ranks
from npu.layer import way_of_waiting
from npu.mutations import EP_TP

pytestmark = [pytest.mark.simulated, pytest.mark.megatron]

# place -> stream -> mutations. In each step two layers run, and one more on which rank 0 gives a call up. Each may
# matter in the first step already; one that is a race may win it there.
CAUGHT: dict[str, dict[str, tuple[str, ...]]] = {
    "ep2": {
        "current": (
            "event_not_waited_for",
            "event_recorded_before_the_copy",
            "one_slot_for_all_layers",
            "event_on_the_wrong_stream",
            "waited_for_after_the_first_read",
            "buffer_of_a_slot_handed_out",  # by the call that uses the slot again
        ),
        "side": (
            "event_not_waited_for",
            "event_recorded_before_the_copy",
            "one_slot_for_all_layers",
            "event_on_the_stream_that_was_current",
            "side_stream_does_not_wait",
            "slot_taken_before_its_copy_is_done",
            "tensors_of_a_given_up_call_dropped",
            "counts_handed_out_before_the_wait",
        ),
    },
    "tp2ep2": {"current": ("send_order_swapped", "received_order_swapped", "collective_on_the_wrong_group")},
}
# Why verification cannot see the others; tests/npu/test_mutations.py and selftest do.
NOT_VISIBLE = {
    "pageable_target": "every value is right, only later",
    "one_device_buffer_for_all_slots": "verification's own collectives order the streams",
    "slot_free_when_its_call_is_given_up": "verification's own collectives order the streams, but for a race",
}
# They write into memory that others have been given: what is spoilt may be the reference's, and replay says so.
SPOIL_MEMORY = ("slot_taken_before_its_copy_is_done", "tensors_of_a_given_up_call_dropped")
AS_IT_IS = ""
FAILED = re.compile(
    r"verification failed on rank (?P<rank>\d), layer number (?P<layer>\d) in order of first calls, "
    r"training step \d+, micro-batch \d+ \(call (?P<call>\d+) of the layer\): (?P<difference>.+?)"
    r"(?P<why> \(it gave up: .+\))?; implementation packed, all_to_all; dump: (?P<path>\S+) "
)

Found = list[dict[str, dict[str, Any]]]


def run(place: str, folder: Path) -> Found:
    ep, tp, _ = EP_TP[place]
    names = {stream: [AS_IT_IS, *mutations] for stream, mutations in CAUGHT[place].items()}
    arguments = {"where": place, "names": names, "folder": str(folder / "dumps")}
    return run_ranks("verify", ep * tp, folder, arguments=arguments)


@pytest.fixture(scope="module", params=CAUGHT)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Found]:
    """Return the place, and for each rank what it found by stream and mutation."""
    if way_of_waiting() not in (EVENT, STREAM):
        pytest.skip("this release has no hook; the mutations are of the code behind it")
    return request.param, run(request.param, tmp_path_factory.mktemp("verify"))


def test_every_mutation_is_named_here_or_told_why_not() -> None:
    for place, (_, _, known) in EP_TP.items():
        for stream, mutations in known.items():
            assert mutations.keys() - {*CAUGHT[place][stream]} <= NOT_VISIBLE.keys(), stream
            assert {*CAUGHT[place][stream]} <= mutations.keys() - NOT_VISIBLE.keys(), stream


def test_the_code_as_it_is_passes(found: tuple[str, Found]) -> None:
    place, ranks = found
    for stream in CAUGHT[place]:
        passed = {"step": None, "message": "", "missed": ""}
        assert [rank[stream][AS_IT_IS] for rank in ranks] == [passed] * len(ranks), stream


def test_every_mutation_is_caught_in_the_first_step_in_which_it_matters(found: tuple[str, Found]) -> None:
    place, ranks = found
    for stream, mutations in CAUGHT[place].items():
        for name in mutations:
            assert ranks[0][stream][name]["step"] is not None, f"{stream}, {name}: never caught"
            missed = [rank[stream][name]["missed"] for rank in ranks]
            assert not any(missed), f"{stream}, {name}: a step before was wrong already: {missed}"
            messages = [rank[stream][name]["message"] for rank in ranks]
            assert any(messages), f"{stream}, {name}"
            assert all(FAILED.match(one) for one in messages if one), messages


def test_every_dump_is_replayed_to_the_same_difference(found: tuple[str, Found]) -> None:
    """From the dump of the rank that refused, and from all of its group; and the code as it is was right.

    A rank that refuses another call at the same moment leaves a dump of that one.
    """
    place, ranks = found
    for stream, mutations in CAUGHT[place].items():
        for name in mutations:
            refused = {at for at, one in enumerate(ranks) if FAILED.match(one[stream][name]["message"])}
            for rank in ranks:
                told = FAILED.match(rank[stream][name]["message"])
                if told is None:
                    continue
                path = Path(told["path"])
                dumps = [read_dump(one) for one in _of_one_call(path, len(ranks))]
                left = {dump.meta.rank for dump in dumps}
                assert left | refused == {*range(len(ranks))}, f"{stream}, {name}: a rank of the group has left no dump"
                for given in ([read_dump(path)], dumps):
                    one = _of_rank(replay(given).findings, int(told["rank"]))
                    assert str(one.recorded) == told["difference"], f"{stream}, {name}"
                    assert one.code is None, f"{stream}, {name}"
                    if name in SPOIL_MEMORY and one.reference is not None:
                        continue
                    assert (str(one.against_maps), one.reference) == (told["difference"], None), f"{stream}, {name}"


def _of_one_call(path: Path, ranks: int) -> list[Path]:
    """Dumps of the same call by all ranks: those that failed by themselves may have another second in their names."""
    layer_and_call = re.sub(r"-rank\d+\.npz$", "", path.name.partition("-")[2])
    every = sorted(path.parent.glob(f"*-{layer_and_call}-rank*.npz"))
    return list({one.stem[-5:]: one for one in every}.values())


def _of_rank(findings: tuple[Finding, ...], rank: int) -> Finding:
    return next(one for one in findings if one.meta.rank == rank)


# ------------------------------------------------------------------------------------------------------ cost


# EP = 2, four local experts, dropless, the counts read on the device, all on the current stream.
PLAIN: dict[str, Any] = {
    "preprocess": {
        "kernels": {"aclnnReduceSum": 2},
        "collectives": ["HcclAlltoAll"],
        "asynchronous copies to pinned memory": 1,
        "all copies": 1,
        "records": 4,
        "waits for events": 0,
        "waits for streams": 0,
        "waits between streams": 2,
    },
    "points": {
        "kernels": {},
        "collectives": [],
        "asynchronous copies to pinned memory": 0,
        "all copies": 0,
        "records": 0,
        "waits for events": 1,
        "waits for streams": 0,
        "waits between streams": 0,
    },
}
# The reference's kernels (five sums and a copy), its gather, and eight copies: the routing map, everybody's counts,
# what the reference says of three splits, the table and the counts, and the counts that packed has handed out. Nothing
# waits in preprocess. Of the records three are around the gather, one ends the copies, and seven with one at the points
# are torch's own for pinned memory of the last call that comes free.
VERIFIED: dict[str, Any] = {
    "preprocess": {
        "kernels": {"aclnnReduceSum": 7, "aclnnInplaceCopy": 1},
        "collectives": ["HcclAllGather", "HcclAlltoAll"],  # by name
        "asynchronous copies to pinned memory": 9,
        "all copies": 9,
        "records": 15,
        "waits for events": 0,
        "waits for streams": 0,
        "waits between streams": 4,
    },
    "points": {**PLAIN["points"], "records": 1, "waits for events": 2},
}


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    """One call, by verification and by part."""
    return run_ranks("verify_cost", 2, tmp_path_factory.mktemp("cost"))


@pytest.mark.parametrize(("verify", "cost"), [("off", PLAIN), ("always", VERIFIED), ("first", PLAIN)])
def test_what_a_call_costs(costs: list[dict[str, dict[str, Any]]], verify: str, cost: dict[str, Any]) -> None:
    """Of `first` it is the third call, which it leaves alone: it must cost what a call without it costs."""
    if way_of_waiting() not in (EVENT, STREAM):
        pytest.skip("this release has no hook: every read is a point there")
    assert [one[verify] for one in costs] == [cost, cost]


def test_verification_never_makes_the_host_wait_before_a_reader_would(
    costs: list[dict[str, dict[str, Any]]],
) -> None:
    """It would hide what is read too early."""
    for one in costs:
        started = one["always"]["preprocess"]
        assert started["waits for events"] == started["waits for streams"] == 0
        assert started["all copies"] == started["asynchronous copies to pinned memory"]
